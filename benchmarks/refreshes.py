# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a refresh costs, beside the scan that it stands for: after nothing, a driver's change, and new VFs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
from measure import AS_SYSFS, SIZE, Goal, in_turns

from pyhostdev.testing.generator import make_tree
from pyhostdev.util import pciscan, scanproof, scanrefresh
from pyhostdev.util.hostroot import HostRoot

PLUGGED = 126  # VFs of one device
REFRESHES = 5
NOTHING, DRIVER, CAME = "refresh, nothing changed", "refresh, one driver changed", "refresh, VFs came"
SCAN = "scan"


def costs(top: Path, size: int, rounds: int) -> dict[str, float]:
    """Return CPU seconds by what had changed; ``SCAN`` is the scan, and lspci -nk as a whole process."""
    make_tree(top / f"refreshed-{size}", size)
    root = HostRoot(top / f"refreshed-{size}")
    directories = [root.pci_devices, root.pci_drivers, root.iommu_groups]
    directories += [root.join(root.pci_drivers, name) for name in os.listdir(root.pci_drivers)]
    _settle(directories)
    old = scanrefresh.scan(root, AS_SYSFS._replace(stamped=True))
    vfs = [record.address for record in old if record.physfn][:PLUGGED]
    links = {root.pci_device(address): os.readlink(root.pci_device(address)) for address in vfs}
    works: dict[str, Any] = {SCAN: lambda: pciscan.scan_with(root, AS_SYSFS)}
    command = peers.lspci(root.join("sys"), "-nk")
    if command is not None:
        works["lspci -nk"] = lambda: peers.run(command)
    unchanged = old.proof
    taken = {**in_turns(rounds, works), NOTHING: _timed(root, old, unchanged)}
    os.utime(root.pci_driver("nvme"))
    taken[DRIVER] = _timed(root, old, unchanged)
    for path in links:
        os.unlink(path)
    _settle(directories)
    without = scanrefresh.refresh(root, old)
    proof = without.proof
    for path, target in links.items():
        os.symlink(target, path)
    taken[CAME] = _timed(root, without, proof)
    return taken


def _settle(directories: list[str]) -> None:
    """Let the directories have changed long ago."""
    then = time.time_ns() - 2 * scanproof.SETTLE_NS
    for path in directories:
        os.utime(path, ns=(then, then))


def _timed(root: HostRoot, seen: pciscan.Snapshot, proof: Any) -> float:
    seen.proof = proof
    begin = time.process_time()
    for _ in range(REFRESHES):
        scanrefresh.refresh(root, seen)
        seen.proof = proof
    return (time.process_time() - begin) / REFRESHES


def goals_of_refresh(taken: dict[str, float]) -> Iterator[Goal]:
    """Compare a refresh with the scan that it stands for."""
    limits = {NOTHING: 0.01, DRIVER: 0.15, CAME: 0.35}
    for name, limit in limits.items():
        yield Goal(f"{name} / scan, {SIZE:,} functions", taken[name] / taken[SCAN], limit)
