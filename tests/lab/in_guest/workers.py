# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the steps about crashes and races share: managers in processes of their own, forked from us while we are warm.

A verb of the command line takes seconds here, most of them for imports; a fork has these behind it, and can be
killed like any process.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from domains import hostdev
from labhost import NIC, NIC_DRIVER, UNSET, VFIO, check, driver, drivers, say

from pyhostdev import DomainDef, Host, HostdevManager, HostRoot, PCIDeviceAddress
from pyhostdev.errors import HostdevError
from pyhostdev.util.sysfs_writer import ForkedWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.util.sysfs_writer import SysfsWriter

SOAK = os.environ.get("LAB_SOAK") == "1"
PATIENCE = float(os.environ.get("LAB_PATIENCE", "1"))
SLACK = 3  # what a figure may exceed its goal by, here where others use the processors too
SEED = int(os.environ.get("LAB_SEED") or 0) or random.SystemRandom().randrange(1, 1 << 32)

CARD = [PCIDeviceAddress.parse(address) for address in NIC]
SPLIT = "".join(
    hostdev(address, assigned="yes", function=number) if number in (0, 3) else hostdev(address, assigned="no")
    for number, address in enumerate(NIC)
)
HOME = dict.fromkeys(NIC, (NIC_DRIVER, UNSET))
TAKEN = dict.fromkeys(NIC, (VFIO, VFIO))


logging.getLogger("pyhostdev").addHandler(logging.NullHandler())  # what failed on purpose needs no line


def rounds(short: int, soak: int) -> int:
    """Return how many rounds this run does."""
    return soak if SOAK else short


def dice(step: str) -> random.Random:
    """Return the random numbers of a step; the seed is printed, and LAB_SEED repeats a run."""
    say(f"  LAB_SEED={SEED}")
    return random.Random(f"{SEED} {step}")


class Watched:
    """What a manager writes with, and a look at each write after it was answered."""

    def __init__(self, writer: SysfsWriter, written: Callable[[str, bytes, PCIDeviceAddress], None]) -> None:
        self._writer = writer
        self._written = written

    def write(self, path: str, value: bytes, *, device: PCIDeviceAddress) -> None:
        """Write, and report the write."""
        self._writer.write(path, value, device=device)
        self._written(path, value, device)

    def load_module(self, name: str) -> None:
        """As the writer does it."""
        self._writer.load_module(name)

    def is_in_flight(self, device: PCIDeviceAddress) -> bool:
        """As the writer sees it."""
        return self._writer.is_in_flight(device)


def new_manager(
    timeout_s: float = 30.0, written: Callable[[str, bytes, PCIDeviceAddress], None] | None = None
) -> HostdevManager:
    """Return a manager of this host, like that of the command line; ``written`` is called for each of its writes."""
    root = HostRoot("/")
    writer: SysfsWriter = ForkedWriter(
        root, timeout_s=timeout_s, inflight_dir=os.path.join(root.state_dir, "in-flight")
    )
    return HostdevManager(Host(root, writer=writer if written is None else Watched(writer, written)))


def definition(name: str, hostdevs: str = SPLIT) -> DomainDef:
    """Return a domain that has the card split up, or other host devices."""
    xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
    <os><type arch='x86_64' machine='pc'>hvm</type></os>
    <devices>{hostdevs}</devices></domain>"""
    return DomainDef.parse(xml.encode())


class Outcome(NamedTuple):
    """The result of a child: its error's class and sentence, or the returned value; None for both if it was killed."""

    error: str | None
    text: str
    value: Any
    seconds: float

    @property
    def was_killed(self) -> bool:
        """True if the child had no time to report a result."""
        return self.error == "killed"


