# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The packed records of one scan; texts and ScanRecords are created on demand.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, count

from pyhostdev.util.pciaddress import PCIDeviceAddress, address_of, key_of
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    from typing import Literal

    from pyhostdev.util.groupindex import GroupIndex
    from pyhostdev.util.scanproof import Proof

# struct phd_record of csrc/pciscan.cdef.h
RECORD = struct.Struct("=QQIIIHHHHHH")
KIND = struct.Struct("=16xI8xHH4xHxx")  # of a record: class, vendor, device, and which of them are known
_KEY = struct.Struct("=Q")
_ALIKE = struct.Struct("=16xI4x14s2x")  # of a record: its class; driver, ids, and which facts are known
_COLUMNS: dict[str, tuple[Literal["Q", "I", "H"], slice]] = {  # item size, and position in a record
    "key": ("Q", slice(0, None, 5)),
    "physfn": ("Q", slice(1, None, 5)),
    "class_": ("I", slice(4, None, 10)),
    "iommu_group": ("I", slice(5, None, 10)),
    "driver": ("I", slice(6, None, 10)),
    "vendor": ("H", slice(14, None, 20)),
    "device": ("H", slice(15, None, 20)),
    "have": ("H", slice(18, None, 20)),
}

# enum phd_have of csrc/pciscan.cdef.h
HAVE_VENDOR = 1
HAVE_DEVICE = 2
_HAVE_SUBSYSTEM_VENDOR = 4
_HAVE_SUBSYSTEM_DEVICE = 8
HAVE_CLASS = 16
_HAVE_IDS = HAVE_VENDOR | HAVE_DEVICE | _HAVE_SUBSYSTEM_VENDOR | _HAVE_SUBSYSTEM_DEVICE | HAVE_CLASS
HAVE_DRIVER = 32
HAVE_IOMMU_GROUP = 64
HAVE_PHYSFN = 128

_MOST = 16  # create all records once a sixteenth was created one by one: in bulk, each costs a third


class ScanRecord(NamedTuple):
    """
    One PCI function as sysfs shows it; None stands for a value that the host does not have.

    ``address`` and ``physfn`` are in libvirt's spelling; ``class_`` has three bytes.
    """

    address: str
    vendor: int | None
    device: int | None
    subsystem_vendor: int | None
    subsystem_device: int | None
    class_: int | None
    driver: str | None
    iommu_group: int | None
    physfn: str | None


