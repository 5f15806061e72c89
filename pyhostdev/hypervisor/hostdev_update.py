# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Record the devices of domains that already run, without touching the devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pyhostdev.errors import DeviceInUseError
from pyhostdev.hypervisor.hostdev_release import refuse_newer
from pyhostdev.util.journal import PREPARED, Record, read_boot_id, read_clock
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.transaction import Transaction

if TYPE_CHECKING:
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.hypervisor.hostdev_context import HostdevContext
    from pyhostdev.util.pciaddress import PCIDeviceAddress


def update_active(
    context: HostdevContext, driver_name: str, domain_name: str, hostdevs: Sequence[DomainHostdevDef]
) -> None:
    """
    Write the missing records of a running domain's devices, all or none; the caller holds their locks.

    Raises:
        DeviceInUseError: a device belongs to another domain.
        OperationError, SysfsError: a device cannot be read, or a record cannot be written.
    """
    records, _ = context.journal.read()
    refuse_newer(records[h.pci_address] for h in hostdevs if h.pci_address in records)
    for hostdev in hostdevs:
        record = records.get(hostdev.pci_address)
        if record is not None and record.is_active and record.owner != domain_name:
            text = f"Device {record.address} is in use by domain '{record.owner}' ({driver_name} says '{domain_name}')"
            raise DeviceInUseError(text, reason="in-use", address=record.address)
    with Transaction() as change:
        for record in list(_noted(context, domain_name, hostdevs, records)):  # read everything before the first write
            before = records.get(record.address)
            if before is None:
                change.on_error(context.journal.remove, record.address)
            else:
                change.on_error(context.journal.write, before)
            context.journal.write(record)


def _noted(
    context: HostdevContext,
    domain_name: str,
    hostdevs: Sequence[DomainHostdevDef],
    records: Mapping[PCIDeviceAddress, Record],
) -> Iterator[Record]:
    """Yield the records to write: for devices without a record, and for devices detached without an owner."""
    boot_id, name, since = read_boot_id(context.root), os.urandom(8).hex(), read_clock()
    for position, hostdev in enumerate(hostdevs):
        address, record = hostdev.pci_address, records.get(hostdev.pci_address)
        if record is not None and record.is_active:
            continue
        now = context.restorer.mover.read_binding(address)
        if record is not None:
            record = record._replace(state=PREPARED, owner=domain_name, listed_as=now)
        else:
            record = Record(
                address=address,
                state=PREPARED,
                owner=domain_name,
                managed=hostdev.managed,
                moved=False,
                target=now.driver or VFIO_PCI,
                original=now,
                boot_id=boot_id,
            )
        yield record._replace(change=name, position=position, since=since)
