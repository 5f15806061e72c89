# SPDX-License-Identifier: LGPL-2.1-or-later
"""What starting a write helper costs an importing process, small and large."""

from __future__ import annotations

import mmap
import statistics
import time
from pathlib import Path

from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.sysfs_writer import ForkedWriter

LARGE = 1 << 30
WRITES = 41


def write_cost(top: Path) -> float:
    """Return the median of seconds a write takes, the caller's page faults afterwards included."""
    attribute = top / "attribute"
    attribute.write_bytes(b"")
    writer = ForkedWriter(HostRoot(top))
    taken = []
    for _ in range(WRITES):
        begin = time.perf_counter()
        writer.write(str(attribute), b"x", device=PCIDeviceAddress(0, 1, 0, 0))
        taken.append(time.perf_counter() - begin)
    assert b"x" == attribute.read_bytes()
    return statistics.median(taken)


def helper_ratio(top: Path) -> float:
    """Return the cost of a write in this process with a gigabyte in use, over that without."""
    small = write_cost(top)
    with mmap.mmap(-1, LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)  # the many page tables of an ordinary heap
        for offset in range(0, LARGE, mmap.PAGESIZE):
            memory[offset] = 1
        return write_cost(top) / small
