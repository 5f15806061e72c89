# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What goes away or is not there: devices, the stub's module, room for records, rights.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import workers
from labhost import NIC, NIC_DRIVER, PCI, UNSET, VFIO, check, driver, drivers, say, traces, wait_for
from truth import write
from workers import Child, done

from pyhostdev import Host, HostdevManager
from pyhostdev.util.sysfs_writer import ForkedWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev import PCIDeviceAddress

NOBODY = 65534
CLONE_NEWNS = 0x00020000
FAILURES = ("SysfsError", "OperationError", "DeviceMissingError")  # whichever the look or write is that meets it first


def _unplug(address: str) -> None:
    write(f"devices/{address}/remove", "1")
    assert not (PCI / "devices" / address).exists(), f"{address} is still there"


def _replug(address: str) -> None:
    """Let the kernel find a function again: it is a new one, which the host's driver takes."""
    write("rescan", "1")
    wait_for(lambda: driver(address) == NIC_DRIVER, f"{address} is found and has its driver", 10)


def vanished() -> None:
    """A function that is unplugged while it is prepared, or afterwards, costs the others nothing."""
    for moment in (1, 4, 5, 12):
        counter = itertools.count(1)

        def unplug(
            _path: str, _value: bytes, _device: PCIDeviceAddress, *, at: int = moment, count: Iterator[int] = counter
        ) -> None:
            if next(count) == at:
                _unplug(NIC[1])

        def doomed() -> None:
            manager = workers.new_manager(written=unplug)
            manager.prepare(manager.host.plan(workers.definition("vanished")))

        outcome = Child(doomed).result()
        say(f"    {outcome.error}: {outcome.text}")
        check(True, outcome.error in FAILURES, f"prepare fails, unplugged after write {moment}")
        others = [address for address in NIC if address != NIC[1]]
        check(dict.fromkeys(others, (NIC_DRIVER, UNSET)), drivers(others), "the others are on their driver")
        check(([], [], []), workers.books(), "no record is left")
        _replug(NIC[1])
    done(lambda: workers.prepare(workers.definition("vanished")))
    _unplug(NIC[1])
    done(lambda: workers.release("vanished"))
    check(dict.fromkeys(others, (NIC_DRIVER, UNSET)), drivers(others), "release gave the others back")
    check(([], [], []), workers.books(), "and closed the record of the one that is gone")
    _replug(NIC[1])
    workers.assert_home()


def plugged_in_again() -> None:
    """A new device at a device's address is refused to an old plan, and left alone by release."""
    manager = workers.new_manager()
    plan = manager.host.plan(workers.definition("replugged"))
    _unplug(NIC[2])
    _replug(NIC[2])
    outcome = Child(lambda: workers.new_manager().prepare(plan)).result()
    check("RefusedError", outcome.error, "a plan for the device that was there is refused")
    check(True, NIC[2] in outcome.text, "it names the function")
    done(lambda: workers.prepare(workers.definition("replugged")))
    _unplug(NIC[2])
    _replug(NIC[2])
    before = traces()[NIC[2]]
    done(lambda: workers.release("replugged"))
    check(before, traces()[NIC[2]], "release has not touched the new one")
    workers.assert_home()


def stub_unloaded() -> None:
    """Devices whose stub is unloaded under them have no driver, and are bound to their original one."""
    done(lambda: workers.prepare(workers.definition("unloaded")))
    subprocess.run(["modprobe", "-r", VFIO], check=True)
    check(dict.fromkeys(NIC, (None, VFIO)), drivers(NIC), "vfio-pci is gone, and the four are unbound")
    done(lambda: workers.release("unloaded"))
    workers.assert_home()
    check(workers.HOME, drivers(NIC), "all four are on their driver")


def _manager(state: Path) -> HostdevManager:
    """Return a manager that keeps its records elsewhere."""
    bare = Host("/")
    writer = ForkedWriter(bare.root, inflight_dir=str(state / "in-flight"))
    return HostdevManager(Host("/", state_dir=str(state), writer=writer))


def _prepare(state: Path) -> None:
    manager = _manager(state)
    manager.prepare(manager.host.plan(workers.definition("other")))


@contextmanager
def _small_disk() -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """Mount a file system of 16 pages; yield a directory there, what fills the rest and what makes room."""
    top = Path("/run/lab-full")
    top.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", top], check=True)

    def fill() -> None:
        try:
            with (top / "filler").open("ab", buffering=0) as stream:
                while True:
                    stream.write(bytes(4096))
        except OSError as err:
            assert err.errno == errno.ENOSPC

    try:
        yield top / "state", fill, (top / "filler").unlink
    finally:
        subprocess.run(["umount", top], check=True)
        top.rmdir()


def full_disk() -> None:
    """On a full file system prepare is refused before its first write, and release gives all back."""
    with _small_disk() as (state, fill, make_room):
        before = traces()
        fill()
        outcome = Child(lambda: _prepare(state)).result()
        check("SysfsError", outcome.error, "prepare fails where no record can be written")
        say(f"    {outcome.text}")
        check(before, traces(), "no function of the host was touched")
        make_room()
        done(lambda: _prepare(state))
        check(workers.TAKEN, drivers(NIC), "with room it works")
        fill()
        done(lambda: _manager(state).release("other"))
        check(workers.HOME, drivers(NIC), "release gave all back on a full file system")
        check(([], [], []), tuple(_manager(state).status()), "and its records are gone")


def _as_nobody(state: Path) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    _prepare(state)


def _with_read_only_sysfs(state: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "/sys"], check=True)
    _prepare(state)


def without_rights() -> None:
    """Another user, and root with a read-only /sys, get the kernel's error, and no function is touched."""
    state = Path("/run/lab-nobody")
    before = traces()
    try:
        for who, action in (("nobody", _as_nobody), ("root with a read-only /sys", _with_read_only_sysfs)):
            state.mkdir()
            owner = NOBODY if who == "nobody" else 0
            os.chown(state, owner, owner)
            outcome = Child(lambda action=action: action(state / "state")).result()  # type: ignore[misc]
            check("SysfsError", outcome.error, f"prepare fails for {who}")
            say(f"    {outcome.text}")
            check(before, traces(), "no function of the host was touched")
            left = [path.name for path in (state / "state").glob("*.json")]
            check([], left, "no record is left")
            subprocess.run(["rm", "-r", state], check=True)
        outcome = Child(lambda: _as_nobody(Path("/run/pyhostdev"))).result()
        check(True, outcome.error is not None, "the user cannot use root's records either")
        say(f"    {outcome.error}: {outcome.text}")
    finally:
        subprocess.run(["rm", "-rf", state], check=True)
    check(before, traces(), "no function of the host was touched")
