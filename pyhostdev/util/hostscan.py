# SPDX-License-Identifier: LGPL-2.1-or-later
"""
All PCI functions of a host at one moment, and the questions people ask about them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from pyhostdev.util import pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virpci import PCIDevice


class Scan(Sequence[PCIDevice]):
    """
    All PCI functions of a host at one moment, in address order; objects are made when asked for.

    ``groups`` maps an IOMMU group's number to its functions, ``slots`` a function-0 address to the functions
    there; ``vanished`` counts functions that went away while the scan ran.
    """

    def __init__(self, root: HostRoot, snapshot: pciscan.Snapshot) -> None:
        self.root = root
        self._snapshot = snapshot
        self._devices: dict[int, PCIDevice] = {}
        self._maps: dict[str, dict[Any, list[PCIDevice]]] = {}

    @property
    def vanished(self) -> int:
        """How many listed functions were gone when their attributes were read."""
        return self._snapshot.vanished

    def __len__(self) -> int:
        return len(self._snapshot)

    @overload
    def __getitem__(self, index: int) -> PCIDevice: ...
    @overload
    def __getitem__(self, index: slice) -> list[PCIDevice]: ...
    def __getitem__(self, index: int | slice) -> PCIDevice | list[PCIDevice]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if position not in self._devices:
            self._devices[position] = PCIDevice(self.root, self._snapshot[position])
        return self._devices[position]

    def __iter__(self) -> Iterator[PCIDevice]:
        return (self[i] for i in range(len(self)))

    def find(self, address: PCIDeviceAddress) -> PCIDevice | None:
        """Return the function at an address, None when the host had none."""
        position = bisect_left(self, address, key=lambda dev: dev.address)
        if position < len(self) and self[position].address == address:
            return self[position]
        return None

    def _map(self, name: str, key: Callable[[PCIDevice], Any]) -> dict[Any, list[PCIDevice]]:
        if name not in self._maps:
            table: dict[Any, list[PCIDevice]] = {}
            for dev in self:
                table.setdefault(key(dev), []).append(dev)
            table.pop(None, None)
            self._maps[name] = table
        return self._maps[name]

    @property
    def groups(self) -> dict[int, list[PCIDevice]]:
        """IOMMU group number to its PCI functions, both in order."""
        return self._map("groups", lambda dev: dev.iommu_group)

    @property
    def slots(self) -> dict[tuple[int, int, int], list[PCIDevice]]:
        """(domain, bus, slot) to its functions, VFs left out."""
        return self._map(
            "slots", lambda dev: None if dev.is_virtual_function else dev.address[:3]
        )

    def is_multifunction(self, dev: PCIDevice) -> bool | None:
        """
        Tell what ``PCIDevice.is_multifunction`` tells, reading no configuration space where it need not.

        A function that is alone in its slot and on its bus shares its device with nobody.
        """
        if dev.is_virtual_function:
            return False
        alone = len(self.slots[dev.address[:3]]) == 1
        if alone and not (self._shares_bus(dev) and dev.is_ari):
            return False
        return dev.is_multifunction()

    def _shares_bus(self, dev: PCIDevice) -> bool:
        buses = self._map(
            "buses", lambda other: None if other.is_virtual_function else other.address[:2]
        )
        return len(buses[dev.address[:2]]) > 1
