# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Finish pending changes: compare the records and the live definition with the devices in QEMU.

This is safe at any time: the guest's owner does it after an event that it did not cause, and any process may do it
before an attach or a detach, or after the process that attached or detached was killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.errors import HostdevError, OperationError, PendingError
from pyhostdev.hypervisor.hostdev_units import Unit
from pyhostdev.qemu.qemu_hotplug.attach import commit
from pyhostdev.qemu.qemu_hotplug.detach import give_back_gone
from pyhostdev.qemu.qemu_hotplug.guest import RunningGuest, in_thread
from pyhostdev.util.record import PLUGGED, PLUGGING, PREPARED, STUCK_STAGED, UNPLUGGING
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

RETURNED, IN_GUEST, PENDING, UNFINISHED = "given-back", "plugged", "pending", "failed"


class Finished(NamedTuple):
    """The outcome for one unit; a unit without a pending change has none."""

    unit: str
    outcome: str
    message: str


async def finish(guest: RunningGuest, *, timeout_s: float) -> list[Finished]:
    """
    Finish or roll back interrupted changes, and reattach units that the guest has released.

    Args:
        timeout_s: the time to wait, per unit, until the guest releases functions that it cannot see.

    Raises:
        MonitorLost: the connection ended.
        SysfsError: the records cannot be read.
    """
    present = await guest.monitor.present_ids()
    found = []
    for unit in await guest.units():
        done = await _finish_one(guest, unit, present, timeout_s)
        found += [] if done is None else [done]
    await in_thread(_tidy, guest, await guest.units(), present)
    return found


async def _finish_one(guest: RunningGuest, unit: Unit, present: Collection[str], timeout_s: float) -> Finished | None:
    try:
        return await _decide(guest, unit, present, timeout_s)
    except PendingError as err:
        return Finished(unit.name, PENDING, str(err))
    except HostdevError as err:
        return Finished(unit.name, UNFINISHED, str(err))


async def _decide(guest: RunningGuest, unit: Unit, present: Collection[str], timeout_s: float) -> Finished | None:
    """Compare one unit's records with QEMU, and finish or roll back its change."""
    ids, phase = guest.ids_of(unit), unit.phase
    there = [device for device in ids if device in present]
    if phase is None or (not ids and (not unit.is_hot or phase == PLUGGED)):
        return None if phase is not None else await _interrupted(guest, unit)
    if not there:
        return await _return(guest, unit)
    if phase == PLUGGING or (phase == PREPARED and unit.is_hot):
        return await _decide_plugging(guest, unit, there, timeout_s)
    if phase == STUCK_STAGED:
        return await _take_back(guest, unit, there, timeout_s)
    if len(there) == len(ids):
        if unit.is_mixed:
            await guest.mark(unit, PLUGGED, guest.plugs_of(unit, PLUGGED))
        return Finished(unit.name, PENDING, "the guest has not released it") if phase == UNPLUGGING else None
    await guest.mark(unit, UNPLUGGING, guest.plugs_of(unit, UNPLUGGING))  # the guest is still releasing the others
    return Finished(unit.name, PENDING, f"the guest has released {len(ids) - len(there)} of {len(ids)} functions")


async def _interrupted(guest: RunningGuest, unit: Unit) -> Finished | None:
    """Finish an interrupted prepare or release of this unit: reattach it, since QEMU does not have it."""
    if not unit.is_hot:
        return None  # part of the guest's start or end, which its owner handles
    return await _return(guest, unit)


async def _return(guest: RunningGuest, unit: Unit) -> Finished:
    await give_back_gone(guest, unit)
    return Finished(unit.name, RETURNED, "the guest does not have it; it was reattached")


async def _decide_plugging(guest: RunningGuest, unit: Unit, there: list[str], timeout_s: float) -> Finished:
    """If QEMU has function 0, record the unit as plugged; otherwise take back the staged functions."""
    hostdevs = await in_thread(guest.state.read_unit, unit.name)
    if len(there) < len(unit.ids) or hostdevs is None:
        return await _take_back(guest, unit, there, timeout_s)
    definition = await in_thread(guest.state.load)
    known = {hostdev.pci_address for hostdev in definition.pci_hostdevs()}
    definition.hostdevs.extend(hostdev for hostdev in hostdevs if hostdev.pci_address not in known)
    await commit(guest, unit, definition)
    return Finished(unit.name, IN_GUEST, "the guest got it before its attach was interrupted")


async def _take_back(guest: RunningGuest, unit: Unit, there: list[str], timeout_s: float) -> Finished:
    """Take staged functions back."""
    try:
        async with guest.unplug_requests() as unplug_requests:
            is_clear = await unplug_requests.clear(there, timeout_s)
    except OperationError:
        await guest.mark(unit, STUCK_STAGED)
        raise
    if is_clear:
        return await _return(guest, unit)
    await guest.mark(unit, STUCK_STAGED)
    return Finished(unit.name, PENDING, "the guest cannot release functions that it does not see")


def _tidy(guest: RunningGuest, units: Collection[Unit], present: Collection[str]) -> None:
    """Remove leftovers of killed processes: live devices without a record, stored units that are not pending."""
    recorded = {address for unit in units for address in unit.addresses}
    live = guest.state.load()
    gone = [
        hostdev.pci_address
        for hostdev in live.pci_hostdevs()
        if hostdev.pci_address not in recorded and hostdev.info.alias not in present
    ]
    names = {unit.name for unit in units if unit.is_hot}
    for name in guest.state.unit_names():
        plugging = any(unit.name == name and unit.phase in (PLUGGING, STUCK_STAGED) for unit in units)
        if name not in names or not plugging:
            guest.state.drop_unit(name)
    if gone:
        guest.forget("", gone)
