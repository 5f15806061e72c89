# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A host's PCI functions that change while one looks at them: indexes that take one function's change at a time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, overload

from pyhostdev.util import pciscan
from pyhostdev.util.hostquery import HostFunctions, Identity
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virpci import PCIDevice

K = TypeVar("K")


class LiveIndex(Mapping[K, list[PCIDevice]], Generic[K]):
    """
    A key to its functions in address order; follows the functions.

    Args:
        key_of: what a function is to be found under; None where it is not.
    """

    __slots__ = ("_devices", "_key_of", "_members")

    def __init__(self, devices: Mapping[int, PCIDevice], key_of: Callable[[PCIDevice], K | None]) -> None:
        self._devices = devices
        self._key_of = key_of
        self._members: dict[K, list[int]] = {}

    def change(self, number: int, before: PCIDevice | None, after: PCIDevice | None) -> None:
        """Follow a function from what it was to what it is; None where it is not there."""
        old = None if before is None else self._key_of(before)
        new = None if after is None else self._key_of(after)
        if old == new:
            return
        if old is not None:
            self._drop(old, number)
        if new is not None:
            insort(self._members.setdefault(new, []), number)

    def _drop(self, key: K, number: int) -> None:
        """Forget a function; a key without any is gone."""
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
    The host's PCI functions as of the last change it was told of.

    Answers what a Scan answers, and no index makes a system call. A changed function is another PCIDevice: one that
    a caller keeps stays as it was. One thread at a time while it changes.
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
        """Return the function at an address, None when the host has none."""
        return self._devices.get(pciscan.key_of(PCIDeviceAddress.of(address)))

    # Changes

    def replace(self, snapshot: pciscan.Snapshot) -> None:
        """Take a whole scan in the place of all that was known."""
        self._order = list(snapshot.column("key"))
        self._devices = dict(zip(self._order, Scan(self.root, snapshot), strict=True))
        self._indexes.clear()

    def update(self, addresses: Iterable[PCIDeviceAddress], snapshot: pciscan.Snapshot) -> None:
        """
        Take what some functions are now.

        Args:
            addresses: the functions that were asked for.
            snapshot: those of them that are there.
        """
        numbers = snapshot.column("key")
        found = {number: index for index, number in enumerate(numbers)}
        for address in addresses:
            number = pciscan.key_of(address)
            index = found.get(number)
            dev = None if index is None else PCIDevice(self.root, snapshot, index)
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
