# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The lists of a host's devices, as they are on disk: in use, and detached without an owner.
"""

from __future__ import annotations

import os

from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.journal import PREPARED, BadRecord, Journal, Record
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.statedir import StateDir
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import read_link_name

ROLES = {"assigned": "assigned", "unassigned": "kept"}  # the role in a record, and its public name


class ActiveDevice(NamedTuple):
    """One device on the active list."""

    address: PCIDeviceAddress
    owner: str | None


class Status(NamedTuple):
    """The lists as they are on disk, each sorted by address."""

    active: list[ActiveDevice]
    inactive: list[PCIDeviceAddress]
    problems: list[BadRecord]


class RecordedDevice(NamedTuple):
    """
    One device with a record, and the facts from its record and the host.

    ``role`` is assigned or kept (declared, but not given to the guest); None if the record does not contain it.
    ``driver`` is the present driver, ``original_driver`` the one to restore; None means no driver. ``since`` is in
    seconds since 1970 UTC, None if the record does not contain it. ``unit`` names the device with all of its functions,
    None if no domain has it. ``phase`` is the progress of plugging or unplugging, None while the device is prepared or
    released.
    """

    address: PCIDeviceAddress
    is_active: bool
    owner: str | None
    role: str | None
    driver: str | None
    original_driver: str | None
    since: int | None
    unit: str | None = None
    phase: str | None = None


def read_status(state: StateDir) -> Status:
    """
    Return the lists in a state directory; the directory is not created.

    Raises:
        SysfsError: the directory exists but cannot be read.
    """
    records, problems = Journal(state).read()
    active = [ActiveDevice(r.address, r.owner) for r in records.values() if r.is_active]
    inactive = [r.address for r in records.values() if not r.is_active]
    return Status(active, inactive, problems)


def read_recorded_devices(root: HostRoot, state: StateDir) -> tuple[list[RecordedDevice], list[BadRecord]]:
    """
    Return the devices of both lists with all known facts, sorted by address; and the files that are not valid records.

    Raises:
        SysfsError: the state directory exists but cannot be read, or a device cannot be examined.
    """
    records, problems = Journal(state).read()
    return [_recorded_device(root, record) for record in records.values()], problems


def _recorded_device(root: HostRoot, record: Record) -> RecordedDevice:
    return RecordedDevice(
        address=record.address,
        is_active=record.is_active,
        owner=record.owner,
        role=None if record.asked is None else ROLES.get(record.asked.role),
        driver=read_link_name(root, os.path.join(root.pci_device(record.address), "driver")),
        original_driver=record.original.driver,
        since=record.since,
        unit=unit_of_record(root, record) if record.is_active else None,
        phase=_phase_of(record),
    )


def unit_of_record(root: HostRoot, record: Record) -> str:
    """
    Return the name of the unit that a device belongs to.

    Raises:
        SysfsError: the device cannot be examined.
    """
    if record.plug is not None:
        return record.plug.unit
    is_vf = read_link_name(root, os.path.join(root.pci_device(record.address), "physfn")) is not None
    return unit_name(record.address, is_virtual_function=is_vf)


def _phase_of(record: Record) -> str | None:
    if record.state != PREPARED:
        return None
    return PREPARED if record.plug is None else record.plug.phase


def unit_name(address: PCIDeviceAddress, *, is_virtual_function: bool) -> str:
    """Return the name of a unit: the address of the device without a function; a VF is a unit of its own."""
    return str(address) if is_virtual_function else str(address)[:-2]
