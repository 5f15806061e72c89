# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Unplug a unit: ask the guest once, wait until all functions are released, and only then reattach them.

Mirrors: qemuDomainDetachDeviceLive, qemuDomainDetachPrepHostdev (src/qemu/qemu_hotplug.c)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pyhostdev.errors import (
    VIR_ERR_OPERATION_FAILED,
    DeviceInUseError,
    DeviceMissingError,
    OperationError,
    PendingError,
    RefusedError,
)
from pyhostdev.hypervisor.hostdev_units import Unit
from pyhostdev.qemu.qemu_hotplug.attach import not_run
from pyhostdev.qemu.qemu_hotplug.connection import MonitorLost, QEMURefusedError
from pyhostdev.qemu.qemu_hotplug.unplugging import GuestRefusedError
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.iommugroup import read_group
from pyhostdev.util.record import PLUGGED, UNPLUGGING

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.qemu.qemu_hotplug.guest import RunningGuest
    from pyhostdev.util.pciaddress import PCIDeviceAddress


def named_unit(units: Collection[Unit], addresses: Collection[PCIDeviceAddress], owner: str) -> Unit:
    """
    Return the unit that consists of exactly these functions.

    Raises:
        DeviceMissingError: the domain does not have one of them.
        RefusedError: they are only a part of a unit, or belong to several units.
    """
    found = [unit for unit in units if not set(addresses).isdisjoint(unit.addresses)]
    known = {address for unit in found for address in unit.addresses}
    missing = sorted(set(addresses) - known)
    if missing:
        raise DeviceMissingError(f"Domain '{owner}' does not have device {missing[0]}", address=missing[0])
    if len(found) > 1:
        text = f"Functions of units {found[0].name} and {found[1].name} are named: detach one unit at a time"
        raise RefusedError([Finding("several-devices", ERROR, found[1].addresses[0], text)])
    left = sorted(set(found[0].addresses) - set(addresses))
    if left:
        text = (
            f"Function {left[0]} belongs to the unit {found[0].name} and is not named: a guest releases all "
            "functions of a slot together"
        )
        error = RefusedError([Finding("partial-unit", ERROR, left[0], text)])
        error.libvirt_code = VIR_ERR_OPERATION_FAILED
        raise error
    return found[0]


def _share_slots_with_others(live: DomainDef, wanted: Collection[PCIDeviceAddress]) -> bool:
    """Tell whether another device of the guest is in the slot of one of these functions."""
    places = {id(info): info.pci.pci for _, info in live.device_infos() if info.pci is not None}
    mine = {id(h.info) for h in live.pci_hostdevs() if h.pci_address in wanted}
    slots = {place[:3] for identity, place in places.items() if identity in mine}
    return any(place[:3] in slots for identity, place in places.items() if identity not in mine)


def named_part(units: Collection[Unit], addresses: Collection[PCIDeviceAddress], live: DomainDef, owner: str) -> Unit:
    """
    Return a unit reduced to the named functions, which libvirt allows to unplug alone.

    Raises:
        DeviceMissingError: the domain does not have one of them.
        OperationError: another device of the guest is in the slot of one of them.

    Mirrors: qemuDomainDetachPrepHostdev, qemuIsMultiFunctionDevice (src/qemu/qemu_hotplug.c)
    """
    wanted = set(addresses)
    found = next((unit for unit in units if wanted <= set(unit.addresses)), None)
    if found is None:
        missing = min(wanted)
        raise DeviceMissingError(f"Domain '{owner}' does not have device {missing}", address=missing)
    if _share_slots_with_others(live, wanted):
        text = f"Another device of the guest is in the slot of device {min(wanted)}: both are unplugged together"
        raise OperationError(text, reason="partial-unit", address=min(wanted))
    return found._replace(members=tuple(record for record in found.members if record.address in wanted))


def refuse_disks(unit: Unit, live: DomainDef) -> None:
    """
    Refuse a unit with the controller of a running guest's NVMe disk, which QEMU itself uses.

    Raises:
        RefusedError: has one finding per controller.
    """
    disks = {hostdev.pci_address: hostdev.nvme_disks for hostdev in live.nvme_hostdevs()}
    found = [
        Finding("in-use", ERROR, address, f"Device {address} has disk '{disks[address][0]}' of the running guest")
        for address in unit.addresses
        if address in disks
    ]
    if found:
        raise RefusedError(found)


