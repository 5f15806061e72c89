# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Devices of domains that run already: on the active list again, without being touched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyhostdev.errors import DeviceInUseError
from pyhostdev.util.journal import PREPARED, Record, read_boot_id
from pyhostdev.util.pcidriver import VFIO_PCI

if TYPE_CHECKING:
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.hypervisor.virhostdev import HostdevManager


def update_active(
    manager: HostdevManager, driver_name: str, domain_name: str, hostdevs: Sequence[DomainHostdevDef]
) -> None:
    """Write the records that a running domain's devices lack; the caller holds their locks."""
    records, _ = manager.journal.read()
    for hostdev in hostdevs:
        record = records.get(hostdev.pci_address)
        if record is not None and record.is_active and record.owner != domain_name:
            text = f"Device {record.address} is in use by domain '{record.owner}' ({driver_name} says '{domain_name}')"
            raise DeviceInUseError(text, reason="in-use", address=record.address)
    boot_id, name = read_boot_id(manager.root), os.urandom(8).hex()
    for position, hostdev in enumerate(hostdevs):
        address, record = hostdev.pci_address, records.get(hostdev.pci_address)
        now = manager.restorer.mover.read_binding(address)
        if record is None:
            target = now.driver or VFIO_PCI
            record = Record(
                address, PREPARED, domain_name, hostdev.managed, False, target, now, boot_id, None, name, position
            )
        elif not record.is_active:
            record = record._replace(
                state=PREPARED, owner=domain_name, listed_as=now, change=name, position=position
            )
        manager.journal.write(record)
