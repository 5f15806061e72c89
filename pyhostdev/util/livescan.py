# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A host's PCI functions as they change; the indexes are updated one function at a time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, overload

from pyhostdev.util import pciscan
from pyhostdev.util.hostquery import HostFunctions, Identity
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.pciaddress import PCIDeviceAddress, key_of
from pyhostdev.util.virpci import PCIDevice

K = TypeVar("K")


class LiveIndex(Mapping[K, list[PCIDevice]], Generic[K]):
    """
    Maps a key to its functions in address order; follows their changes.

    Args:
        key_of: returns the key of a function; None leaves the function out.
    """

    __slots__ = ("_devices", "_key_of", "_members")

    def __init__(self, devices: Mapping[int, PCIDevice], key_of: Callable[[PCIDevice], K | None]) -> None:
        self._devices = devices
        self._key_of = key_of
        self._members: dict[K, list[int]] = {}

    def change(self, number: int, before: PCIDevice | None, after: PCIDevice | None) -> None:
        """Apply a change of a function; None stands for an absent function."""
        old = None if before is None else self._key_of(before)
        new = None if after is None else self._key_of(after)
        if old == new:
            return
        if old is not None:
            self._drop(old, number)
        if new is not None:
            insort(self._members.setdefault(new, []), number)

    def _drop(self, key: K, number: int) -> None:
        """Remove a function; a key without functions is removed."""
        members = self._members[key]
        del members[bisect_left(members, number)]
        if not members:
            del self._members[key]

    def __getitem__(self, key: K) -> list[PCIDevice]:
        return [self._devices[number] for number in self._members[key]]

    def __contains__(self, key: object) -> bool:
        return key in self._members

    def __iter__(self) -> Iterator[K]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _slot(dev: PCIDevice) -> tuple[int, int, int] | None:
    return None if dev.is_virtual_function else dev.address[:3]


def _bus(dev: PCIDevice) -> tuple[int, int] | None:
    return None if dev.is_virtual_function else dev.address[:2]


def _identity(dev: PCIDevice) -> Identity:
    return Identity(dev.vendor, dev.device, dev.class_)


_KEYS: dict[str, Callable[[PCIDevice], Any]] = {
    "groups": lambda dev: dev.iommu_group,
    "slots": _slot,
    "buses": _bus,
    "drivers": lambda dev: dev.driver,
    "virtual_functions": lambda dev: dev.physfn,
    "identities": _identity,
}


class LiveScan(HostFunctions):
    """
    The host's PCI functions after the latest change applied to it.

    It offers the queries of a Scan, and no index makes a system call. A changed function becomes a new PCIDevice; an
    object that a caller keeps does not change. Not thread-safe during changes.
    """

    def __init__(self, root: HostRoot, snapshot: pciscan.Snapshot) -> None:
        super().__init__(root)
        self._devices: dict[int, PCIDevice] = {}
        self._order: list[int] = []
        self._indexes: dict[str, LiveIndex[Any]] = {}
        self.replace(snapshot)

    def __repr__(self) -> str:
        return f"<LiveScan of {self.root.path}: {len(self)} functions>"

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> PCIDevice: ...
    @overload
    def __getitem__(self, index: slice) -> list[PCIDevice]: ...
    def __getitem__(self, index: int | slice) -> PCIDevice | list[PCIDevice]:
        if isinstance(index, slice):
            return [self._devices[number] for number in self._order[index]]
        return self._devices[self._order[index]]

    def find(self, address: PCIDeviceAddress | str) -> PCIDevice | None:
        """Return the function at an address, None if the host has none."""
        return self._devices.get(key_of(PCIDeviceAddress.of(address)))

    # Changes

    def replace(self, snapshot: pciscan.Snapshot) -> None:
        """Replace all functions by those of a scan."""
        self._order = list(snapshot.column("key"))
        self._devices = dict(zip(self._order, Scan(self.root, snapshot), strict=True))
        self._indexes.clear()

    def update(self, addresses: Iterable[PCIDeviceAddress], snapshot: pciscan.Snapshot) -> None:
        """
        Apply the current state of some functions.

        Args:
            addresses: the functions that were read.
            snapshot: those of them that exist.
        """
        found = dict(zip(snapshot.column("key"), snapshot, strict=True))
        for address in addresses:
            number = key_of(address)
            record = found.get(number)
            dev = None if record is None else PCIDevice(self.root, address, record, {})
            self._change(number, self._devices.get(number), dev)

    def _change(self, number: int, before: PCIDevice | None, after: PCIDevice | None) -> None:
        if before is None and after is not None:
            insort(self._order, number)
        elif before is not None and after is None:
            del self._order[bisect_left(self._order, number)]
            del self._devices[number]
        if after is not None:
            self._devices[number] = after
        for index in self._indexes.values():
            index.change(number, before, after)

    def _index(self, name: str) -> LiveIndex[Any]:
        index = self._indexes.get(name)
        if index is None:
            index = LiveIndex(self._devices, _KEYS[name])
            for number in self._order:
                index.change(number, None, self._devices[number])
            self._indexes[name] = index
        return index
