# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One device without an owner: detach it, reattach it, reset it.

Mirrors: virHostdevPCINodeDeviceDetach and its relatives (src/hypervisor/virhostdev.c). A device that the kernel would
refuse after its host driver is unbound is refused here before it is touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from pyhostdev.errors import DeviceInUseError, DeviceMissingError, OperationError, RefusedError
from pyhostdev.hypervisor.hostdev_checks import consents, driver_obstacle, held_groups, host_needs, libvirt_owners
from pyhostdev.hypervisor.hostdev_holders import check_are_free, refuse_used_vfs
from pyhostdev.hypervisor.hostdev_release import refuse_newer
from pyhostdev.util.driverctl import read_driverctl_override
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.journal import PREPARING, RELEASING, Record, read_boot_id, read_clock
from pyhostdev.util.pciassign import (
    denied_obstacle,
    endpoint_obstacle,
    group_obstacle,
    has_iommu,
    vfs_obstacle,
)
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.transaction import Transaction, mark_unfinished
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.vfiodriver import GENERIC_NAMES, DriverChoice, VFIODrivers, loaded_driver

if TYPE_CHECKING:
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.hostdev_context import HostdevContext
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.virpci import PCIDevice


def detach(
    context: HostdevContext,
    address: PCIDeviceAddress,
    name: str | None,
    accept: Iterable[str],
    release: LibvirtRelease,
) -> None:
    """
    Detach one device; the caller holds its locks.

    A device that is already detached stays as it is if it has the requested driver. Otherwise it moves to that driver,
    and its record keeps the original one.

    Args:
        name: the driver or its module; None for the best match of the host's VFIO drivers.
        release: the libvirt whose choice of drivers is meant.

    Mirrors: virPCIDeviceDetach, which also binds a listed device to the stub (src/util/virpci.c)
    """
    listed = context.journal.read()[0].get(address)
    _refuse_active(listed)
    dev = _present(context, address)
    if listed is not None and not _is_detached_still(dev, listed):
        listed = None
    drivers = VFIODrivers(context.root, variants=release.has("vfio-variants"))
    choice = drivers.choose(dev, name)
    is_there = dev.driver == choice.driver
    if listed is not None and is_there:
        return
    found = [*_obstacles(context, dev, None if is_there else choice)]
    if name not in GENERIC_NAMES and not is_there:
        found += [obstacle for obstacle in (drivers.mismatch(dev, choice),) if obstacle is not None]
    _refuse(found, accept, context, dev, moves=not is_there)
    if choice.module is not None:
        context.writer.load_module(choice.module)
        choice = DriverChoice(loaded_driver(context.root, choice.module), None, choice.why)
    record = _intent(context, address, choice.driver, listed, moves=not is_there)
    with Transaction() as change:
        change.on_error(_undo, context, record, listed)
        context.journal.write(record)
        if record.moved and not is_there:
            context.restorer.mover.detach(address, record.listed_as or record.original, choice.driver)
        context.journal.write(record.detached(record.since))


def _is_detached_still(dev: PCIDevice, listed: Record) -> bool:
    """Tell whether a record is about this device, and no other program has bound the device to a driver since."""
    is_same = listed.original.incarnation == dev.incarnation
    return is_same and (dev.is_vfio or dev.driver in (None, listed.target))


def _intent(
    context: HostdevContext, address: PCIDeviceAddress, driver: str, listed: Record | None, *, moves: bool
) -> Record:
    now = context.restorer.mover.read_binding(address)
    if listed is None:
        record = Record(
            address=address,
            state=PREPARING,
            owner=None,
            managed=False,
            moved=moves,
            target=driver,
            original=now,
            boot_id=None,
        )
    else:
        record = listed._replace(state=PREPARING, moved=True, target=driver, listed_as=now)
    return record._replace(boot_id=read_boot_id(context.root), change=os.urandom(8).hex(), since=read_clock())


