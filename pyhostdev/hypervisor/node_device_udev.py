# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Read one PCI function as libvirt's node device.

Mirrors: src/node_device/node_device_udev.c
"""

from __future__ import annotations

import errno
import logging
import os

from pyhostdev.conf.node_device_conf import (
    COMPUTER,
    MediatedDeviceType,
    NodeDevCapPCIDev,
    NodeDeviceDef,
    PCIELink,
    node_device_name,
)
from pyhostdev.errors import InvalidAddressError, SysfsError
from pyhostdev.util import pcilink, pciregs
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.iommugroup import MEMBERS_MAX
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciids import PCIIds
from pyhostdev.util.virfile import list_names, read_attribute, read_link, read_number
from pyhostdev.util.virpci import PCIDevice
from pyhostdev.util.virpcivpd import PCIVPDResource, parse_vpd, read_vpd

MDEV_TYPES_MAX = 1024  # a GPU offers about 30

_log = logging.getLogger(__name__)


def read_node_device(dev: PCIDevice, names: PCIIds | None = None) -> NodeDeviceDef:
    """
    Return a function's definition; facts that need privileges are left out for a user without them, as in libvirt.

    Args:
        names: the list of names, for callers that read many functions.

    Raises:
        SysfsError: an attribute exists but cannot be read.

    Mirrors: udevProcessPCI
    """
    above = dev.read_path()[:-1]
    return NodeDeviceDef(
        name=node_device_name(dev.address),
        path=_host_path(dev),
        parent=node_device_name(above[-1]) if above else COMPUTER,
        driver=dev.driver,
        pci=_read_capability(dev, names or PCIIds.read(dev.root)),
    )


def _host_path(dev: PCIDevice) -> str:
    """Return the function's directory as the host itself spells it."""
    place = dev.path()[:-1]
    try:
        target = read_link(dev.root, place)
    except SysfsError as err:
        if err.errno != errno.EINVAL:  # a directory
            raise
        target = None
    found = place if target is None else dev.root.follow(place, target)
    return f"/{os.path.relpath(found, dev.root.path)}"


def _read_capability(dev: PCIDevice, names: PCIIds) -> NodeDevCapPCIDev:
    links = pcilink.express_links(dev.read_config())
    return NodeDevCapPCIDev(
        address=dev.address,
        class_=dev.class_,
        product=dev.device,
        product_name=names.device(dev.vendor, dev.device),
        vendor=dev.vendor,
        vendor_name=names.vendor(dev.vendor),
        physical_function=dev.physfn,
        virtual_functions=tuple(dev.read_virtual_functions()),
        max_virtual_functions=dev.sriov_totalvfs or 0,
        header_type=dev.header_type,
        mdev_types=_read_mdev_types(dev),
        vpd=_read_vpd(dev),
        iommu_group=dev.iommu_group,
        iommu_group_devices=_read_group(dev.root, dev.iommu_group),
        numa_node=dev.numa_node,
        is_pci_express=_is_pci_express(dev),
        link_cap=links and PCIELink(links.max_speed, links.max_width, links.port),
        link_sta=links and PCIELink(links.speed, links.width),
    )


def _is_pci_express(dev: PCIDevice) -> bool:
    """
    Tell whether the function is PCI Express; False if this user cannot read its capabilities.

    Mirrors: udevProcessPCI (src/node_device/node_device_udev.c), which asks only if libvirt runs as root
    """
    return len(dev.read_config()) > pciregs.CONFIG_SIZE_UNPRIVILEGED and dev.is_pci_express() is True


def _read_group(root: HostRoot, group: int | None) -> tuple[PCIDeviceAddress, ...]:
    """
    Return the PCI functions of a group, in the order of the directory.

    Mirrors: virPCIDeviceAddressIOMMUGroupIterate (src/util/virpci.c)
    """
    if group is None:
        return ()
    names = list_names(root, root.iommu_group_devices(group), MEMBERS_MAX)
    return tuple(address for address in map(_address, names) if address is not None)


def _address(name: str) -> PCIDeviceAddress | None:
    """Return a member's address, None for a member that is not a PCI function."""
    try:
        return PCIDeviceAddress.parse(name)
    except InvalidAddressError:
        return None


def _read_mdev_types(dev: PCIDevice) -> tuple[MediatedDeviceType, ...]:
    """
    Return the types of mediated devices that the function's driver offers.

    Source: Documentation/ABI/testing/sysfs-bus-vfio-mdev

    Mirrors: virMediatedDeviceGetTypes (src/util/virmdev.c)
    """
    top = dev.path("mdev_supported_types")
    return tuple(
        MediatedDeviceType(
            id=name,
            name=read_attribute(dev.root, os.path.join(top, name, "name")),
            device_api=read_attribute(dev.root, os.path.join(top, name, "device_api")),
            available_instances=read_number(dev.root, os.path.join(top, name, "available_instances")),
        )
        for name in list_names(dev.root, top, MDEV_TYPES_MAX)
    )


def _read_vpd(dev: PCIDevice) -> PCIVPDResource | None:
    """
    Return the function's VPD; None without it, or if only root may read it; an unreadable one is logged.

    Mirrors: virNodeDeviceGetPCIVPDDynamicCap (src/conf/node_device_conf.c)
    """
    try:
        data = read_vpd(dev.root, dev.path("vpd"))
    except SysfsError as err:
        if err.errno not in (errno.EACCES, errno.EPERM):
            _log.warning("%s", err)
        return None
    found = parse_vpd(data) if data else None
    if data and found is None:
        _log.warning("The VPD of %s is malformed and is left out", dev.address)
    return found
