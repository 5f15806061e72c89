# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The lists of a host's devices, as they are on disk: in use, and detached for nobody.
"""

from __future__ import annotations

from typing import NamedTuple

from pyhostdev.util.journal import BadRecord, Journal
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.statedir import StateDir


class ActiveDevice(NamedTuple):
    """One device on the active list."""

    address: PCIDeviceAddress
    owner: str | None


class Status(NamedTuple):
    """The lists as they are on disk, each sorted by address."""

    active: list[ActiveDevice]
    inactive: list[PCIDeviceAddress]
    problems: list[BadRecord]


def read_status(state: StateDir) -> Status:
    """
    Return the lists that a state directory holds; the directory is not created.

    Raises:
        SysfsError: the directory is there and cannot be read.
    """
    records, problems = Journal(state).read()
    active = [ActiveDevice(r.address, r.owner) for r in records.values() if r.is_active]
    inactive = [r.address for r in records.values() if not r.is_active]
    return Status(active, inactive, problems)