async def detach(guest: RunningGuest, unit: Unit, *, timeout_s: float) -> list[PCIDeviceAddress]:
    """
    Ask a running guest to release a unit, wait, and reattach the unit to the host.

    It is safe to repeat: released functions are skipped, and a pending request is not sent again.

    Returns:
        The functions that were reattached.

    Raises:
        RefusedError: the guest has not run yet, or has another unit of the same group; the guest was not asked.
            PendingError: the guest was asked but has not released the unit; nothing was reattached.
            OperationError: QEMU or the guest refused (the unit stays plugged), or the unit could not be reattached.
    """
    ids = guest.ids_of(unit)
    if not ids:
        await _refuse_open_group(guest, unit)
        return await guest.complete(unit)
    if not await guest.monitor.has_run():
        raise RefusedError([not_run(guest.owner)])
    unit = await guest.mark(unit, UNPLUGGING, guest.plugs_of(unit, UNPLUGGING))
    try:
        is_released = await _asked(guest, ids, timeout_s)
    except (QEMURefusedError, GuestRefusedError) as err:
        await guest.mark(unit, PLUGGED)
        err.rolled_back = None  # the request was refused, and nothing was changed
        raise
    except MonitorLost:
        raise
    except OperationError as err:
        raise PendingError(f"{err.message}; {_asked_text(guest.owner, unit)}", reason="pending") from err
    if not is_released:
        raise PendingError(f"{_asked_text(guest.owner, unit)} within {timeout_s:g} s", reason="pending")
    return await give_back_gone(guest, unit)


async def give_back_gone(guest: RunningGuest, unit: Unit) -> list[PCIDeviceAddress]:
    """
    Reattach a unit that the guest has released.

    Raises:
        PendingError: the guest has another unit of the same IOMMU group: a group is reattached as a whole.
        OperationError: a device could not be reattached; ``recover`` finishes it.
    """
    other = await other_member(guest, unit)
    if other is not None:
        text = f"The guest released unit {unit.name}, but still has unit {other.name} of the same IOMMU group"
        raise PendingError(f"{text}: both are reattached together", reason="pending")
    try:
        return await guest.complete(unit)
    except OperationError as err:
        err.rolled_back = False
        raise


async def other_member(guest: RunningGuest, unit: Unit) -> Unit | None:
    """Return another unit in QEMU that shares an IOMMU group with this one, None without one."""
    present = await guest.monitor.present_ids()
    groups = _groups(guest, unit)
    mine = set(unit.addresses)
    for other in await guest.units():
        rest = other._replace(members=tuple(record for record in other.members if record.address not in mine))
        is_there = bool(rest.members) and not present.isdisjoint(guest.ids_of(rest))
        if is_there and not groups.isdisjoint(_groups(guest, rest)):
            return rest
    return None


def _groups(guest: RunningGuest, unit: Unit) -> set[int]:
    found = (read_group(guest.manager.root, address) for address in unit.addresses)
    return {group for group in found if group is not None}


async def _refuse_open_group(guest: RunningGuest, unit: Unit) -> None:
    """
    Refuse to reattach functions while the guest has others of their IOMMU group.

    Raises:
        DeviceInUseError: the guest has others of the group; nothing was touched.
    """
    other = await other_member(guest, unit)
    if other is not None:
        text = f"The guest has unit {other.name} of the same IOMMU group as {unit.name}: detach that one first"
        raise DeviceInUseError(text, reason="in-use", address=unit.addresses[0])


async def _asked(guest: RunningGuest, ids: list[str], timeout_s: float) -> bool:
    """Request the removal of function 0, and wait for all functions; return False on a timeout."""
    async with guest.unplug_requests() as unplug_requests:
        present = await guest.monitor.present_ids()
        first = next((device for device in ids if device in present), None)
        if first is not None:
            await unplug_requests.ask(first)
        return await unplug_requests.wait(ids, timeout_s)


def _asked_text(owner: str, unit: Unit) -> str:
    return f"The guest of domain '{owner}' was asked to release unit {unit.name} and has not done so"
