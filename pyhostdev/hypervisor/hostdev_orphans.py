# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Devices that are bound to a VFIO driver and have no record.

Another tool bound them, or the journal is younger than the bindings: a container's own /run, or a directory that a
service manager created again. Their original driver is unknown, so they are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING

from pyhostdev.errors import HostdevError, InvalidAddressError
from pyhostdev.hypervisor.hostdev_checks import libvirt_owners
from pyhostdev.hypervisor.hostdev_result import FAILED, KEPT, UNRECORDED, RecoveryResult
from pyhostdev.util.driverctl import read_driverctl_override
from pyhostdev.util.finding import ERROR
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virfile import list_names, read_attribute, read_link_name
from pyhostdev.util.virpci import is_vfio_driver

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_context import HostdevContext

Drivers = Mapping[PCIDeviceAddress, str]


def unrecorded(context: HostdevContext, recorded: Container[PCIDeviceAddress]) -> Iterator[RecoveryResult]:
    """
    Yield the functions that an override bound to a VFIO driver, and that have no record, except those in ``recorded``.

    The records are read last: a device gets its record before it moves, so a device being prepared now has one.
    """
    found: dict[PCIDeviceAddress, str] = {}
    try:
        for address in _addresses(context):
            try:
                driver = _vfio_driver_by_override(context, address)
            except HostdevError as err:
                yield _failed_result(address, err)
                continue
            if driver is not None:
                found[address] = driver
        known = context.journal.read()[0]
    except HostdevError as err:
        top = context.root.pci_devices
        yield RecoveryResult(top, None, FAILED, f"devices without a record cannot be found: {err}")
        return
    yield from _moved_by_others(
        context, {a: driver for a, driver in found.items() if a not in known and a not in recorded}
    )


def _addresses(context: HostdevContext) -> Iterator[PCIDeviceAddress]:
    for name in sorted(list_names(context.root, context.root.pci_devices)):
        try:
            yield PCIDeviceAddress.parse(name)
        except InvalidAddressError:
            continue


def _vfio_driver_by_override(context: HostdevContext, address: PCIDeviceAddress) -> str | None:
    """
    Return the VFIO driver that an override bound a device to; None also while a write to the device is in flight.

    Variants are recognized by their ``vfio-dev`` directory, because they have many names.
    """
    top = context.root.pci_device(address)
    driver = read_link_name(context.root, os.path.join(top, "driver"))
    if driver is None or not is_vfio_driver(context.root, address, driver) or context.writer.is_in_flight(address):
        return None
    return driver if read_attribute(context.root, os.path.join(top, "driver_override")) == driver else None


def _moved_by_others(context: HostdevContext, devices: Drivers) -> Iterator[RecoveryResult]:
    """Yield the outcomes for devices that another program moved; the program is named if it is known."""
    try:
        found = libvirt_owners(context.root, devices) if devices else ()
        owners = {finding.address: finding.message for finding in found if finding.severity == ERROR}
    except HostdevError as err:
        yield from (_failed_result(address, err) for address in devices)
        return
    for address, driver in devices.items():
        try:
            by_driverctl = address not in owners and read_driverctl_override(context.root, address) == driver
        except HostdevError as err:
            yield _failed_result(address, err)
            continue
        if address in owners:
            yield RecoveryResult(str(address), None, KEPT, owners[address])
        elif by_driverctl:
            yield RecoveryResult(str(address), None, KEPT, f"driverctl binds it to '{driver}'")
        else:
            text = f"it is bound to '{driver}' and has no record of its original driver"
            yield RecoveryResult(str(address), None, UNRECORDED, text)


def _failed_result(address: PCIDeviceAddress, err: HostdevError) -> RecoveryResult:
    return RecoveryResult(str(address), None, FAILED, f"it has no record of its original driver: {err}")
