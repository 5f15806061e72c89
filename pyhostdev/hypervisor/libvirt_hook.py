# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a hook of libvirt does before a guest starts and after it has ended; libvirt itself is never called.

libvirt detaches and reattaches devices with ``managed='yes'``. The hook plans for all devices, and prepares the others:
they get the name of the guest as their owner, and their drivers back at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE, LibvirtRelease
from pyhostdev.errors import RefusedError
from pyhostdev.hypervisor.hostdev_planner import build_plan
from pyhostdev.hypervisor.hostdev_prepare import is_prepared_already
from pyhostdev.hypervisor.vf_network import vf_consents

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.util.journal import Record
    from pyhostdev.util.pciaddress import PCIDeviceAddress

    Records = Mapping[PCIDeviceAddress, Record]


def prepare_begin(
    manager: HostdevManager,
    definition: DomainDef,
    guest: str,
    *,
    policy: str = "auto",
    accept: Iterable[str] = (),
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> Plan:
    """
    Refuse a start whose plan has obstacles, else prepare the devices that libvirt leaves, and return the plan of all.

    The guest does not run yet, so a device that it owns is left from a start that was interrupted: it is used again,
    or given back first if the definition has changed.

    Args:
        policy, accept, release: as for ``Host.plan``; the network of virtual functions is set by libvirt.

    Raises:
        RefusedError: the plan has obstacles; nothing was touched.
        OperationError, SysfsError: as ``HostdevManager.prepare`` and ``release``.
    """
    records, _ = manager.journal.read()
    accept = [*accept, *vf_consents(definition)]
    others = _without_owner(records, guest)
    whole = _plan(manager, _managed(definition), guest, others, policy=policy, accept=accept, release=release)
    if not whole.ok:
        raise RefusedError(whole.obstacles, whole)
    own = _managed(_left_by_libvirt(definition))
    left = _plan(manager, own, guest, records, policy="off", accept=accept, release=release)
    if is_prepared_already(left, guest, None, records):
        return whole
    if any(record.is_active and record.owner == guest for record in records.values()):
        manager.release(guest)
    if left.requests:
        manager.prepare(left, guest)
    return whole


def release_end(manager: HostdevManager, guest: str) -> list[PCIDeviceAddress]:
    """
    Give back what the hook has prepared, and return the addresses; libvirt has given back its devices before.

    Raises:
        DeviceInUseError, OperationError: as ``HostdevManager.release``.
    """
    return manager.release(guest, guest_ended=True)


def _plan(
    manager: HostdevManager,
    definition: DomainDef,
    guest: str,
    records: Records,
    *,
    policy: str,
    accept: list[str],
    release: LibvirtRelease,
) -> Plan:
    return build_plan(
        manager.host,
        definition,
        owner=guest,
        policy=policy,
        records=records,
        accept=accept,
        release=release,
    )


def _without_owner(records: Records, guest: str) -> dict[PCIDeviceAddress, Record]:
    """Return the records as if the guest's devices were detached without an owner: they are not obstacles for it."""
    return {a: r.detached(r.since) if r.is_active and r.owner == guest else r for a, r in records.items()}


def _left_by_libvirt(definition: DomainDef) -> DomainDef:
    """Return a copy with only those functions of the host that are not managed: libvirt does not detach them."""
    copy = definition.copy()
    controllers = {hostdev.pci_address for hostdev in copy.nvme_hostdevs() if not hostdev.managed}
    copy.disks = [disk for disk in copy.disks if not controllers.isdisjoint(disk.nvme_controllers())]
    copy.hostdevs = [hostdev for hostdev in copy.hostdevs if hostdev.is_pci and not hostdev.managed]
    copy.interfaces = [net for net in copy.interfaces if net.hostdev is not None and not net.hostdev.managed]
    left = {hostdev.pci_address for hostdev in copy.host_functions()}
    return copy.with_hostdev_pins([pin for pin in copy.hostdev_pins() if pin.address in left])


def _managed(definition: DomainDef) -> DomainDef:
    """Return a copy in which each function of the host is managed: by libvirt or by the hook."""
    copy = definition.copy()
    for source in (source for disk in copy.disks for source in disk.nvme_sources()):
        source.managed = True
    for hostdev in copy.hostdevs:
        if hostdev.is_pci:
            hostdev.managed = True
    for net in copy.interfaces:
        if net.hostdev is not None:
            net.managed = True
    return copy
