# SPDX-License-Identifier: LGPL-2.1-or-later
"""
IOMMU groups: the number of a function's group, and the members of a group.
"""

from __future__ import annotations

import errno
import os
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pyhostdev.errors import HostdevError, SysfsError
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virfile import is_directory, list_names, read_link_name

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from pyhostdev.util.hostroot import HostRoot


MEMBERS_MAX = 1 << 13  # per group: 32 full buses
_GROUP = re.compile(r"[0-9]{1,9}", re.ASCII)


def read_group(root: HostRoot, address: PCIDeviceAddress) -> int | None:
    """
    Return the number of a function's IOMMU group; None if it has no group or does not exist.

    Raises:
        SysfsError: the link cannot be read, or its target is not a number (EBADMSG).
    """
    path = f"{root.pci_device(address)}/iommu_group"
    name = read_link_name(root, path)
    if name is None:
        return None
    if _GROUP.fullmatch(name) is None:
        raise SysfsError(errno.EBADMSG, path, f"read the number of an IOMMU group from {name!a}", address=address)
    return int(name)


class GroupMember(NamedTuple):
    """One entry of an IOMMU group; ``address`` is None if the entry is not a PCI function."""

    name: str
    address: PCIDeviceAddress | None
    driver: str | None
    is_vfio: bool


def is_vfio_driver(root: HostRoot, address: PCIDeviceAddress, driver: str | None) -> bool:
    """
    Tell whether a device is bound to vfio-pci or one of its variants: these create a ``vfio-dev`` directory.

    Mirrors: virPCIDeviceGetCurrentDriverNameAndType (src/util/virpci.c)
    """
    if driver is None:
        return False
    return driver == "vfio-pci" or is_directory(root, os.path.join(root.pci_device(address), "vfio-dev"))


_NONE_KNOWN: Mapping[str, GroupMember] = MappingProxyType({})


def _group_member(root: HostRoot, group: int, name: str) -> GroupMember:
    try:
        address = PCIDeviceAddress.parse(name)
    except HostdevError:
        link = os.path.join(root.iommu_group_devices(group), name, "driver")
        return GroupMember(name, None, read_link_name(root, link), is_vfio=False)
    driver = read_link_name(root, os.path.join(root.pci_device(address), "driver"))
    return GroupMember(name, address, driver, is_vfio_driver(root, address, driver))


def read_iommu_group_members(
    root: HostRoot, group: int, skip: Container[str] = (), *, known: Mapping[str, GroupMember] = _NONE_KNOWN
) -> list[GroupMember]:
    """
    Return every member of a group, PCI functions first and by address, then the others by name.

    Args:
        skip: names to leave out.
        known: members that were read before, by name.

    Mirrors: virPCIDeviceAddressIOMMUGroupIterate (src/util/virpci.c)
    """
    names = list_names(root, root.iommu_group_devices(group), MEMBERS_MAX)
    members = [known.get(name) or _group_member(root, group, name) for name in names if name not in skip]
    return sorted(members, key=lambda m: (m.address is None, m.address or (), m.name))
