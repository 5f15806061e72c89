# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What reading all functions costs on a real sysfs: our scan, its floor, and others, in one run.

As a program: ``scale.py FLOOR_LIBRARY``; prints CPU times as multiples of the scan's, and leaves them in
LAB_OUT. Seconds mean little here: the emulated clock runs as the machine below it has time.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import peers
from floor import Floor

from pyhostdev.util import pciscan, pciscan_ref, scanproof, scanrefresh
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan

ROOT = HostRoot("/")
MAIN = f"import sys; sys.path[:] = {sys.path!r}; from pyhostdev.tools.main import main; sys.exit(main())"


def objects() -> None:
    """Scan and make every object, and the groups of them."""
    scan = Scan(ROOT, pciscan.scan(ROOT))
    list(scan)
    dict(scan.groups.items())


def lspci() -> float:
    """Run lspci with drivers."""
    command = peers.lspci("/sys", "-nk")
    assert command is not None
    return peers.run(command)


def listing(*options: str) -> float:
    """Run pyhostdev list."""
    return peers.run([sys.executable, "-S", "-c", MAIN, "list", *options])


def in_turns(rounds: int, works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Run functions in turns; return medians of CPU seconds. One that returns a float measured itself."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for name in [*works] * rounds:
        gc.collect()
        begin = time.process_time()
        told = works[name]()
        taken[name].append(told if isinstance(told, float) else time.process_time() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    """Compare with the reference, measure, report."""
    floor = Floor.load(Path(sys.argv[1]))
    begin = time.process_time()
    snapshot = pciscan.scan(ROOT)
    cold = time.process_time() - begin
    assert pciscan_ref.scan(ROOT) == list(snapshot), "the reference sees another host"
    scanrefresh.scan(ROOT)  # from now on, the directories' times follow their entries
    time.sleep(1.5 * scanproof.SETTLE_NS / 1e9)
    kept = scanrefresh.scan(ROOT)
    assert scanrefresh.refresh(ROOT, kept) is kept, "the host changes, or this kernel is not one of those proven"
    quick = {
        "scan": lambda: pciscan.scan(ROOT),
        "refresh, nothing changed": lambda: scanrefresh.refresh(ROOT, kept),
        "bare system calls, f4": lambda: floor.f4(ROOT.pci_bus),
        "bare system calls, fpm": lambda: floor.fpm(ROOT.pci_bus),
        "all objects and groups": objects,
    }
    processes = {"list": listing, "list --json": lambda: listing("--json"), "lspci -nk": lspci}
    slow = {
        "plain Python": lambda: peers.plain_python("/sys"),
        "pyudev, same facts": peers.pyudev_facts,
    }
    seconds = {**in_turns(9, quick), "scan, first time": cold, **in_turns(3, processes), **in_turns(1, slow)}
    count = len(snapshot)
    vfs = sum(record.physfn is not None for record in snapshot)
    print(f"scale: {count} functions, {vfs} VFs, {len(snapshot.groups)} IOMMU groups")
    times = {name: value / seconds["scan"] for name, value in seconds.items()}
    for name, ratio in times.items():
        print(f"scale: {name:24} {ratio:8.2f} times the scan")
    facts = {"functions": count, "vfs": vfs, "groups": len(snapshot.groups), "times": times}
    Path(os.environ["LAB_OUT"], "scale.json").write_text(json.dumps(facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
