# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A scan that is refreshed: after each change of the real bus it equals a full scan, and reads only what changed.

The step trusts the kernel that runs, whether it is in the table or not: that it passes is what the table means.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from labhost import NIC, NIC_DRIVER, NVME, PCI, check, iommu_group, say

from pyhostdev.util import pciscan, scanproof, scanrefresh
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyhostdev.util.pciscan import Snapshot

ROOT = HostRoot("/")
SETTLED_S = scanproof.SETTLE_NS / 1e9 + 0.5
ROUNDS = 5


class Follower:
    """A scan that is refreshed after each change, at once and when the change is old."""

    def __init__(self) -> None:
        time.sleep(SETTLED_S)
        self.seen: Snapshot = scanrefresh.scan(ROOT)
        check(True, self.seen.proof is not None, "the scan can be proven later")

    def follow(self, what: str, *changes: tuple[Path, str]) -> None:
        """Make changes, and compare twice."""
        for path, text in changes:
            path.write_text(text)
        for when in ("at once", "later"):
            self.seen = scanrefresh.refresh(ROOT, self.seen)
            check(list(pciscan.scan(ROOT)), list(self.seen), f"{what}, {when}: a refresh equals a scan")
            time.sleep(SETTLED_S)
        check(True, self.seen is scanrefresh.refresh(ROOT, self.seen), f"{what}: then nothing is read")


def cost(work: Callable[[], object]) -> float:
    """Return the least CPU seconds of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def refresh_equals_a_scan() -> None:
    """Unbind, bind, remove, rescan and VFs: a refresh sees each of them, and costs little where nothing changed."""
    usual, scanproof.is_proven = scanproof.is_proven, lambda release: True
    try:
        follow_changes()
    finally:
        scanproof.is_proven = usual
    release = os.uname().release
    say(f"  Linux {release}: {'in' if usual(release) else 'NOT YET in'} the table of proven kernels")


def follow_changes() -> None:
    """Make every kind of change once."""
    follower, driver = Follower(), PCI / "drivers" / NIC_DRIVER
    follower.follow("nothing")
    follower.follow("unbind", (driver / "unbind", NIC[1]))
    follower.follow("bind", (driver / "bind", NIC[1]))
    follower.follow("override", (PCI / "devices" / NIC[1] / "driver_override", "vfio-pci"))
    follower.follow("no override", (PCI / "devices" / NIC[1] / "driver_override", "\n"))
    follower.follow("rebind", (driver / "unbind", NIC[0]), (driver / "bind", NIC[0]))
    follower.follow("remove", (PCI / "devices" / NIC[3] / "remove", "1"))
    follower.follow("rescan", (PCI / "rescan", "1"))
    follower.follow("remove, rescan", (PCI / "devices" / NIC[3] / "remove", "1"), (PCI / "rescan", "1"))
    say(f"  the card's functions are in IOMMU groups {', '.join(str(iommu_group(address)) for address in NIC)}")
    follow_vfs(follower)
    scan, refresh = cost(lambda: pciscan.scan(ROOT)), cost(lambda: scanrefresh.refresh(ROOT, follower.seen))
    say(f"  {len(follower.seen)} functions: a refresh without changes costs {refresh / scan:.4f} of a scan")


def follow_vfs(follower: Follower) -> None:
    """Take a PF its VFs and give them back, where the topology has one."""
    for address in NVME:
        pf = PCI / "devices" / address
        if (pf / "sriov_numvfs").exists():
            count = (pf / "sriov_numvfs").read_text().strip()
            wanted = count if count != "0" else "2"
            follower.follow("no VFs", (pf / "sriov_numvfs", "0"))
            follower.follow("VFs", (pf / "sriov_numvfs", wanted))
            follower.follow("no VFs again", (pf / "sriov_numvfs", "0"))
            if count != "0":
                follower.follow("VFs as before", (pf / "sriov_numvfs", count))
            return
