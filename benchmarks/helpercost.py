# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cost of starting a write helper, for a small and a large importing process."""

from __future__ import annotations

import mmap
import statistics
import time
from pathlib import Path

from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.sysfs_writer import ForkedWriter

LARGE = 1 << 30
WRITES = 9
TURNS = 5


def write_costs(top: Path) -> list[float]:
    """Return the caller's CPU seconds for some writes, without the helper's own."""
    attribute = top / "attribute"
    attribute.write_bytes(b"")
    writer = ForkedWriter(HostRoot(top))
    taken = []
    for _ in range(WRITES):
        begin = time.thread_time()
        writer.write(str(attribute), b"x", device=PCIDeviceAddress(0, 1, 0, 0))
        taken.append(time.thread_time() - begin)
    assert b"x" == attribute.read_bytes()
    return taken


def large_write_costs(top: Path) -> list[float]:
    """Return the same for this process with a gigabyte in use."""
    with mmap.mmap(-1, LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)  # the many page tables of an ordinary heap
        for offset in range(0, LARGE, mmap.PAGESIZE):
            memory[offset] = 1
        return write_costs(top)


def helper_ratio(top: Path) -> float:
    """Return the cost of a write in a process of 1 GB over that in a small one, measured in turns."""
    small, large = [], []
    for _ in range(TURNS):
        small += write_costs(top)
        large += large_write_costs(top)
    return statistics.median(large) / statistics.median(small)
