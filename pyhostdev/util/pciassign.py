# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What stands between a function and a guest, whoever the guest is: the rules that need no domain.

A plan asks them of the functions a domain declares, a scan of any. Nothing here decides; each rule says what it sees.
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

# Drivers that claim no DMA for the host (driver_managed_dma, drivers/pci since 5.19); vfio variants are told by
# their vfio-dev directory.
DMA_FREE_DRIVERS = frozenset({VFIO_PCI, "pci-stub", "pcieport"})

# Accelerators whose guests could bring down the host (drivers/vfio/pci/vfio_pci.c, Linux 5.9)
VFIO_DENIED = frozenset((0x8086, device) for device in (0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9))


def keeps_dma(member: GroupMember) -> bool:
    """
    Tell whether a group member's driver keeps the group's DMA for the host.

    Source: iommu_device_use_default_domain (drivers/iommu/iommu.c), Linux 5.19; a member without driver keeps nothing
    """
    return member.driver is not None and not member.is_vfio and member.driver not in DMA_FREE_DRIVERS


def has_iommu(root: HostRoot) -> bool:
    """Tell whether groups are to be expected: a sparse directory may leave them out, the live host may not."""
    return root.is_live or is_directory(root, root.iommu_groups)


def endpoint_obstacle(dev: PCIDevice, *, trust_class: bool = False) -> Finding | None:
    """
    Say that a function is a bridge, of PCI or of the host.

    Args:
        trust_class: read the header type, a bus cycle, of bridges only.
    """
    reads_header = not trust_class or dev.class_ is None or dev.class_ >> 16 == CLASS_BASE_BRIDGE
    if dev.is_host_bridge:
        message = f"Device {dev.address} is a host bridge, which no guest can be given"
        return Finding("not-endpoint", ERROR, dev.address, message)
    if not dev.is_bridge and not (reads_header and dev.is_endpoint is False):
        return None
    message = f"Device {dev.address} is a bridge, which no guest can be given"
    return Finding("not-endpoint", ERROR, dev.address, message)


def vfs_obstacle(address: PCIDeviceAddress, count: int) -> Finding | None:
    """
    Say that a PF has VFs.

    Source: vfio_pci_core_register_device (drivers/vfio/pci/vfio_pci_core.c) refuses it after the host driver is gone
    """
    if not count:
        return None
    message = f"Device {address} has {count} virtual functions enabled, and vfio-pci takes no such device"
    return Finding("pf-with-vfs", ERROR, address, message)


def group_obstacle(dev: PCIDevice, has_groups: bool) -> Finding | None:
    """Say that the host does not translate a function's DMA, where it has groups at all."""
    if dev.iommu_group is not None or not has_groups:
        return None
    return Finding("no-iommu-group", ERROR, dev.address, f"Device {dev.address} is in no IOMMU group")


def denied_obstacle(dev: PCIDevice) -> Finding | None:
    """
    Say that vfio-pci takes no such device, unless its module was told to.

    Source: vfio_pci_dev_in_denylist (drivers/vfio/pci/vfio_pci.c), ``disable_denylist``
    """
    if (dev.vendor, dev.device) not in VFIO_DENIED:
        return None
    switch = os.path.join(dev.root.module(VFIO_PCI), "parameters", "disable_denylist")
    if read_attribute(dev.root, switch) == "Y":
        return None
    what = f"{dev.vendor:04x}:{dev.device:04x}"
    message = f"Device {dev.address} is a {what}, which vfio-pci takes only with its parameter disable_denylist"
    return Finding("denied-device", ERROR, dev.address, message)


def member_obstacle(group: int, member: GroupMember) -> Finding | None:
    """Say that a member of a group keeps the group from every guest."""
    if not keeps_dma(member):
        return None
    return Finding(
        "group-not-viable",
        ERROR,
        member.address or member.name,
        f"{member.name} is in IOMMU group {group} too, and its driver '{member.driver}' keeps the "
        "group's DMA for the host",
    )


__getattr__ = deprecated_names(__name__, {"Obstacle": Finding})
