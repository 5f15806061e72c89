# SPDX-License-Identifier: LGPL-2.1-or-later
"""
All PCI functions of a host at one moment, read by the C scanner.

A snapshot keeps the packed records of the C code, some 55 bytes per function. ``pciscan_ref`` does the same work in
plain Python.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence
from itertools import compress

from pyhostdev.errors import SysfsError
from pyhostdev.util import _pciscan as _c  # type: ignore[attr-defined]
from pyhostdev.util import confined
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress, key_of
from pyhostdev.util.pcisnapshot import (
    HAVE_CLASS,
    HAVE_DEVICE,
    HAVE_IOMMU_GROUP,
    HAVE_PHYSFN,
    HAVE_VENDOR,
    RECORD,
    ScanRecord,
    Snapshot,
)
from pyhostdev.util.scantuning import Tuning
from pyhostdev.util.typed import Any, NamedTuple

__all__ = [
    "HAVE_CLASS",
    "HAVE_DEVICE",
    "HAVE_IOMMU_GROUP",
    "HAVE_PHYSFN",
    "HAVE_VENDOR",
    "FunctionReader",
    "ScanRecord",
    "Snapshot",
    "Tuning",
    "confined",
    "only_in",
    "packed_snapshot",
    "read_config",
    "scan",
    "scan_listed",
    "scan_with",
]

_CAPACITY = 1 << 16  # functions; only the pages in use are touched
_SCRATCH_SIZE = 1 << 17  # two listings: the drivers, and the functions of one driver
_NAMES_SIZE = 1 << 16
_ENTRY_SIZE = 16  # struct phd_entry: key and inode number
_ADDRESS_SIZE = 17  # 00010000:00:00.0 and a newline

_MORE = struct.Struct("=QII")  # struct phd_more of csrc/pciscan.cdef.h
_MORE_VFIO, _MORE_RESET = 1, 2
_SHARE_NEVER = 0xFFFFFFFF


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


def known_groups(root: HostRoot, snapshot: Snapshot, groups: Sequence[int]) -> list[bool]:
    """
    Tell for each group whether all of its members are functions that were in it when they were scanned.

    Raises:
        SysfsError: a group exists but cannot be listed.

    Host: sys/kernel/iommu_groups/N/devices
    """
    if not groups:
        return []
    bus_fd = _open_bus(root)
    try:
        with _Scanner(root, bus_fd, Tuning()) as scanner:
            return scanner.known_groups(snapshot, groups)
    finally:
        os.close(bus_fd)


class Listed(NamedTuple):
    """
    A scan, and the entries of the directory of functions, sorted: two numbers of 64 bits each, key and inode number.

    ``grouped`` counts the functions that are in an IOMMU group.
    """

    snapshot: Snapshot
    entries: bytes
    grouped: int


def scan_listed(root: HostRoot, tuning: Tuning) -> Listed:
    """Scan as ``scan_with`` does, and keep the inode numbers of the functions' entries."""
    bus_fd = _open_bus(root)
    try:
        with _Scanner(root, bus_fd, tuning) as scanner:
            with confined.opened(confined.open_directory(root, root.pci_devices)) as fd:
                entries = scanner.entries(fd, "devices")
            keys = bytes(memoryview(entries).cast("Q")[::2])
            snapshot = scanner.fill(_c.ffi.from_buffer("uint64_t[]", keys), len(keys) // 8)
            return Listed(snapshot, entries, scanner.grouped)
    finally:
        os.close(bus_fd)


def only_in(entries: bytes, other: bytes) -> frozenset[int]:
    """Return the keys of the entries of a directory that another listing of it does not have."""
    if entries == other:
        return frozenset()
    keys = bytearray(len(entries) // 2)
    room = _c.ffi.from_buffer("uint64_t[]", keys)
    listings = [(_c.ffi.from_buffer("struct phd_entry[]", each), len(each) // _ENTRY_SIZE) for each in (entries, other)]
    count = _c.lib.phd_only_in(*listings[0], *listings[1], room)
    return frozenset(memoryview(keys).cast("Q")[:count])


class More(NamedTuple):
    """
    What a plan asks of a function: the inode of its directory, whether a VFIO driver is bound to it, and its resets.

    ``methods`` is the text of ``reset_method``, None if the kernel does not have it.
    """

    inode: int
    is_vfio: bool
    can_reset: bool
    methods: str | None


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
        keys = _c.ffi.new("uint64_t[]", sorted({key_of(address) for address in addresses}))
        return self._scanner.fill(keys, len(keys))

    def read_more(self, addresses: Iterable[PCIDeviceAddress]) -> tuple[Snapshot, list[More]]:
        """
        Read what ``read`` does, and what a plan asks of each function.

        Raises:
            SysfsError: as ``scan``.
        """
        keys = _c.ffi.new("uint64_t[]", sorted({key_of(address) for address in addresses}))
        packed = bytearray(_MORE.size * len(keys))
        self._scanner.buffers.more = view = _c.ffi.from_buffer("struct phd_more[]", packed)
        try:
            snapshot = self._scanner.fill(keys, len(keys))
        finally:
            self._scanner.buffers.more = _c.ffi.NULL
            _c.ffi.release(view)
        texts = snapshot.driver_names
        found = _MORE.iter_unpack(memoryview(packed)[: _MORE.size * len(snapshot)])
        return snapshot, [
            More(inode, flags & _MORE_VFIO != 0, flags & _MORE_RESET != 0, texts.get(methods))
            for inode, methods, flags in found
        ]

    def whole_groups(self, snapshot: Snapshot) -> set[int]:
        """
        Return the IOMMU groups of which all members are among the functions of a snapshot.

        Raises:
            SysfsError: a group exists but cannot be listed.

        Host: sys/kernel/iommu_groups/N/devices
        """
        numbers = compress(snapshot.column("iommu_group"), [h & HAVE_IOMMU_GROUP for h in snapshot.column("have")])
        groups = sorted(set(numbers))
        try:
            are_known = self._scanner.known_groups(snapshot, groups)
        except SysfsError as err:
            if err.errno != errno.ENOENT:
                raise
            return set()  # a sparse directory without the groups themselves
        return set(compress(groups, are_known))

    def entries(self, path: str, *, are_numbers: bool = False) -> bytes:
        """
        Return a directory's entries that are named after functions, or are numbers: key and inode of each, sorted.

        The directory may be absent.

        Raises:
            SysfsError: it exists but cannot be listed.
        """
        name = os.path.relpath(path, self._scanner.root.pci_bus)
        try:
            fd = confined.open_directory(self._scanner.root, path)
        except FileNotFoundError:
            return b""
        except OSError as err:
            raise SysfsError(err.errno or 0, path, "list the PCI functions") from err
        with confined.opened(fd):
            return self._scanner.entries(fd, name, are_numbers=are_numbers)

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


def _open_groups(root: HostRoot) -> int:
    try:
        return confined.open_directory(root, root.iommu_groups)
    except OSError as err:
        raise SysfsError(err.errno or 0, root.iommu_groups, "list the members of IOMMU groups") from err


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
        self.grouped = 0
        shares = (tuning.crowd, tuning.share, tuning.linked, tuning.inverted)
        self.tuning = _c.ffi.new("struct phd_tuning *", shares)
        self.error = _c.ffi.new("struct phd_error *")
        is_trusted = root.is_live or tuning.linked or not tuning.confined
        self.root_fd = -1 if is_trusted else _open_root(root)
        self.bus = _c.ffi.new("char[]", confined.root_and_path(root, root.pci_bus)[1])
        self.names = confined.uncleared("char[]", _NAMES_SIZE)
        self.scratch = confined.uncleared("char[]", _SCRATCH_SIZE)
        self.buffers = _c.ffi.new(
            "struct phd_buffers *",
            (
                self.scratch,
                _SCRATCH_SIZE,
                self.names,
                _NAMES_SIZE,
                self.root_fd,
                self.bus,
                _c.ffi.NULL,
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
        records = bytearray(count * RECORD.size)
        view = _c.ffi.from_buffer("struct phd_record[]", records)
        summary = _c.ffi.new("struct phd_summary *")
        self._check(_c.lib.phd_fill(self.bus_fd, self.tuning, keys, count, view, self.buffers, summary, self.error))
        self.grouped = summary.grouped
        return packed_snapshot(
            memoryview(records)[: summary.count * RECORD.size],
            _c.ffi.buffer(self.names)[: summary.names_used],
            summary.vanished,
        )

    def known_groups(self, snapshot: Snapshot, groups: Sequence[int]) -> list[bool]:
        """See the function of the same name."""
        records, known = bytearray(snapshot.packed), bytearray(len(groups))
        with confined.opened(_open_groups(self.root)) as groups_fd:
            ret = _c.lib.phd_known_groups(
                groups_fd,
                _c.ffi.from_buffer("struct phd_record[]", records),
                len(snapshot),
                _c.ffi.new("uint32_t[]", list(groups)),
                len(groups),
                self.buffers,
                _c.ffi.from_buffer("uint8_t[]", known),
            )
        if ret < 0:
            raise SysfsError(-ret, self.root.iommu_groups, "list the members of IOMMU groups")
        return list(map(bool, known))

    def entries(self, fd: int, name: str, *, are_numbers: bool = False) -> bytes:
        """List an open directory; its name below that of the bus is for messages."""
        count = _c.ffi.new("size_t *")
        capacity = _CAPACITY
        while True:
            room = confined.uncleared("struct phd_entry[]", 2 * capacity)
            ret = _c.lib.phd_list_entries(fd, are_numbers, room, capacity, self.buffers, count)
            if count[0] <= capacity:
                break
            capacity = count[0] * 2
            os.lseek(fd, 0, os.SEEK_SET)
        if ret < 0:
            path = os.path.normpath(os.path.join(self.root.pci_bus, name))
            raise SysfsError(-ret, path, "list the PCI functions")
        return bytes(_c.ffi.buffer(room, count[0] * _ENTRY_SIZE))

    def _list(self) -> tuple[Any, int]:
        count = _c.ffi.new("size_t *")
        capacity = _CAPACITY
        while True:
            keys = confined.uncleared("uint64_t[]", 2 * capacity)
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


def packed_snapshot(packed: memoryview | bytearray, names: bytes, vanished: int) -> Snapshot:
    """Return the snapshot of records that lie one after the other, sorted by key."""
    count = len(packed) // RECORD.size
    text = bytearray(count * _ADDRESS_SIZE)
    view = _c.ffi.from_buffer("struct phd_record[]", packed)
    used = _c.lib.phd_format(view, count, _c.ffi.from_buffer(text))
    return Snapshot(bytes(packed), bytes(memoryview(text)[:used]), names, vanished)


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
