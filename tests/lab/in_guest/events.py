# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A monitor on the kernel's own events: VFs that come and go, drivers, removal and rescan.

After each change, once the kernel is quiet, the monitor's view equals a full scan.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from labhost import NIC, NIC_DRIVER, NVME, PCI, check, run_all, say

from pyhostdev.util import events, pciscan
from pyhostdev.util.events import PCIMonitor
from pyhostdev.util.hostquery import HostFunctions
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan

ROOT = HostRoot("/")
INDEXES = ("groups", "slots", "buses", "drivers", "virtual_functions", "identities")
QUIET_S = 1.0


def view(functions: HostFunctions) -> dict[str, Any]:
    """Return all indexes, as texts."""
    return {
        name: {key: [(str(dev.address), dev.driver) for dev in devs] for key, devs in getattr(functions, name).items()}
        for name in INDEXES
    }


def write(path: Path, text: str) -> None:
    """Write an attribute as the kernel wants it: at once."""
    path.write_text(text)


def follow(monitor: PCIMonitor, what: str, *changes: tuple[Path, str]) -> list[str]:
    """Make changes, wait until the kernel is quiet, compare; return the received actions."""
    for path, text in changes:
        write(path, text)
    actions: list[str] = []
    deadline = time.monotonic() + 60
    while (heard := monitor.poll(QUIET_S)) and time.monotonic() < deadline:
        actions += [event.action for event in heard]
    check(view(Scan(ROOT, pciscan.scan(ROOT))), view(monitor.functions), f"{what}: the view equals a scan")
    say(f"  {what}: {', '.join(actions)}")
    return actions


def step_drivers() -> None:
    """An unbind and a bind are received and followed."""
    with PCIMonitor(ROOT) as monitor:
        driver = PCI / "drivers" / NIC_DRIVER
        check(["unbind"], follow(monitor, "unbind", (driver / "unbind", NIC[1])), "what was heard")
        check(["bind"], follow(monitor, "bind", (driver / "bind", NIC[1])), "what was heard")
        check(0, monitor.rescans, "rescans")


def step_removal() -> None:
    """A function that is removed is gone; a rescan brings it back as another."""
    with PCIMonitor(ROOT) as monitor:
        actions = follow(monitor, "remove", (PCI / "devices" / NIC[3] / "remove", "1"))
        check(True, "remove" in actions, "the removal was heard")
        actions = follow(monitor, "rescan", (PCI / "rescan", "1"))
        check({"add", "bind"}, set(actions) & {"add", "bind"}, "what was heard")


def step_virtual_functions() -> None:
    """VFs come with an event each before they are linked to their PF; in the end all are known by it."""
    pf = next(PCI / "devices" / address for address in NVME if (PCI / "devices" / address / "sriov_numvfs").exists())
    count = int((pf / "sriov_numvfs").read_text())
    with PCIMonitor(ROOT) as monitor:
        follow(monitor, "no VFs", (pf / "sriov_numvfs", "0"))
        check(0, sum(len(vfs) for vfs in monitor.functions.virtual_functions.values()), "VFs known")
        write(pf / "sriov_drivers_autoprobe", "0")
        follow(monitor, "VFs without drivers", (pf / "sriov_numvfs", str(count)))
        check(count, sum(len(vfs) for vfs in monitor.functions.virtual_functions.values()), "VFs known")
        write(pf / "sriov_drivers_autoprobe", "1")
        check(0, monitor.rescans, "rescans")


def step_overflow() -> None:
    """More events than the socket holds are lost, and that is noticed: everything is read again."""
    usual, events._RECEIVE_BUFFER = events._RECEIVE_BUFFER, 4096
    monitor = PCIMonitor(ROOT)
    events._RECEIVE_BUFFER = usual
    with monitor:
        noise = [(PCI / "devices" / address / "uevent", "change") for address in NIC] * 50
        unbind = (PCI / "drivers" / NIC_DRIVER / "unbind", NIC[0])
        heard = follow(monitor, "a storm", *noise, unbind)
        check(True, len(heard) <= len(noise) and monitor.rescans > 0, "events were lost, and a rescan was made")
        follow(monitor, "after it", (PCI / "drivers" / NIC_DRIVER / "bind", NIC[0]))


def step_cost() -> None:
    """What an event costs beside a function's part of a scan."""
    with PCIMonitor(ROOT) as monitor:
        for _ in range(200):
            write(PCI / "devices" / NIC[0] / "uevent", "change")
        begin = time.process_time()
        count = 0
        while heard := monitor.poll():
            count += len(heard)
        each = (time.process_time() - begin) / count
        check(200, count, "events heard")
        say(f"  an event {each * 1e6:.0f} us CPU in batches")
        begin = time.process_time()
        for _ in range(20):
            snapshot = pciscan.scan(ROOT)
        scan = (time.process_time() - begin) / 20 / len(snapshot)
        say(f"  a function of a scan {scan * 1e6:.0f} us CPU, of {len(snapshot)} functions")
        begin = time.process_time()
        for _ in range(200):
            monitor.refresh([monitor.functions[-1].address])
        say(f"  a refresh {(time.process_time() - begin) / 200 * 1e6:.0f} us CPU")


if __name__ == "__main__":
    sys.exit(run_all([step_drivers, step_removal, step_virtual_functions, step_overflow, step_cost]))
