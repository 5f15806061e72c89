# SPDX-License-Identifier: LGPL-2.1-or-later
"""
All PCI functions of a host at one moment, and indexes of them.

Objects are created on demand: until then the scan stays as the scanner packed it.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from pyhostdev.util import pciscan, scanrefresh
from pyhostdev.util.groupindex import GroupIndex
from pyhostdev.util.hostquery import HostFunctions, Identity
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostusage import HostUsage
from pyhostdev.util.pciaddress import PCIDeviceAddress, address_of
from pyhostdev.util.scancolumns import ScanColumns
from pyhostdev.util.typed import Any, TypeVar, overload
from pyhostdev.util.virpci import PCIDevice, ScannedDevice

K = TypeVar("K")
Positions = Mapping[K, Sequence[int]]

_HAVE_IDENTITY = pciscan.HAVE_VENDOR | pciscan.HAVE_DEVICE | pciscan.HAVE_CLASS


class DeviceIndex(Mapping[K, list[PCIDevice]]):
    """Maps a key to the functions at certain positions of a sequence; creates only the requested objects."""

    __slots__ = ("_devices", "_positions")

    def __init__(self, devices: Sequence[PCIDevice], positions: Positions[K]) -> None:
        self._devices = devices
        self._positions = positions

    def __getitem__(self, key: K) -> list[PCIDevice]:
        return [self._devices[position] for position in self._positions[key]]

    def items(self) -> ItemsView[K, list[PCIDevice]]:
        """Return all keys with their functions; creates all objects at once."""
        devices = list(self._devices)
        if isinstance(self._positions, GroupIndex):
            return self._positions.members(devices).items()  # type: ignore[return-value]  # its keys are numbers
        return {key: [devices[at] for at in where] for key, where in self._positions.items()}.items()

    def __contains__(self, key: object) -> bool:
        return key in self._positions

    def __iter__(self) -> Iterator[K]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return repr(dict(self))


class Scan(HostFunctions):
    """
    All PCI functions of a host at one moment, in address order; objects are created on demand.

    ``vanished`` counts functions that went away while the scan ran.
    """

    def __init__(self, root: HostRoot, snapshot: pciscan.Snapshot) -> None:
        super().__init__(root)
        self._snapshot = snapshot
        self._host_usage: HostUsage | None = None
        self._devices: list[PCIDevice | None] = []
        self._indexes: dict[str, DeviceIndex[Any]] = {}

    def __repr__(self) -> str:
        return f"<Scan of {self.root.path}: {len(self)} functions>"

    @property
    def vanished(self) -> int:
        """How many listed functions were gone when their attributes were read."""
        return self._snapshot.vanished

    def refresh(self) -> Scan:
        """
        Scan again, but read only what may have changed; the new scan equals a full one, this one stays as it is.

        On live hosts with a kernel where that is proven, directories tell it: see ``scanproof``. On all others
        everything is read.

        Raises:
            SysfsError: an attribute exists but cannot be read.
        """
        return Scan(self.root, scanrefresh.refresh(self.root, self._snapshot))

    def columns(self) -> ScanColumns:
        """Return the facts as one list each, without creating objects."""
        return ScanColumns(self._snapshot)

    def __len__(self) -> int:
        return len(self._snapshot)

    @overload
    def __getitem__(self, index: int) -> PCIDevice: ...
    @overload
    def __getitem__(self, index: slice) -> list[PCIDevice]: ...
    def __getitem__(self, index: int | slice) -> PCIDevice | list[PCIDevice]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        devices = self._devices or self._make_room()
        dev = devices[index]
        if dev is None:
            position = index % len(devices)
            dev = devices[position] = ScannedDevice(self.root, self._snapshot, position)
        return dev

    def _make_room(self) -> list[PCIDevice | None]:
        self._devices = [None] * len(self)
        return self._devices

    def __iter__(self) -> Iterator[PCIDevice]:
        root, snapshot = self.root, self._snapshot
        made = [
            dev or ScannedDevice(root, snapshot, position)
            for position, dev in enumerate(self._devices or self._make_room())
        ]
        self._devices[:] = made
        return iter(made)

    def take(self, positions: Iterable[int]) -> list[PCIDevice]:
        """Return the functions at some positions, which are not negative."""
        root, snapshot, devices = self.root, self._snapshot, self._devices or self._make_room()
        found = []
        for position in positions:
            dev = devices[position]
            if dev is None:
                dev = devices[position] = ScannedDevice(root, snapshot, position)
            found.append(dev)
        return found

    def find(self, address: PCIDeviceAddress | str) -> PCIDevice | None:
        """Return the function at an address, None if the host had none."""
        position = self._snapshot.find(PCIDeviceAddress.of(address))
        return None if position is None else self[position]

    def _usage(self) -> HostUsage:
        """Return what the host used its devices for, read at the first call."""
        if self._host_usage is None:
            self._host_usage = HostUsage(self.root)
        return self._host_usage

    def assignable(self) -> list[PCIDevice]:
        """
        Return the functions that can be given to a guest on their own now, as far as the host's drivers say.

        A function that a guest has is among them; ``Host.status`` and a plan know the guests.

        Members of groups are read now; identities, drivers and groups are those of the scan. So a function that was
        replaced since then, even at the same address, counts as it was scanned; ``refresh`` reads it again, and a
        change of the host checks that each function is still the one that its plan saw.

        Host: as ``obstacles``, but once the devices of each IOMMU, and the members of groups that no IOMMU lists
        """
        from pyhostdev.util.assignable import assignable  # few ask

        return self.take(assignable(self, self._snapshot, self._usage()))

    def _index(self, name: str) -> DeviceIndex[Any]:
        if name not in self._indexes:
            self._indexes[name] = DeviceIndex(self, _POSITIONS[name](self._snapshot))
        return self._indexes[name]


def _collect(values: Iterable[K]) -> dict[K, list[int]]:
    """Return each value with its positions."""
    found: dict[K, list[int]] = {}
    for position, value in enumerate(values):
        found.setdefault(value, []).append(position)
    return found


def _places(snapshot: pciscan.Snapshot, shift: int) -> Iterator[tuple[PCIDeviceAddress, list[int]]]:
    """Yield the first address of each slot or bus and the positions of its functions, without VFs."""
    columns = zip(snapshot.column("key"), snapshot.column("have"), strict=True)
    rows = [(key, i) for i, (key, have) in enumerate(columns) if not have & pciscan.HAVE_PHYSFN]
    for place, members in groupby(rows, lambda row: row[0] >> shift):
        yield address_of(place << shift), [position for _, position in members]


def _slot_positions(snapshot: pciscan.Snapshot) -> Positions[tuple[int, int, int]]:
    return {(a.domain, a.bus, a.slot): members for a, members in _places(snapshot, 3)}


def _bus_positions(snapshot: pciscan.Snapshot) -> Positions[tuple[int, int]]:
    return {(a.domain, a.bus): members for a, members in _places(snapshot, 8)}


def _driver_positions(snapshot: pciscan.Snapshot) -> Positions[str]:
    names = snapshot.driver_names
    found = _collect(snapshot.column("driver"))
    return {names[offset]: found[offset] for offset in found if offset in names}


def _vf_positions(snapshot: pciscan.Snapshot) -> Positions[PCIDeviceAddress]:
    columns = zip(snapshot.column("physfn"), snapshot.column("have"), strict=True)
    found = _collect(pf if have & pciscan.HAVE_PHYSFN else None for pf, have in columns)
    return {address_of(pf): vfs for pf, vfs in found.items() if pf is not None}


def _identity_positions(snapshot: pciscan.Snapshot) -> Positions[Identity]:
    fields = [snapshot.column(name) for name in ("vendor", "device", "class_")]
    known = [have & _HAVE_IDENTITY for have in snapshot.column("have")]
    return {_identity(*key): found for key, found in _collect(zip(*fields, known, strict=True)).items()}


def _identity(vendor: int, device: int, class_: int, known: int) -> Identity:
    return Identity(
        vendor if known & pciscan.HAVE_VENDOR else None,
        device if known & pciscan.HAVE_DEVICE else None,
        class_ if known & pciscan.HAVE_CLASS else None,
    )


_POSITIONS: dict[str, Callable[[pciscan.Snapshot], Positions[Any]]] = {
    "groups": lambda snapshot: snapshot.groups,
    "slots": _slot_positions,
    "buses": _bus_positions,
    "drivers": _driver_positions,
    "virtual_functions": _vf_positions,
    "identities": _identity_positions,
}
