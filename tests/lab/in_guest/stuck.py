# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A write that does not return: a process holds the function open, and the kernel's unbind waits for it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import workers
from errnos import VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU
from labhost import NIC, check, driver, iommu_group, say, wait_for
from workers import CARD, Child, Outcome, done, recovered, rounds

from pyhostdev import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

# Source: VFIO_GROUP_GET_DEVICE_FD (kernel, include/uapi/linux/vfio.h)
VFIO_GROUP_GET_DEVICE_FD = 0x3B6A

OWNER = "stuck"
DEADLINE_S = 2.0
ANSWER_S = 1.0  # how long another manager waits for an answer at most


def _open_function(address: str, *, is_group_open: bool) -> None:
    """
    Open a function as QEMU does. A mapping of its first BAR keeps function and group open after both were closed.

    /proc shows the holder of a group's descriptor; on 7.2, it also shows the holder of a function's descriptor.
    """
    group = os.open(f"/dev/vfio/{iommu_group(address)}", os.O_RDWR)
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    fcntl.ioctl(group, VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU)
    function = fcntl.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bytearray(address.encode() + b"\0"))
    if not is_group_open:
        _map(function)
        os.close(function)
        os.close(group)


def _map(function: int) -> None:
    """Map a page of a function's first BAR; Python's own mmap would keep a descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_ssize_t
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    if libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, function, 0) == -1:
        raise OSError(ctypes.get_errno(), "mmap of a function")


class Holder:
    """A process that has a function open until it is killed."""

    def __init__(self, address: str, *, is_group_open: bool) -> None:
        ready, mouth = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _open_function(address, is_group_open=is_group_open)
                os.write(mouth, b"open")
                signal.pause()
            finally:
                os._exit(1)
        os.close(mouth)
        word = os.read(ready, 4)
        os.close(ready)
        assert word == b"open", f"{address} cannot be opened"

    def end(self) -> None:
        """Kill the process, once."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@contextmanager
def held(address: str, *, is_group_open: bool = False) -> Iterator[Holder]:
    """
    Have a function held open.

    The holder keeps only a mapping by default: a process with the group's node open is visible in /proc, and a release
    then does not even begin. Otherwise the kernel is asked, unless the release is blind.
    """
    holder = Holder(address, is_group_open=is_group_open)
    try:
        yield holder
    finally:
        holder.end()


def is_in_flight(address: str) -> bool:
    """Tell whether a write to a function has not returned."""
    return workers.new_manager().host.is_in_flight(PCIDeviceAddress.parse(address))


class _Figures:
    """What the rounds took, in seconds."""

    def __init__(self) -> None:
        self.deadline: list[float] = []
        self.refusal: list[float] = []
        self.after_death: list[float] = []
        self.resolved: list[float] = []


def _told(outcome: Outcome, address: str) -> None:
    """
    Make sure that an error names the function, its driver and the step that did not come back.

    Raises:
        AssertionError: it does not.
    """
    assert outcome.error in ("OperationError", "InDoubtError"), outcome
    for word in (address, "in doubt", "vfio-pci/unbind"):
        assert word in outcome.text, f"'{word}' is not in: {outcome.text}"


def _stuck_round(address: str, figures: _Figures) -> None:
    domain, other = workers.definition(OWNER), workers.definition("other")
    done(lambda: workers.prepare(domain))
    with held(address) as holder:
        manager = Child(lambda: workers.release_blindly(OWNER, 60))
        wait_for(lambda: is_in_flight(address) and driver(address) is None, "the unbind of the function is stuck", 30)
        manager.kill()
        second = Child(lambda: workers.release_blindly(OWNER, DEADLINE_S)).result()
        assert manager.result().was_killed, "the first manager was killed while it waited"
        assert second.error == "OperationError", second
        assert "in doubt" in second.text, second.text
        figures.after_death.append(second.seconds)
        refused = Child(lambda: workers.prepare(other)).result()
        assert refused.error in ("RefusedError", "DeviceInUseError"), refused
        figures.refusal.append(refused.seconds)
        assert is_in_flight(address), "it is still stuck"
        holder.end()
        with workers.stopwatch(figures.resolved):
            wait_for(lambda: not is_in_flight(address), "the kernel finishes the unbind", 30)
    recovered()
    workers.assert_home()