class Snapshot(Sequence[ScanRecord]):
    """
    The functions of one scan, sorted by address; immutable.

    ``vanished`` counts functions that were listed but gone when their attributes were read. ``proof`` shows later
    whether they have changed since; None if that cannot be known.
    """

    __slots__ = (
        "_addresses",
        "_asked",
        "_drivers",
        "_groups",
        "_names",
        "_packed",
        "_physfns",
        "_records",
        "_text",
        "proof",
        "vanished",
    )

    def __init__(self, packed: bytes, text: bytes, names: bytes, vanished: int) -> None:
        self._packed = packed
        self._text = text
        self._names = names
        self._addresses: list[str] | None = None
        self._drivers: dict[int, str] | None = None
        self._groups: GroupIndex | None = None
        self._physfns: dict[int, str] | None = None
        self._records: list[ScanRecord] | None = None
        self._asked = 0
        self.vanished = vanished
        self.proof: Proof | None = None

    def __len__(self) -> int:
        return len(self._packed) // RECORD.size

    @overload
    def __getitem__(self, index: int) -> ScanRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ScanRecord]: ...
    def __getitem__(self, index: int | slice) -> ScanRecord | list[ScanRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if self._records is None:
            self._asked += 1
            if self._asked * _MOST <= len(self):
                return self._record(range(len(self))[index])
            self._records = list(self)
        return self._records[index]

    def __iter__(self) -> Iterator[ScanRecord]:
        drivers, physfns = self.driver_names, self.physfn_texts
        for address, fields in zip(self.addresses, RECORD.iter_unpack(self._packed), strict=True):
            yield _record(address, fields, drivers, physfns)

    def _record(self, index: int) -> ScanRecord:
        fields = RECORD.unpack_from(self._packed, index * RECORD.size)
        return _record(self.addresses[index], fields, self.driver_names, self.physfn_texts)

    @property
    def packed(self) -> bytes:
        """The records one after the other."""
        return self._packed

    @property
    def names(self) -> bytes:
        """The pool of drivers' names."""
        return self._names

    def column(self, name: str) -> memoryview[int]:
        """Return one field of all functions as the scanner packed it; ``have`` tells which values are valid."""
        return column_of(self._packed, name)

    @property
    def physfn_texts(self) -> dict[int, str]:
        """The key of each PF that has VFs, to its address as text."""
        if self._physfns is None:
            keys = set(self.column("physfn").tolist())
            self._physfns = {key: str(address_of(key)) for key in keys}
        return self._physfns

    @property
    def driver_names(self) -> dict[int, str]:
        """Maps the offset of a driver's name in the pool to the name."""
        if self._drivers is None:
            offset, self._drivers = 1, {}
            for name in self._names[1:].split(b"\0")[:-1]:
                self._drivers[offset] = os.fsdecode(name)
                offset += len(name) + 1
        return self._drivers

    @property
    def addresses(self) -> list[str]:
        """The addresses in order, as text."""
        if self._addresses is None:
            self._addresses = self._text.decode("ascii").split("\n")[:-1]
        return self._addresses

    def first_alike(self) -> list[int]:
        """
        Return for each function the index of the first one with the same identity, driver and kinds of known facts.

        A host with thousands of functions has few kinds of them.
        """
        first: dict[tuple[object, ...], int] = {}
        return list(map(first.setdefault, _ALIKE.iter_unpack(self._packed), count()))

    @property
    def groups(self) -> Mapping[int, tuple[int, ...]]:
        """IOMMU group number to the indexes of its functions, both in order."""
        if self._groups is None:
            have = self.column("have").tolist()
            is_known = {kind: bool(kind & HAVE_IOMMU_GROUP) for kind in set(have)}
            from pyhostdev.util.groupindex import GroupIndex  # the groups of a few functions need none

            positions = compress(count(), map(is_known.__getitem__, have))
            self._groups = GroupIndex(self.column("iommu_group").tolist(), positions)
        return self._groups

    def address(self, index: int) -> PCIDeviceAddress:
        """Return the address of the function at an index."""
        return address_of(_KEY.unpack_from(self._packed, index * RECORD.size)[0])

    def find(self, address: PCIDeviceAddress) -> int | None:
        """Return the index of the function at an address, None if the host had none."""
        return self.find_key(key_of(address))

    def find_key(self, key: int) -> int | None:
        """Return the index of the function with a key, None if the host had none."""
        keys = self.column("key")
        index = bisect_left(keys, key)
        return index if index < len(keys) and keys[index] == key else None


def _record(address: str, fields: tuple[int, ...], drivers: dict[int, str], physfns: dict[int, str]) -> ScanRecord:
    _, physfn, class_, group, driver, vendor, device, subvendor, subdevice, have, _ = fields
    rest = (
        drivers.get(driver),  # offset 0 means unbound
        group if have & HAVE_IOMMU_GROUP else None,
        physfns[physfn] if have & HAVE_PHYSFN else None,
    )
    if have & _HAVE_IDS == _HAVE_IDS:
        return ScanRecord(address, vendor, device, subvendor, subdevice, class_, *rest)
    return ScanRecord(
        address,
        vendor if have & HAVE_VENDOR else None,
        device if have & HAVE_DEVICE else None,
        subvendor if have & _HAVE_SUBSYSTEM_VENDOR else None,
        subdevice if have & _HAVE_SUBSYSTEM_DEVICE else None,
        class_ if have & HAVE_CLASS else None,
        *rest,
    )


def column_of(packed: bytes | bytearray, name: str) -> memoryview[int]:
    """Return one field of packed records; of a bytearray, it can be written."""
    kind, where = _COLUMNS[name]
    return memoryview(packed).cast(kind)[where]
