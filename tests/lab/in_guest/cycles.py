# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Many times the same: detach and reattach in one process, without a mismatch and without growing.
"""

from __future__ import annotations

import workers
from labhost import NIC, NIC_DRIVER, UNSET, VFIO, check, drivers, say
from workers import rounds

from pyhostdev import HostdevManager, PCIDeviceAddress

WARM_UP = 10  # cycles after which nothing new is loaded or grown
GROWTH_KIB = 1024


def _cycle(manager: HostdevManager, address: str) -> None:
    device = PCIDeviceAddress.parse(address)
    manager.nodedev_detach(device)
    assert drivers([address]) == {address: (VFIO, VFIO)}, drivers([address])
    assert manager.status().inactive == [device], manager.status()
    manager.nodedev_reattach(device)
    assert drivers([address]) == {address: (NIC_DRIVER, UNSET)}, drivers([address])
    assert manager.status().inactive == [], manager.status()


def _cycles(total: int) -> tuple[list[float], int, int]:
    """Return what each cycle took, and by how much files and memory (KiB) grew after the warm-up."""
    manager = workers.new_manager()
    took: list[float] = []
    files = memory = 0
    for number in range(total):
        if number == WARM_UP:
            files, memory = workers.open_files(), workers.resident_kib()
        with workers.stopwatch(took):
            _cycle(manager, NIC[number % len(NIC)])
    return took, workers.open_files() - files, workers.resident_kib() - memory


def detach_and_reattach() -> None:
    """Detach and reattach again and again: always as told, with files and memory flat."""
    total = rounds(20, 1000)
    took, files, memory = workers.done(lambda: _cycles(total), 60 + total).value
    say(f"  a cycle takes {workers.spread(took)}; memory grew by {memory} KiB")
    check(0, files, "no descriptor is left open")
    check(True, memory <= GROWTH_KIB, f"memory grew by less than {GROWTH_KIB} KiB")
    workers.assert_home()
    check(total, len(took), f"{total} cycles without a mismatch")