def _deadline_round(address: str, figures: _Figures) -> None:
    domain = workers.definition(OWNER)
    done(lambda: workers.prepare(domain))
    with held(address):
        outcome = Child(lambda: workers.release_blindly(OWNER, DEADLINE_S)).result()
        _told(outcome, address)
        figures.deadline.append(outcome.seconds)
        findings = workers.new_manager().host.plan(workers.definition("other")).findings
        doubts = [str(finding.address) for finding in findings if finding.reason == "in-doubt"]
        assert doubts == [address], f"the plan's findings in doubt: {doubts}"
    wait_for(lambda: not is_in_flight(address), "the kernel finishes the unbind", 30)
    recovered()
    workers.assert_home()


def stuck_unbind() -> None:
    """A hanging unbind costs only its deadline, is reported as in doubt, and resolves itself when the holder ends."""
    figures = _Figures()
    rng = workers.dice("stuck")
    total = rounds(1, 10)
    for _ in range(total):
        _deadline_round(rng.choice(NIC), figures)
        _stuck_round(rng.choice(NIC), figures)
    say(f"  release with a deadline of {DEADLINE_S:g} s: {workers.spread(figures.deadline)}")
    say(f"  second manager after the death of the first: {workers.spread(figures.after_death)}")
    say(f"  refusal of another owner: {workers.spread(figures.refusal)}")
    say(f"  unbind finished after the holder's end: {workers.spread(figures.resolved)}")
    workers.check_below(DEADLINE_S + 1, max(figures.deadline), "release ends with its deadline")
    workers.check_below(ANSWER_S, max(figures.after_death), "the next manager gets its answer at once")
    workers.check_below(ANSWER_S, max(figures.refusal), "another owner is refused at once")
    check(True, True, f"{2 * total} of {2 * total} stuck unbinds told, survived and resolved")


def held_group() -> None:
    """If the holder is visible, release refuses before it writes, names it, and succeeds after its end."""
    done(lambda: workers.prepare(workers.definition(OWNER)))
    before = workers.drivers(NIC)
    with held(NIC[0], is_group_open=True) as holder:
        outcome = Child(lambda: workers.release(OWNER, DEADLINE_S)).result()
        check("DeviceInUseError", outcome.error, "release is refused")
        say(f"    {outcome.text}")
        check(True, f"process {holder.pid}" in outcome.text, "it names the holder")
        check(before, workers.drivers(NIC), "no function was touched")
        check([False] * len(CARD), [is_in_flight(address) for address in NIC], "no write is in flight")
    done(lambda: workers.release(OWNER))
    workers.assert_home()
    done(lambda: workers.prepare(workers.definition(OWNER)))
    with held(NIC[0]):
        outcome = Child(lambda: workers.release(OWNER)).result()
        check("DeviceInUseError", outcome.error, "a holder that only the kernel knows is waited for, then told")
        say(f"    {outcome.seconds:.1f} s: {outcome.text}")
        check(before, workers.drivers(NIC), "no function was touched")
    done(lambda: workers.release(OWNER))
    workers.assert_home()


def released_at_the_end() -> None:
    """Released at a random moment around the end of the process that has the card: no write ever waits for it."""
    rng, total = workers.dice("end"), rounds(100, 1000)
    for _ in range(total):
        done(lambda: workers.prepare(workers.definition(OWNER)))
        with held(rng.choice(NIC), is_group_open=rng.random() < 0.5) as holder:
            releasing = Child(lambda: workers.release(OWNER, DEADLINE_S, guest_ended=True))
            time.sleep(rng.uniform(0, 0.5))
            holder.end()
            outcome = releasing.result()
        assert outcome.error is None, outcome
        workers.assert_home()
    check(True, True, f"{total} of {total} releases waited for the end, and none was stuck")