class Child:
    """A forked process that does one thing and reports the result, unless it is killed first."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.began = time.monotonic()
        self._words, mouth = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _live(action, mouth)
        os.close(mouth)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def result(self, timeout_s: float = 60) -> Outcome:
        """
        Wait until it has ended.

        Raises:
            AssertionError: it did not within the time; it is killed then, and not waited for.
        """
        deadline = time.monotonic() + timeout_s * PATIENCE
        text = b""
        while select.select([self._words], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(self._words, 65536)
            if not piece:
                return self._buried(text)
            text += piece
        self.kill()
        raise AssertionError(f"process {self.pid} did not end within {timeout_s:g} s")

    def _buried(self, text: bytes) -> Outcome:
        seconds = time.monotonic() - self.began
        os.close(self._words)
        os.waitpid(self.pid, 0)
        if not text:
            return Outcome("killed", "", None, seconds)
        error, words, value, own_seconds = json.loads(text)
        return Outcome(error, words, value, own_seconds)


def _live(action: Callable[[], Any], mouth: int) -> None:
    began = time.monotonic()
    error, text, value = None, "", None
    try:
        value = action()
    except BaseException as err:
        error, text = type(err).__name__, str(err)
        if not isinstance(err, HostdevError):
            text = f"{text} ({_place(err)})"
    with suppress(BaseException):
        os.write(mouth, json.dumps([error, text, value, time.monotonic() - began]).encode())
    os._exit(0)


def _place(err: BaseException) -> str:
    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def prepare(domain: DomainDef, timeout_s: float = 30.0) -> None:
    """Plan and prepare, as the verb does."""
    manager = new_manager(timeout_s)
    manager.prepare(manager.host.plan(domain))


def release(owner: str, timeout_s: float = 30.0, *, guest_ended: bool = False) -> None:
    """Release, as the verb does, or as ``start`` does when its guest has ended."""
    new_manager(timeout_s).release(owner, guest_ended=guest_ended)


def release_blindly(owner: str, timeout_s: float = 30.0) -> None:
    """Release with a writer that cannot ask the kernel whether a group is open, so that an unbind may get stuck."""
    new_manager(timeout_s, written=lambda *_: None).release(owner)


def recover(*, include_prepared: bool = False, timeout_s: float = 30.0) -> list[list[Any]]:
    """Recover, and return each record's outcome with whether it is done."""
    found = new_manager().recover(include_prepared=include_prepared, timeout_s=timeout_s)
    return [[item.what, item.owner, item.outcome, item.message, item.is_done] for item in found]


def done(action: Callable[[], Any], timeout_s: float = 60) -> Outcome:
    """
    Run something in a child to its end.

    Raises:
        AssertionError: it failed.
    """
    outcome = Child(action).result(timeout_s)
    assert outcome.error is None, f"{outcome.error}: {outcome.text}"
    return outcome


def recovered(*, include_prepared: bool = False) -> list[list[Any]]:
    """
    Recover in a process of its own, and return the outcomes.

    Raises:
        AssertionError: a record is not done with.
    """
    found: list[list[Any]] = done(lambda: recover(include_prepared=include_prepared)).value
    assert all(item[-1] for item in found), f"not restored: {found}"
    return found


def owners() -> dict[str, str | None]:
    """Return the active list."""
    return {str(device.address): device.owner for device in new_manager().status().active}


def books() -> tuple[list[Any], list[Any], list[Any]]:
    """Return active list, inactive list and problems."""
    status = new_manager().status()
    return list(status.active), list(status.inactive), list(status.problems)


def assert_home() -> None:
    """
    Make sure that all four functions are on their driver without an override, and no record is left.

    Raises:
        AssertionError: they are not.
    """
    assert drivers(NIC) == HOME, f"not restored: {drivers(NIC)}"
    assert books() == ([], [], []), f"records are left: {books()}"


def on_vfio() -> int:
    """Count the functions that are on vfio-pci, by their driver link, which can always be read."""
    return sum(driver(address) == VFIO for address in NIC)


@contextmanager
def stopwatch(figures: list[float]) -> Iterator[None]:
    """Append how long the block took, in seconds."""
    began = time.monotonic()
    yield
    figures.append(time.monotonic() - began)


def spread(figures: list[float]) -> str:
    """Return median and maximum of some seconds, for a reader."""
    if not figures:
        return "-"
    ordered = sorted(figures)
    return f"median {ordered[len(ordered) // 2]:.2f} s, longest {ordered[-1]:.2f} s"


def memory_kib() -> tuple[int, int]:
    """Return what this process has reserved for data, and how much of all its memory is resident."""
    text = Path("/proc/self/status").read_text()
    data, resident = (int(text.partition(f"{name}:")[2].split()[0]) for name in ("VmData", "VmRSS"))
    return data, resident


def open_files() -> int:
    """Count this process' descriptors; the one that counts is among them."""
    return len(os.listdir("/proc/self/fd"))


def check_below(limit: float, figure: float, what: str) -> None:
    """
    Compare a figure with its goal and the slack, and say what it is.

    Raises:
        AssertionError: it is above.
    """
    within = figure <= limit * SLACK * PATIENCE
    check(True, within, f"{what}: {figure:.2f} s (goal {limit:g} s)")
