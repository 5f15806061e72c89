# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who wants which device, and what to restore: one small file a device, written before the kernel is touched.

The state directory lies under /run and dies with the boot, as the kernel's bindings do. A record that cannot be
trusted is set aside under another name and reported, and nobody acts on it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from pyhostdev.errors import InternalError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.record import (
    DETACHED,
    LAST_MOMENT,
    PREPARED,
    PREPARING,
    RELEASING,
    STATES,
    SUFFIX,
    Record,
    decode,
    encode,
    newer_text,
)
from pyhostdev.util.statedir import StateDir
from pyhostdev.util.virfile import read_attribute

__all__ = [
    "DETACHED",
    "PREPARED",
    "PREPARING",
    "RELEASING",
    "STATES",
    "BadRecord",
    "Journal",
    "Record",
    "read_boot_id",
    "read_clock",
]

ASIDE = ".bad"


class BadRecord(NamedTuple):
    """A file of the journal that cannot be acted on, and why; one of a newer version stays where it is."""

    name: str
    why: str
    is_newer: bool = False


def read_boot_id(root: HostRoot) -> str | None:
    """
    Return the running kernel's boot id, None where the host has no such file.

    Raises:
        SysfsError: it is there and cannot be read.
    """
    return read_attribute(root, root.boot_id)


def read_clock() -> int:
    """
    Return the moment for a record's ``since``: seconds since 1970 UTC, of a clock that anyone may set.

    It is told to people, and nothing is decided by it.
    """
    return min(max(int(time.time()), 0), LAST_MOMENT)


class Journal:
    """The records below one state directory, by address."""

    def __init__(self, state: StateDir | str) -> None:
        self.state = StateDir(state) if isinstance(state, str) else state

    def read(self) -> tuple[dict[PCIDeviceAddress, Record], list[BadRecord]]:
        """
        Return all records by address, in order, and the files that are not records.

        A record of a newer version is in both: its device is in use, and what to do is told.

        Raises:
            OperationError: others could write into the state directory.
            SysfsError: it is there and cannot be read.
        """
        records: dict[PCIDeviceAddress, Record] = {}
        bad: list[BadRecord] = []
        for name in self.state.names():
            if name.endswith((SUFFIX, ASIDE)) and not name.startswith("."):
                try:
                    record = self._read_one(name)
                except ValueError as err:
                    bad.append(BadRecord(name, str(err)))
                else:
                    if record is not None:
                        records[record.address] = record
                    if record is not None and record.is_newer:
                        bad.append(BadRecord(name, newer_text(record.address), is_newer=True))
        return dict(sorted(records.items())), bad

    def _read_one(self, name: str) -> Record | None:
        """Return what is in a file, None when somebody has removed it since it was listed."""
        if name.endswith(ASIDE):
            raise ValueError("it was set aside earlier")
        data = self.state.read(name)
        return None if data is None else decode(data, name)

    def write(self, record: Record) -> None:
        """
        Put a record on disk, durably, in the place of an earlier one.

        Raises:
            SysfsError: the directory or the disk refuses; the earlier record stands.
        """
        if record.is_newer:
            raise InternalError(f"The record of device {record.address} belongs to a newer pyhostdev")
        self.state.replace(f"{record.address}{SUFFIX}", encode(record))

    def remove(self, address: PCIDeviceAddress) -> None:
        """
        Forget a device; nothing happens when there is no record of it.

        Raises:
            SysfsError: the directory refuses.
        """
        self.state.remove(f"{address}{SUFFIX}")

    def sweep(self, address: PCIDeviceAddress) -> None:
        """
        Remove what killed writers left of a device's record; the caller holds its locks.

        Raises:
            SysfsError: the directory refuses.
        """
        self.state.sweep(f"{address}{SUFFIX}")

    def set_aside(self, bad: BadRecord) -> None:
        """
        Rename a file that is not a record, so that it stays for a look and is not in the way.

        Raises:
            SysfsError: the directory refuses.
        """
        if not bad.name.endswith(ASIDE) and not bad.is_newer:
            self.state.rename(bad.name, f"{bad.name}{ASIDE}")
