# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Units: the devices that were plugged into a running guest together, and the progress of plugging and unplugging.

A change of the records takes the owner's lock and reads them again, so that it never undoes a release of all devices
at the guest's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pyhostdev.hypervisor.hostdev_release import GIVE_BACK_WAIT_S, kept_devices_last, release
from pyhostdev.hypervisor.hostdev_status import unit_of_record
from pyhostdev.util.journal import PREPARED, Record
from pyhostdev.util.record import PLUGGED, PLUGGING, STUCK_STAGED, UNPLUGGING, Plug
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_context import HostdevContext
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_ORDER = (STUCK_STAGED, PREPARED, PLUGGING, PLUGGED, UNPLUGGING)


class Unit(NamedTuple):
    """The functions of one host device that were prepared for its owner together."""

    name: str
    change: str
    members: tuple[Record, ...]

    @property
    def phase(self) -> str | None:
        """
        The phase in the records, ``prepared`` without one, None while the unit is being prepared or released.

        If a process was killed while it marked the members, these have two phases. The step after the marking did not
        start then, so the earlier phase counts.
        """
        if any(record.state != PREPARED for record in self.members):
            return None
        return min(self._phases, key=_ORDER.index)

    @property
    def _phases(self) -> set[str]:
        return {PREPARED if record.plug is None else record.plug.phase for record in self.members}

    @property
    def is_mixed(self) -> bool:
        """True if the members have different phases."""
        return len(self._phases) > 1 or len({record.plug is None for record in self.members}) > 1

    @property
    def is_hot(self) -> bool:
        """True if it was plugged into a running guest, or its removal was requested."""
        return all(record.plug is not None for record in self.members)

    @property
    def addresses(self) -> list[PCIDeviceAddress]:
        """The functions, sorted."""
        return sorted(record.address for record in self.members)

    @property
    def ids(self) -> list[str]:
        """The ids in QEMU of the assigned functions; function 0 of the guest slot first."""
        plugs = [record.plug for record in self.members if record.plug is not None]
        named = [(plug.guest or "", plug.alias) for plug in plugs if plug.alias is not None]
        return [alias for _, alias in sorted(named)]

    def has(self, record: Record) -> bool:
        """Tell whether a record belongs to this unit."""
        return record.change == self.change and record.address in {member.address for member in self.members}


def units_of(root: HostRoot, records: Iterable[Record], owner: str) -> list[Unit]:
    """Return the units of an owner, sorted by name."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.is_active and record.owner == owner and not record.is_newer:
            found.setdefault((unit_of_record(root, record), record.change), []).append(record)
    return [Unit(name, change, tuple(members)) for (name, change), members in sorted(found.items())]


def read_units(context: HostdevContext, owner: str) -> list[Unit]:
    """
    Read the units of an owner from the records.

    Raises:
        SysfsError: the records cannot be read.
    """
    return units_of(context.root, context.journal.read()[0].values(), owner)


def mark(
    context: HostdevContext, owner: str, unit: Unit, phase: str, plugs: Mapping[PCIDeviceAddress, Plug] | None = None
) -> Unit:
    """
    Record the phase of a unit and return the unit; a member that was released in the meantime stays released.

    Args:
        plugs: the data for records of members that have none yet.

    Raises:
        DeviceInUseError: the owner's lock was not free in time.
        SysfsError: a record cannot be written.
    """
    with context.locked([], owner, GIVE_BACK_WAIT_S):
        now = context.journal.read()[0]
        marked = []
        for member in unit.members:
            record = now.get(member.address)
            if record is None or not unit.has(record) or record.state != PREPARED:
                continue
            plug = record.plug or (plugs or {}).get(member.address) or Plug(unit.name, phase, None, None)
            record = record._replace(plug=plug._replace(phase=phase))
            if record != now[member.address]:
                context.journal.write(record)
            marked.append(record)
    return unit._replace(members=tuple(marked))


def give_back(context: HostdevContext, owner: str, unit: Unit) -> list[PCIDeviceAddress]:
    """
    Reattach a unit after the guest has released it; kept functions come last.

    Raises:
        DeviceInUseError: the group is still open, or the owner's lock was not free in time.
        OperationError: a device could not be restored; its record stays and the call can be repeated.
    """
    return release(context, owner, unit.has, guest_ended=True, order=kept_devices_last)
