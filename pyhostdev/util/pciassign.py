# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Obstacles between a function and any guest: the rules that need no domain.

A plan applies them to the functions that a domain declares, a scan to any function. A rule reports and decides nothing.
"""

from __future__ import annotations

import os

from pyhostdev.util.deprecation import deprecated_names
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.pciregs import CLASS_BASE_BRIDGE
from pyhostdev.util.virfile import is_directory, read_attribute
from pyhostdev.util.virpci import GroupMember, PCIDevice

# Drivers that do not claim DMA for the host (driver_managed_dma, drivers/pci since 5.19); vfio variants are recognized
# by their vfio-dev directory.
DMA_FREE_DRIVERS = frozenset({VFIO_PCI, "pci-stub", "pcieport"})

# Accelerators with which a guest could bring down the host (drivers/vfio/pci/vfio_pci.c, Linux 5.9)
VFIO_DENIED = frozenset((0x8086, device) for device in (0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9))


def keeps_dma(member: GroupMember) -> bool:
    """
    Tell whether a group member's driver keeps the group's DMA for the host.

    Source: iommu_device_use_default_domain (drivers/iommu/iommu.c), Linux 5.19; an unbound member keeps nothing
    """
    return member.driver is not None and not member.is_vfio and member.driver not in DMA_FREE_DRIVERS


def has_iommu(root: HostRoot) -> bool:
    """Tell whether IOMMU groups are expected: a sparse directory may leave them out, the live host may not."""
    return root.is_live or is_directory(root, root.iommu_groups)


def endpoint_obstacle(dev: PCIDevice, *, trust_class: bool = False) -> Finding | None:
    """
    Return a finding if a function is a bridge, a PCI bridge or a host bridge.

    Args:
        trust_class: read the header type, which costs a bus cycle, only for bridges.
    """
    reads_header = not trust_class or dev.class_ is None or dev.class_ >> 16 == CLASS_BASE_BRIDGE
    if dev.is_host_bridge:
        message = f"Device {dev.address} is a host bridge, which cannot be given to a guest"
        return Finding("not-endpoint", ERROR, dev.address, message)
    if not dev.is_bridge and not (reads_header and dev.is_endpoint is False):
        return None
    message = f"Device {dev.address} is a bridge, which cannot be given to a guest"
    return Finding("not-endpoint", ERROR, dev.address, message)


def vfs_obstacle(address: PCIDeviceAddress, count: int) -> Finding | None:
    """
    Return a finding if a PF has VFs enabled.

    Source: vfio_pci_core_register_device (drivers/vfio/pci/vfio_pci_core.c) refuses such a PF after its host driver is
        unbound
    """
    if not count:
        return None
    message = f"Device {address} has {count} virtual functions enabled, and vfio-pci refuses such a device"
    return Finding("pf-with-vfs", ERROR, address, message)


def group_obstacle(dev: PCIDevice, has_groups: bool) -> Finding | None:
    """Return a finding if the host does not translate a function's DMA, provided it has groups at all."""
    if dev.iommu_group is not None or not has_groups:
        return None
    return Finding("no-iommu-group", ERROR, dev.address, f"Device {dev.address} has no IOMMU group")


def denied_obstacle(dev: PCIDevice) -> Finding | None:
    """
    Return a finding if vfio-pci refuses the device by default.

    Source: vfio_pci_dev_in_denylist (drivers/vfio/pci/vfio_pci.c), ``disable_denylist``
    """
    if (dev.vendor, dev.device) not in VFIO_DENIED:
        return None
    switch = os.path.join(dev.root.module(VFIO_PCI), "parameters", "disable_denylist")
    if read_attribute(dev.root, switch) == "Y":
        return None
    what = f"{dev.vendor:04x}:{dev.device:04x}"
    message = f"Device {dev.address} is a {what}, which vfio-pci accepts only with its parameter disable_denylist"
    return Finding("denied-device", ERROR, dev.address, message)


def member_obstacle(group: int, member: GroupMember) -> Finding | None:
    """Return a finding if a member's driver prevents the use of its group by a guest."""
    if not keeps_dma(member):
        return None
    return Finding(
        "group-not-viable",
        ERROR,
        member.address or member.name,
        f"{member.name} is also in IOMMU group {group}, and its driver '{member.driver}' keeps the "
        "group's DMA for the host",
    )


__getattr__ = deprecated_names(__name__, {"Obstacle": Finding})
