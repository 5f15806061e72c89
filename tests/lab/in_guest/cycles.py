# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Many times the same: detach and reattach in one process, without a mismatch and without growing.
"""

from __future__ import annotations

import workers
from labhost import NIC, NIC_DRIVER, UNSET, VFIO, check, drivers, say
from workers import rounds

from pyhostdev import HostdevManager, PCIDeviceAddress

WARM_UP = 10  # cycles after which nothing new is loaded
LOOKS = 8  # how often memory is looked at after that
GROWTH_KIB = 1024
LATE_GROWTH_KIB = 256  # in the second half: what grows with every cycle does not stop growing


def _cycle(manager: HostdevManager, address: str) -> None:
    device = PCIDeviceAddress.parse(address)
    manager.nodedev_detach(device)
    assert drivers([address]) == {address: (VFIO, VFIO)}, drivers([address])
    assert manager.status().inactive == [device], manager.status()
    manager.nodedev_reattach(device)
    assert drivers([address]) == {address: (NIC_DRIVER, UNSET)}, drivers([address])
    assert manager.status().inactive == [], manager.status()


def _cycles(total: int) -> tuple[list[float], int, list[int]]:
    """Return what each cycle took, by how many open files grew after the warm-up, and memory (KiB) from then on."""
    manager = workers.new_manager()
    took: list[float] = []
    files = 0
    memory: list[int] = []
    looks = {WARM_UP + (total - WARM_UP) * number // LOOKS for number in range(LOOKS)}
    for number in range(total):
        if number == WARM_UP:
            files = workers.open_files()
        if number in looks:
            memory.append(workers.resident_kib())
        with workers.stopwatch(took):
            _cycle(manager, NIC[number % len(NIC)])
    return took, workers.open_files() - files, [*memory, workers.resident_kib()]


def detach_and_reattach() -> None:
    """Detach and reattach again and again: always as told, with files and memory flat."""
    total = rounds(20, 1000)
    took, files, memory = workers.done(lambda: _cycles(total), 60 + total).value
    growth = [kib - memory[0] for kib in memory]
    say(f"  a cycle takes {workers.spread(took)}; memory grew by {growth} KiB, looked at {LOOKS} times")
    check(0, files, "no descriptor is left open")
    check(True, growth[-1] <= GROWTH_KIB, f"memory grew by less than {GROWTH_KIB} KiB")
    late = growth[-1] - growth[LOOKS // 2]
    check(True, late <= LATE_GROWTH_KIB, f"and in the second half by less than {LATE_GROWTH_KIB} KiB")
    workers.assert_home()
    check(total, len(took), f"{total} cycles without a mismatch")