def _undo(context: HostdevContext, record: Record, listed: Record | None) -> None:
    """Restore the device and its record."""
    context.restorer.undo(record)
    if listed is not None:
        context.journal.write(listed)


def reattach(context: HostdevContext, address: PCIDeviceAddress) -> None:
    """Reattach one detached device; the caller holds its locks."""
    records = context.journal.read()[0]
    record = records.get(address)
    _refuse_active(record)
    if record is None:
        saved = read_driverctl_override(context.root, address)
        other = "" if saved is None else f": driverctl binds it to {saved!a}"
        raise OperationError(f"Device {address} was not detached by this manager{other}", address=address)
    refuse_used_vfs(context.root, [record], records.values())
    check_are_free(context.root, context.writer, [record.address])
    with mark_unfinished():
        record = record._replace(state=RELEASING, listed_as=None)
        context.journal.write(record)
        context.restorer.give_back(record)


def reset(context: HostdevContext, address: PCIDeviceAddress, accept: Iterable[str]) -> None:
    """Reset one device that no domain uses; the caller holds its locks."""
    record = context.journal.read()[0].get(address)
    _refuse_active(record)
    dev = _present(context, address)
    _refuse(_obstacles(context, dev, None), accept, context, dev, moves=dev.driver is not None and not dev.is_vfio)
    if dev.usable_reset() is None:
        raise OperationError(f"Device {address} has no reset that leaves other functions alone", address=address)
    context.restorer.mover.reset(address)


def _present(context: HostdevContext, address: PCIDeviceAddress) -> PCIDevice:
    dev = context.host.pci_device(address)
    if dev is None:
        raise DeviceMissingError(f"Device {address} is not on this host", reason="device-missing", address=address)
    return dev


def _obstacles(context: HostdevContext, dev: PCIDevice, choice: DriverChoice | None) -> Iterator[Finding]:
    """Yield what the kernel would refuse; choice is the new driver of the device, None if it does not move."""
    if context.writer.is_in_flight(dev.address):
        message = f"A write to device {dev.address} has not returned from the kernel"
        yield Finding("in-doubt", ERROR, dev.address, message)
    found = [endpoint_obstacle(dev)]
    if choice is not None:
        vfs = 0 if dev.is_virtual_function else len(dev.read_virtual_functions())
        found += [vfs_obstacle(dev.address, vfs), group_obstacle(dev, has_iommu(context.root))]
        found += [driver_obstacle(context.host, dev.address, choice.driver, choice.module)]
        found += [denied_obstacle(dev) if choice.driver == VFIO_PCI else None]
    yield from (obstacle for obstacle in found if obstacle is not None)


def _refuse(
    obstacles: Iterable[Finding], accept: Iterable[str], context: HostdevContext, dev: PCIDevice, *, moves: bool
) -> None:
    """
    Refuse with all findings at once.

    Raises:
        RefusedError: the kernel would refuse, the device is in use, or the host would lose it without consent.
    """
    findings = list(obstacles)
    if dev.is_vfio and dev.iommu_group is not None:  # a holder of the group does not use a device with another driver
        findings += held_groups(context.root, {dev.iommu_group: dev.address}, {})
    findings += [f for f in libvirt_owners(context.root, [dev.address]) if f.severity == ERROR]
    accepted = consents(accept, context.root)
    needs = host_needs(context.root, [dev] if moves else [])
    findings += [need for need in needs if (need.reason, str(need.address)) not in accepted]
    if findings:
        raise RefusedError(findings)


def _refuse_active(record: Record | None) -> None:
    refuse_newer([record] if record is not None else [])
    if record is not None and record.is_active:
        raise DeviceInUseError(
            f"Device {record.address} is in use by domain '{record.owner}'"
            if record.owner is not None
            else f"Device {record.address} was left in the middle of a change: recover it first",
            reason="in-use",
            address=record.address,
        )
