# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Refreshing a scan: only what may have changed is read again.

If nothing has changed, only the times of the directories are read. If the functions of a driver have changed, its list
is read; if functions were added, the new ones. The result equals a full scan; without a proof, a full scan is made.

The times are read before the contents. A change in between is therefore seen twice, never missed.
"""

from __future__ import annotations

from bisect import bisect_left

from pyhostdev.util import pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import address_of
from pyhostdev.util.pciscan import FunctionReader, Snapshot
from pyhostdev.util.pcisnapshot import HAVE_DRIVER, HAVE_IOMMU_GROUP, RECORD, column_of
from pyhostdev.util.scanproof import Marks, Proof, read_marks
from pyhostdev.util.scantuning import Tuning

_SHARE = 8  # a scan costs less than reading more than this fraction of the functions one by one
_FEW = 64  # functions that are read one by one on any host
_NO_KEYS: frozenset[int] = frozenset()


def scan(root: HostRoot, tuning: Tuning | None = None) -> Snapshot:
    """
    Read all PCI functions, and the proof for a later refresh, if the host has one.

    Raises:
        SysfsError: as ``pciscan.scan``.

    Host: sys/bus/pci/devices, sys/bus/pci/drivers, sys/kernel/iommu_groups
    """
    tuning = tuning or Tuning()
    marks = read_marks(root, tuning)
    if marks is None:
        return pciscan.scan_with(root, tuning)
    listed = pciscan.scan_listed(root, tuning._replace(inverted=True))
    groups = _list_groups(root) if marks.groups else b""
    snapshot = listed.snapshot
    snapshot.proof = Proof(
        tuning,
        marks,
        listed.entries,
        groups,
        young=_NO_KEYS if marks.is_settled(marks.devices) else None,
        ungrouped=_NO_KEYS if listed.grouped == len(snapshot) else _ungrouped(snapshot) if groups else None,
    )
    return snapshot


def refresh(root: HostRoot, old: Snapshot) -> Snapshot:
    """
    Return the same as ``scan``; the old snapshot itself if it is still valid.

    Args:
        old: an earlier snapshot of the same root.

    Raises:
        SysfsError: as ``scan``.
    """
    proof = old.proof
    if proof is None:
        return scan(root)
    marks = read_marks(root, proof.tuning, proof.marks)
    if marks is None or marks.filesystem != proof.marks.filesystem or proof.young is None:
        return scan(root, proof.tuning)
    work = _Refresh(root, old, proof, marks)
    if work.is_unchanged:
        return old
    return work.run() or scan(root, proof.tuning)


def _list_groups(root: HostRoot) -> bytes:
    reader = FunctionReader(root)
    try:
        return reader.entries(root.iommu_groups, are_numbers=True)
    finally:
        reader.close()


def _ungrouped(snapshot: Snapshot) -> frozenset[int]:
    pairs = zip(snapshot.column("key"), snapshot.column("have"), strict=True)
    return frozenset(key for key, have in pairs if not have & HAVE_IOMMU_GROUP)


class _Refresh:
    """One refresh: the directories to list, the functions to read, and the resulting records."""

    def __init__(self, root: HostRoot, old: Snapshot, proof: Proof, marks: Marks) -> None:
        before = proof.marks
        self.root = root
        self.old = old
        self.proof = proof
        self.marks = marks
        self.due_devices = before.is_due(before.devices, marks.devices)
        self.due_groups = before.is_due(before.groups, marks.groups)
        self.due_drivers = [name for name, mark in marks.each.items() if before.is_due(before.each.get(name), mark)]
        self.gone_drivers = [name for name in before.each if name not in marks.each]

    @property
    def is_unchanged(self) -> bool:
        """Tell whether there is nothing to list or to read."""
        is_due = self.due_devices or self.due_groups or self.due_drivers or self.gone_drivers
        return not (is_due or self.proof.young or (self.proof.groups and self.proof.ungrouped))

    def run(self) -> Snapshot | None:
        """Return the new snapshot, None if a scan costs less."""
        reader = FunctionReader(self.root)
        try:
            return self._run(reader)
        finally:
            reader.close()

    def _run(self, reader: FunctionReader) -> Snapshot | None:
        root, proof = self.root, self.proof
        entries = reader.entries(root.pci_devices) if self.due_devices else proof.entries
        groups = reader.entries(root.iommu_groups, are_numbers=True) if self.due_groups else proof.groups
        new, gone = pciscan.only_in(entries, proof.entries), pciscan.only_in(proof.entries, entries)
        ungrouped = self._without_group(groups)
        again = new | ((proof.young or _NO_KEYS) | (ungrouped or _NO_KEYS) | self._of_stale_groups(groups)) - gone
        if len(again) > max(_FEW, len(self.old) // _SHARE):
            return None
        read = reader.read(address_of(key) for key in again)
        packed = self._merged(new, gone | again, read)
        names = self._set_drivers(packed, reader)
        snapshot = self._snapshot(packed, names, read.vanished)
        is_young = not self.marks.is_settled(self.marks.devices)
        snapshot.proof = Proof(
            proof.tuning,
            self.marks,
            entries,
            groups,
            young=(new | (proof.young or _NO_KEYS)) - (gone - new) if is_young else _NO_KEYS,
            ungrouped=None if ungrouped is None else _ungrouped(read),
        )
        return snapshot

    def _without_group(self, groups: bytes) -> frozenset[int] | None:
        """Return the functions that had no group and may have one now; None if no group exists."""
        if not groups:
            return None
        return _ungrouped(self.old) if self.proof.ungrouped is None else self.proof.ungrouped

    def _of_stale_groups(self, groups: bytes) -> frozenset[int]:
        """Return the functions whose group was removed, even if its number is in use again."""
        stale = pciscan.only_in(self.proof.groups, groups)
        if not stale:
            return _NO_KEYS
        columns = (self.old.column(name) for name in ("key", "iommu_group", "have"))
        rows = zip(*columns, strict=True)
        return frozenset(key for key, group, have in rows if group in stale and have & HAVE_IOMMU_GROUP)

    def _merged(self, new: frozenset[int], dropped: frozenset[int], read: Snapshot) -> bytearray:
        """Return the records without the removed functions and with the functions read; drivers are set separately."""
        added = self._records(new, read)
        old, keys = memoryview(self.old.packed), self.old.column("key")
        pieces: list[bytes | bytearray | memoryview] = []
        done = 0
        for key in sorted(dropped):
            at = bisect_left(keys, key)
            pieces.append(old[done * RECORD.size : at * RECORD.size])
            pieces.append(added.get(key, b""))
            done = at + (at < len(keys) and keys[at] == key)
        pieces.append(old[done * RECORD.size :])
        return bytearray().join(pieces)

    def _records(self, new: frozenset[int], read: Snapshot) -> dict[int, bytearray]:
        """
        Return the key and the record of each function that was read.

        A function's driver link may be older or newer than the driver's list, so only the list counts. An old function
        keeps its driver until a list shows another one; the driver of a new function is in a list that has changed.
        """
        packed, keys, drivers = bytearray(read.packed), read.column("key"), self.old.column("driver")
        for position, key in enumerate(keys):
            at = None if key in new else self.old.find_key(key)
            self._put(packed, position, 0 if at is None else drivers[at])
        starts = range(0, len(packed), RECORD.size)
        return {key: packed[start : start + RECORD.size] for key, start in zip(keys, starts, strict=True)}

    @staticmethod
    def _put(packed: bytearray, position: int, driver: int) -> None:
        """Set the driver of a record."""
        column_of(packed, "driver")[position] = driver
        have = column_of(packed, "have")
        have[position] = have[position] | HAVE_DRIVER if driver else have[position] & ~HAVE_DRIVER

    def _set_drivers(self, packed: bytearray, reader: FunctionReader) -> bytes:
        """Apply the lists of the drivers that may have changed; return the pool of names."""
        names, offsets = self.old.names, {name: offset for offset, name in self.old.driver_names.items()}
        listed: dict[int, int] = {}
        changed = set()
        for name in [*self.gone_drivers, *self.due_drivers]:
            if name not in offsets:
                offsets[name] = len(names)
                names += name.encode("utf-8", "surrogateescape") + b"\0"
            changed.add(offsets[name])
            if name in self.marks.each:
                entries = reader.entries(self.root.join(self.root.pci_drivers, name))
                listed.update(dict.fromkeys(memoryview(entries).cast("Q")[::2], offsets[name]))
        if changed:
            self._assign(packed, changed, listed)
        return names

    def _assign(self, packed: bytearray, changed: set[int], listed: dict[int, int]) -> None:
        """Set the driver of the functions that a list has, and clear the driver of those that it no longer has."""
        had = column_of(packed, "driver").tolist()
        for position, key in enumerate(column_of(packed, "key").tolist()):
            driver = listed.get(key)
            if driver is None and had[position] in changed:
                self._put(packed, position, 0)
            elif driver is not None and driver != had[position]:
                self._put(packed, position, driver)

    def _snapshot(self, packed: bytearray, names: bytes, vanished: int) -> Snapshot:
        """Return the old snapshot if the records are the same."""
        if packed == self.old.packed and not vanished:
            return self.old
        return pciscan.packed_snapshot(packed, names, vanished)
