# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who wants which device, and what to restore: one small file a device, written before the kernel is touched.

The state directory lies under /run and dies with the boot, as the kernel's bindings do. A record that cannot be
trusted is set aside under another name and reported, and nobody acts on it.
"""

from __future__ import annotations

import json
import zlib
from typing import NamedTuple

from pyhostdev.errors import HostdevError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import Binding
from pyhostdev.util.statedir import StateDir
from pyhostdev.util.virfile import read_attribute

VERSION = 1
SUFFIX = ".json"
ASIDE = ".bad"

PREPARING = "preparing"
PREPARED = "prepared"
RELEASING = "releasing"
DETACHED = "detached"  # with a stub and nobody's: libvirt's inactive list
STATES = (PREPARING, PREPARED, RELEASING, DETACHED)


class Record(NamedTuple):
    """
    One device that we detached or that a domain uses.

    ``moved`` says that it was we who took it from ``original.driver``; only then is it given back. ``listed_as`` is
    its binding when it was on the inactive list before its owner got it, and where it goes back to. ``change`` is
    shared by the records of one prepare: they stand or fall together; ``position`` is the device's place in the domain.
    """

    address: PCIDeviceAddress
    state: str
    owner: str | None
    managed: bool
    moved: bool
    target: str
    original: Binding
    boot_id: str | None
    listed_as: Binding | None = None
    change: str = ""
    position: int = 0

    @property
    def is_active(self) -> bool:
        """On libvirt's active list: a domain has it, is getting it, or is giving it back."""
        return self.state != DETACHED

    @property
    def is_kept(self) -> bool:
        """Stays detached when its owner gives it back: it was before, or its owner asked for it unmanaged."""
        return self.listed_as is not None or (not self.managed and self.owner is not None)


class BadRecord(NamedTuple):
    """A file of the journal that nobody can act on, and why."""

    name: str
    why: str


def read_boot_id(root: HostRoot) -> str | None:
    """
    Return the running kernel's boot id, None where the host has no such file.

    Raises:
        SysfsError: it is there and cannot be read.
    """
    return read_attribute(root.boot_id)


def _encode(record: Record) -> bytes:
    fields = record._asdict()
    fields["address"] = str(record.address)
    fields["original"] = record.original._asdict()
    fields["listed_as"] = record.listed_as and record.listed_as._asdict()
    body = json.dumps(fields, sort_keys=True)
    text = {"version": VERSION, "crc32": zlib.crc32(body.encode()), "record": fields}
    return (json.dumps(text, sort_keys=True) + "\n").encode()


def _decode(data: bytes, name: str) -> Record:
    """Return the record in a file's bytes; ValueError says why it is none."""
    try:
        text = json.loads(data)
        version, fields = text["version"], text["record"]
        if version != VERSION:
            raise ValueError(f"version {version!r} is not {VERSION}")
        if zlib.crc32(json.dumps(fields, sort_keys=True).encode()) != text["crc32"]:
            raise ValueError("its checksum is wrong")
        fields["address"] = PCIDeviceAddress.parse(fields["address"])
        fields["original"] = Binding(**fields["original"])
        fields["listed_as"] = fields["listed_as"] and Binding(**fields["listed_as"])
        record = Record(**fields)
    except (KeyError, TypeError, AttributeError, RecursionError, HostdevError) as err:
        raise ValueError(f"it is no record ({err})") from None
    if record.state not in STATES or f"{record.address}{SUFFIX}" != name:
        raise ValueError("its state or its name is wrong")
    return record


class Journal:
    """The records below one state directory, by address."""

    def __init__(self, state: StateDir | str) -> None:
        self.state = StateDir(state) if isinstance(state, str) else state

    def read(self) -> tuple[dict[PCIDeviceAddress, Record], list[BadRecord]]:
        """
        Return all records by address, in order, and the files that are none.

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
        return dict(sorted(records.items())), bad

    def _read_one(self, name: str) -> Record | None:
        """Return what is in a file, None when somebody has removed it since it was listed."""
        if name.endswith(ASIDE):
            raise ValueError("it was set aside earlier")
        data = self.state.read(name)
        return None if data is None else _decode(data, name)

    def write(self, record: Record) -> None:
        """
        Put a record on disk, durably, in the place of an earlier one.

        Raises:
            SysfsError: the directory or the disk refuses; the earlier record stands.
        """
        self.state.replace(f"{record.address}{SUFFIX}", _encode(record))

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
        Rename a file that is no record, so that it stays for a look and stands in nobody's way.

        Raises:
            SysfsError: the directory refuses.
        """
        if not bad.name.endswith(ASIDE):
            self.state.rename(bad.name, f"{bad.name}{ASIDE}")
