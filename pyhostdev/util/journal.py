# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The owner of each device and the state to restore: one small file per device, written before the first write to sysfs.

The state directory lies under /run and does not survive a reboot; neither do the kernel's bindings. A record that
cannot be trusted is renamed and reported, and pyhostdev does not act on it.
"""

from __future__ import annotations

import time

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
from pyhostdev.util.typed import NamedTuple
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
    """A journal file that cannot be used, and why; a file of a newer version keeps its name."""

    name: str
    why: str
    is_newer: bool = False


def read_boot_id(root: HostRoot) -> str | None:
    """
    Return the running kernel's boot id, None if the host does not have the file.

    Raises:
        SysfsError: the file exists but cannot be read.
    """
    return read_attribute(root, root.boot_id)


def read_clock() -> int:
    """
    Return the moment for a record's ``since``: seconds since 1970 UTC, of a clock that anyone may set.

    It is only shown to the user; no decision depends on it.
    """
    return min(max(int(time.time()), 0), LAST_MOMENT)


class Journal:
    """The records in a state directory, by address."""

    def __init__(self, state: StateDir | str) -> None:
        self.state = StateDir(state) if isinstance(state, str) else state

    def read(self) -> tuple[dict[PCIDeviceAddress, Record], list[BadRecord]]:
        """
        Return all records by address, in order, and the files that are not valid records.

        A record of a newer version is in both: its device is in use, and the reason explains what to do.

        Raises:
            OperationError: another user can write into the state directory.
            SysfsError: the directory exists but cannot be read.
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
        """Return the record in a file, None if the file was removed since it was listed."""
        if name.endswith(ASIDE):
            raise ValueError("it was set aside earlier")
        data = self.state.read(name)
        return None if data is None else decode(data, name)

    def write(self, record: Record) -> None:
        """
        Write a record to disk, durably; it replaces an earlier record.

        Raises:
            SysfsError: the directory or the disk refuses; the earlier record remains.
        """
        if record.is_newer:
            raise InternalError(f"The record of device {record.address} belongs to a newer pyhostdev")
        self.state.replace(f"{record.address}{SUFFIX}", encode(record))

    def remove(self, address: PCIDeviceAddress) -> None:
        """
        Remove the record of a device; do nothing if there is none.

        Raises:
            SysfsError: the directory refuses.
        """
        self.state.remove(f"{address}{SUFFIX}")

    def sweep(self, address: PCIDeviceAddress) -> None:
        """
        Remove temporary files that killed writers left for a device's record; the caller holds its locks.

        Raises:
            SysfsError: the directory refuses.
        """
        self.state.sweep(f"{address}{SUFFIX}")

    def set_aside(self, bad: BadRecord) -> None:
        """
        Rename a file that is not a valid record, so that it remains for inspection and does not interfere.

        Raises:
            SysfsError: the directory refuses.
        """
        if not bad.name.endswith(ASIDE) and not bad.is_newer:
            self.state.rename(bad.name, f"{bad.name}{ASIDE}")
