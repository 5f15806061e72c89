# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Devices that are with a driver of VFIO and that no record knows.

Another tool gave them to it, or the journal is younger than the bindings: a container's own /run, a directory that a
service manager made anew. Where they came from would be a guess, so they stay.
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


def unrecorded(context: HostdevContext, told: Container[PCIDeviceAddress]) -> Iterator[RecoveryResult]:
    """
    Yield the functions that an override gave to a driver of VFIO, and that have no record; ``told`` had one.

    The records are read last: a device has its record before it is moved, so one that is being prepared now has one.
    """
    found: dict[PCIDeviceAddress, str] = {}
    try:
        for address in _addresses(context):
            try:
                driver = _vfio_driver_by_override(context, address)
            except HostdevError as err:
                yield _untold(address, err)
                continue
            if driver is not None:
                found[address] = driver
        known = context.journal.read()[0]
    except HostdevError as err:
        top = context.root.pci_devices
        yield RecoveryResult(top, None, FAILED, f"it cannot be told whether there are devices without a record: {err}")
        return
    yield from _whose(context, {a: driver for a, driver in found.items() if a not in known and a not in told})


def _addresses(context: HostdevContext) -> Iterator[PCIDeviceAddress]:
    for name in sorted(list_names(context.root, context.root.pci_devices)):
        try:
            yield PCIDeviceAddress.parse(name)
        except InvalidAddressError:
            continue


def _vfio_driver_by_override(context: HostdevContext, address: PCIDeviceAddress) -> str | None:
    """
    Return the driver of VFIO that an override gave a device to; None, too, while a write to it is in flight.

    Variants are told by the ``vfio-dev`` that they make, as their names are many.
    """
    top = context.root.pci_device(address)
    driver = read_link_name(context.root, os.path.join(top, "driver"))
    if driver is None or not is_vfio_driver(context.root, address, driver) or context.writer.is_in_flight(address):
        return None
    return driver if read_attribute(context.root, os.path.join(top, "driver_override")) == driver else None


def _whose(context: HostdevContext, devices: Drivers) -> Iterator[RecoveryResult]:
    """Yield the outcomes for devices that another program moved, which is named where it can be."""
    try:
        found = libvirt_owners(context.root, devices) if devices else ()
        owners = {finding.address: finding.message for finding in found if finding.severity == ERROR}
    except HostdevError as err:
        yield from (_untold(address, err) for address in devices)
        return
    for address, driver in devices.items():
        try:
            by_driverctl = address not in owners and read_driverctl_override(context.root, address) == driver
        except HostdevError as err:
            yield _untold(address, err)
            continue
        if address in owners:
            yield RecoveryResult(str(address), None, KEPT, owners[address])
        elif by_driverctl:
            yield RecoveryResult(str(address), None, KEPT, f"driverctl gives it to '{driver}'")
        else:
            text = f"it is with '{driver}' and no record says where it came from"
            yield RecoveryResult(str(address), None, UNRECORDED, text)


def _untold(address: PCIDeviceAddress, err: HostdevError) -> RecoveryResult:
    return RecoveryResult(str(address), None, FAILED, f"no record says where it came from: {err}")
