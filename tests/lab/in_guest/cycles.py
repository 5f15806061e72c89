# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Many times the same: detach and reattach in one process, without a mismatch and without growing.
"""

from __future__ import annotations

import gc
from statistics import median

import workers
from labhost import NIC, NIC_DRIVER, UNSET, VFIO, check, drivers, say
from workers import rounds

from pyhostdev import HostdevManager, PCIDeviceAddress

WARM_UP = 10  # cycles after which nothing new is loaded
LOOKS = 8  # how often memory is looked at after that
GROWTH_KIB = 4096  # in all: a table that doubles, an arena of Python's allocator, which is 1 MiB, come once
LATE_GROWTH_KIB = 256  # from one half to the other, but for such a step: what each cycle adds up to


def _cycle(manager: HostdevManager, address: str) -> None:
    device = PCIDeviceAddress.parse(address)
    manager.nodedev_detach(device)
    assert drivers([address]) == {address: (VFIO, VFIO)}, drivers([address])
    assert manager.status().inactive == [device], manager.status()
    manager.nodedev_reattach(device)
    assert drivers([address]) == {address: (NIC_DRIVER, UNSET)}, drivers([address])
    assert manager.status().inactive == [], manager.status()


def _cycles(total: int) -> tuple[list[float], int, list[tuple[int, int]]]:
    """Return what each cycle took, how many more files are open than after the warm-up, and memory from then on."""
    manager = workers.new_manager()
    took: list[float] = []
    files = 0
    memory: list[tuple[int, int]] = []
    looks = {WARM_UP + (total - WARM_UP) * number // LOOKS for number in range(LOOKS)}
    for number in range(total):
        if number == WARM_UP:
            files = workers.open_files()
        if number in looks:
            memory.append(_memory())
        with workers.stopwatch(took):
            _cycle(manager, NIC[number % len(NIC)])
    return took, workers.open_files() - files, [*memory, _memory()]


def _memory() -> tuple[int, int]:
    gc.collect()  # what waits for a collection is not what is kept
    return workers.memory_kib()


def detach_and_reattach() -> None:
    """Detach and reattach repeatedly: each step as expected, with constant files and memory."""
    total = rounds(20, 1000)
    took, files, memory = workers.done(lambda: _cycles(total), 60 + total).value
    data, resident = ([kib - numbers[0] for kib in numbers] for numbers in zip(*memory, strict=True))
    say(f"  a cycle takes {workers.spread(took)}; in {LOOKS} looks reserved memory grew by {data} KiB, what")
    say(f"  is resident of it by {resident} KiB")
    check(0, files, "no descriptor is left open")
    for what, kib in (("reserved", data), ("resident", resident)):
        check(True, kib[-1] <= GROWTH_KIB, f"{what} memory grew by no more than {GROWTH_KIB} KiB")
        late = median(kib[LOOKS // 2 :]) - median(kib[1 : LOOKS // 2 + 1])
        check(True, late <= LATE_GROWTH_KIB, f"and from half to half by no more than {LATE_GROWTH_KIB} KiB")
    workers.assert_home()
    check(total, len(took), f"{total} cycles without a mismatch")
