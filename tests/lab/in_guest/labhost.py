# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the lab's scripts share: a look at the host's PCI devices, the command line under test, checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PCI = Path("/sys/bus/pci")
NIC = os.environ["LAB_NIC"].split()
NVME = os.environ["LAB_NVME"].split()
KERNEL = Path(os.environ["LAB_KERNEL"])
NIC_DRIVER = "e1000e"
VFIO = "vfio-pci"
UNSET = "(null)"


def say(text: str) -> None:
    """Print a line for the reader of the lab's output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def link_name(path: Path) -> str | None:
    """Return the last component of a link's target; None without a link."""
    try:
        return path.readlink().name
    except FileNotFoundError:
        return None


def children(pid: int) -> list[int]:
    """Return the children of a process; not every kernel lists them for us (CONFIG_PROC_CHILDREN)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = status.read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found.append(int(status.parent.name))
    return found


def driver(address: str) -> str | None:
    """Return the name of the driver a function is bound to."""
    return link_name(PCI / "devices" / address / "driver")


def override(address: str) -> str:
    """Return what the kernel prints as the function's driver_override."""
    return (PCI / "devices" / address / "driver_override").read_text().strip()


def iommu_group(address: str) -> str | None:
    """Return the number of a function's IOMMU group."""
    return link_name(PCI / "devices" / address / "iommu_group")


def drivers(addresses: list[str]) -> dict[str, tuple[str | None, str]]:
    """Return driver and override of some functions."""
    return {address: (driver(address), override(address)) for address in addresses}


def all_drivers() -> dict[str, tuple[str | None, str]]:
    """Return driver and override of every function of the host."""
    return drivers(sorted(path.name for path in (PCI / "devices").iterdir()))


def traces() -> dict[str, tuple[object, ...]]:
    """
    Return what any write would have changed: driver, override, incarnation and interfaces of every function.

    A function that left its driver and came back has new interfaces.
    """
    return {address: (*pair, *_identity(PCI / "devices" / address)) for address, pair in all_drivers().items()}


def _identity(device: Path) -> tuple[object, ...]:
    interfaces = sorted(path.read_text() for path in device.glob("net/*/ifindex"))
    return device.stat().st_ino, *interfaces


def show(when: str, addresses: list[str]) -> None:
    """Print the drivers of some functions, and the processes that hold them through VFIO."""
    words = (f"{address}={name or '-'}" for address, (name, _) in drivers(addresses).items())
    nodes = sorted(path.name for path in Path("/dev/vfio").iterdir())
    say(f"  {when}: {' '.join(words)} (/dev/vfio: {' '.join(nodes)})")


def check(expected: object, actual: object, what: str) -> None:
    """
    Compare, and say so.

    Raises:
        AssertionError: they differ.
    """
    if expected != actual:
        raise AssertionError(f"{what}: expected {expected!r}, found {actual!r}")
    say(f"  ok: {what}")


def command(*words: str | Path) -> list[str]:
    """Return the command line that runs pyhostdev as it is installed for us."""
    return [sys.executable, "-m", "pyhostdev", *map(str, words)]


def pyhostdev(*words: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end, and check its exit code."""
    started = time.monotonic()
    done = subprocess.run(command(*words), capture_output=True, text=True)
    say(f"  $ pyhostdev {' '.join(map(str, words))}  [{done.returncode}, {time.monotonic() - started:.1f} s]")
    for line in done.stderr.splitlines():
        say(f"    {line}")
    check(expect, done.returncode, f"exit code of '{words[0]}'")
    return done


def pyhostdev_json(*words: str | Path, expect: int = 0) -> Any:
    """Run a verb with --json and return what it printed."""
    return json.loads(pyhostdev(*words, "--json", expect=expect).stdout)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """
    Wait until something is so.

    Raises:
        AssertionError: it was not within the time.
    """
    deadline = time.monotonic() + timeout_s * float(os.environ.get("LAB_PATIENCE", "1"))
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.2)


def run_all(steps: list[Callable[[], None]], clean_up: Callable[[], None] = lambda: None) -> int:
    """
    Run the steps, or those in our arguments, each from the same state of the host; return an exit status.

    A failed step is reported and cleaned up, and the others still run: one boot reports everything.
    """
    home = all_drivers()
    failed = []
    chosen = [step for step in steps if not sys.argv[1:] or step.__name__ in sys.argv[1:]]
    for step in chosen:
        started = time.monotonic()
        say(f"== {(step.__doc__ or step.__name__).strip()}")
        try:
            step()
            check(home, all_drivers(), "drivers and overrides of the whole host are as at the beginning")
        except Exception:
            failed.append(step.__name__)
            say(traceback.format_exc())
            say(f"  FAILED {step.__name__}")
            clean_up()
        say(f"  [{time.monotonic() - started:.1f} s]")
    say(f"== {len(chosen) - len(failed)} of {len(chosen)} steps passed{''.join(f', {name} failed' for name in failed)}")
    return 1 if failed else 0
