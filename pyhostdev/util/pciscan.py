# SPDX-License-Identifier: LGPL-2.1-or-later
"""
All PCI functions of a host at one moment, read by the C scanner.

A snapshot keeps the packed records of the C code, some 55 bytes per function; texts and ScanRecords are created on
demand. ``pciscan_ref`` does the same work in plain Python.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, Literal, NamedTuple, overload

from pyhostdev.errors import SysfsError
from pyhostdev.util import _pciscan as _c  # type: ignore[attr-defined]
from pyhostdev.util import confined
from pyhostdev.util.groupindex import GroupIndex
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress, address_of, key_of

# struct phd_record of csrc/pciscan.cdef.h
_RECORD = struct.Struct("=QQIIIHHHHHH")
_KEY = struct.Struct("=Q")
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

_CAPACITY = 1 << 16  # functions; only the pages in use are touched
_SCRATCH_SIZE = 1 << 17  # two listings: the drivers, and the functions of one driver
_NAMES_SIZE = 1 << 16
_ADDRESS_SIZE = 17  # 00010000:00:00.0 and a newline

HAVE_VENDOR: int = _c.lib.PHD_HAVE_VENDOR
HAVE_DEVICE: int = _c.lib.PHD_HAVE_DEVICE
_HAVE_SUBSYSTEM_VENDOR: int = _c.lib.PHD_HAVE_SUBSYSTEM_VENDOR
_HAVE_SUBSYSTEM_DEVICE: int = _c.lib.PHD_HAVE_SUBSYSTEM_DEVICE
HAVE_CLASS: int = _c.lib.PHD_HAVE_CLASS
_HAVE_IDS = HAVE_VENDOR | HAVE_DEVICE | _HAVE_SUBSYSTEM_VENDOR | _HAVE_SUBSYSTEM_DEVICE | HAVE_CLASS
HAVE_IOMMU_GROUP: int = _c.lib.PHD_HAVE_IOMMU_GROUP
HAVE_PHYSFN: int = _c.lib.PHD_HAVE_PHYSFN

_SHARE_NEVER = 0xFFFFFFFF
_MOST = 16  # once a sixteenth of the records was created singly, create all: each costs a third then


class Tuning(NamedTuple):
    """
    The sizes from which on the scanner shares work between functions.

    On a smaller host every attribute of every function is read, which costs less than sharing.

    ``crowd`` counts the host's functions: from there on, VFs are found through their PF's links and the listing, and
    drivers through the listings of ``drivers/*``. ``share`` counts the VFs of one PF: the kernel gives all of them
    the same identity, so it is read once. ``linked`` asserts that a directory has the form the kernel gives it:
    drivers list all their functions, and no link leads out of it. The scanner knows this for sysfs itself.
    ``confined`` keeps links from leading out of a directory without this assertion.
    """

    crowd: int = 512
    share: int = 16
    linked: bool = False
    confined: bool = True


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

    ``vanished`` counts functions that were listed but gone when their attributes were read.
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

    def __len__(self) -> int:
        return len(self._packed) // _RECORD.size

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
        for address, fields in zip(self.addresses, _RECORD.iter_unpack(self._packed), strict=True):
            yield _record(address, fields, drivers, physfns)

    def _record(self, index: int) -> ScanRecord:
        fields = _RECORD.unpack_from(self._packed, index * _RECORD.size)
        return _record(self.addresses[index], fields, self.driver_names, self.physfn_texts)

    def column(self, name: str) -> memoryview[int]:
        """Return one field of all functions as the scanner packed it; ``have`` tells which values are valid."""
        kind, where = _COLUMNS[name]
        return memoryview(self._packed).cast(kind)[where]

    @property
    def physfn_texts(self) -> dict[int, str]:
        """The key of each PF that has VFs, to its address as text."""
        if self._physfns is None:
            keys = set(self.column("physfn"))
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

    @property
    def groups(self) -> Mapping[int, tuple[int, ...]]:
        """IOMMU group number to the indexes of its functions, both in order."""
        if self._groups is None:
            known = (have & HAVE_IOMMU_GROUP for have in self.column("have"))
            self._groups = GroupIndex(compress(enumerate(self.column("iommu_group")), known))
        return self._groups

    def address(self, index: int) -> PCIDeviceAddress:
        """Return the address of the function at an index."""
        return address_of(_KEY.unpack_from(self._packed, index * _RECORD.size)[0])

    def find(self, address: PCIDeviceAddress) -> int | None:
        """Return the index of the function at an address, None if the host had none."""
        keys = self.column("key")
        key = key_of(address)
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


def scan(root: HostRoot, *, ids_once_per_pf: bool = True) -> Snapshot:
    """
    Read the sysfs attributes of every PCI function.

    Never opens a file that could wait for a stuck device or wake a sleeping one. Thread-safe; other threads run
    meanwhile.

    Args:
        ids_once_per_pf: for a PF with many VFs, read their identity once; the kernel stores it once, too.

    Raises:
        SysfsError: the root has no PCI bus, or an attribute exists but cannot be read or understood.

    Host: sys/bus/pci/devices, sys/bus/pci/drivers
    """
    return scan_with(root, Tuning() if ids_once_per_pf else Tuning(share=_SHARE_NEVER))


def scan_with(root: HostRoot, tuning: Tuning) -> Snapshot:
    """Scan as ``scan`` does, but share work according to ``tuning``."""
    bus_fd = _open_bus(root)
    try:
        with _Scanner(root, bus_fd, tuning) as scanner:
            return scanner.run()
    finally:
        os.close(bus_fd)


class FunctionReader:
    """
    Reads a few functions at a time, any number of times; keeps a descriptor and the memory for it.

    Raises:
        SysfsError: the root has no PCI bus.
    """

    def __init__(self, root: HostRoot) -> None:
        self._bus_fd = _open_bus(root)
        # Every attribute is read from the function itself: the functions that could share it may not be in the request
        self._scanner = _Scanner(root, self._bus_fd, Tuning(crowd=_SHARE_NEVER))

    def read(self, addresses: Iterable[PCIDeviceAddress]) -> Snapshot:
        """
        Read the sysfs attributes of some functions; absent ones are left out and counted as vanished.

        Raises:
            SysfsError: as ``scan``.
        """
        keys = array("Q", sorted({key_of(address) for address in addresses}))
        return self._scanner.fill(_c.ffi.from_buffer("uint64_t[]", keys), len(keys))

    def close(self) -> None:
        """Close the descriptors."""
        self._scanner.close()
        os.close(self._bus_fd)


def _open_bus(root: HostRoot) -> int:
    path = root.pci_bus
    try:
        return confined.open_path(root, path, os.O_DIRECTORY)
    except OSError as err:
        raise SysfsError(err.errno or 0, path, "list the PCI functions") from err


def _open_root(root: HostRoot) -> int:
    try:
        return confined.open_path(root, root.path, os.O_DIRECTORY)
    except OSError as err:
        raise SysfsError(err.errno or 0, root.path, "open the root") from err


class _Scanner:
    """The memory that the C code uses for one scan, and its three calls."""

    def __init__(self, root: HostRoot, bus_fd: int, tuning: Tuning) -> None:
        self.root = root
        self.bus_fd = bus_fd
        self.tuning = _c.ffi.new("struct phd_tuning *", tuning[:3])
        self.error = _c.ffi.new("struct phd_error *")
        is_vouched = root.is_live or tuning.linked or not tuning.confined
        self.root_fd = -1 if is_vouched else _open_root(root)
        self.bus = _c.ffi.new("char[]", confined.root_and_path(root, root.pci_bus)[1])
        self.names = bytearray(_NAMES_SIZE)
        # bytearray: calloc returns zero pages that cost nothing until they are used
        self.scratch = bytearray(_SCRATCH_SIZE)
        self.buffers = _c.ffi.new(
            "struct phd_buffers *",
            (
                _c.ffi.from_buffer(self.scratch),
                _SCRATCH_SIZE,
                _c.ffi.from_buffer(self.names),
                _NAMES_SIZE,
                self.root_fd,
                self.bus,
            ),
        )

    def __enter__(self) -> _Scanner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor of the root."""
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = self.buffers.root_fd = -1

    def run(self) -> Snapshot:
        return self.fill(*self._list())

    def fill(self, keys: Any, count: int) -> Snapshot:
        """Read the functions with these keys, which are sorted."""
        records = bytearray(count * _RECORD.size)
        view = _c.ffi.from_buffer("struct phd_record[]", records)
        summary = _c.ffi.new("struct phd_summary *")
        self._check(_c.lib.phd_fill(self.bus_fd, self.tuning, keys, count, view, self.buffers, summary, self.error))
        text = bytearray(summary.count * _ADDRESS_SIZE)
        used = _c.lib.phd_format(view, summary.count, _c.ffi.from_buffer(text))
        return Snapshot(
            bytes(memoryview(records)[: summary.count * _RECORD.size]),
            bytes(memoryview(text)[:used]),
            bytes(memoryview(self.names)[: summary.names_used]),
            summary.vanished,
        )

    def _list(self) -> tuple[Any, int]:
        count = _c.ffi.new("size_t *")
        capacity = _CAPACITY
        while True:
            keys = _c.ffi.from_buffer("uint64_t[]", bytearray(16 * capacity))
            ret = _c.lib.phd_list(self.bus_fd, keys, capacity, self.buffers, count, self.error)
            if count[0] <= capacity:
                break
            capacity = count[0] * 2  # the list may grow again before the next try
        self._check(ret)
        return keys, count[0]

    def _check(self, ret: int) -> None:
        if ret == 0:
            return
        path = os.path.join(self.root.pci_bus, os.fsdecode(_c.ffi.string(self.error.path)))
        if -ret == confined.NOT_A_FILE:
            raise SysfsError(errno.EINVAL, path, "read an attribute that is not a regular file")
        raise SysfsError(-ret, path, "scan the PCI functions")


def read_config(root: HostRoot, address: PCIDeviceAddress, offset: int, size: int) -> bytes | None:
    """
    Read a range of a function's configuration space; every dword costs a bus cycle.

    Returns:
        The bytes that the kernel returns: only the first 64 for an unprivileged user, fewer than requested at the end;
        None if the function does not exist or has no configuration space in sysfs.

    Raises:
        SysfsError: the file exists but cannot be read.

    Host: sys/bus/pci/devices/ADDRESS/config
    """
    path = os.path.join(root.pci_device(address), "config")
    out = _c.ffi.new("uint8_t[]", max(size, 1))
    count: int = _c.lib.phd_read_at(*confined.root_and_path(root, path), offset, out, size)
    if count in (-errno.ENOENT, -errno.ENODEV, -errno.ENOTDIR):
        return None
    if -count == confined.NOT_A_FILE:
        doing = "read configuration space that is not a regular file"
        raise SysfsError(errno.EINVAL, path, doing, address=address)
    if count < 0:
        raise SysfsError(-count, path, "read the configuration space", address=address)
    return bytes(_c.ffi.buffer(out, count))
