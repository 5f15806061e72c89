# SPDX-License-Identifier: LGPL-2.1-or-later
"""
IOMMU groups: the number of a function's group, and the members of a group.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from types import MappingProxyType

from pyhostdev.errors import HostdevError, SysfsError
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple
from pyhostdev.util.virfile import is_directory, list_all_names, read_link_name, read_link_names, read_statuses

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from pyhostdev.util.hostroot import HostRoot


MEMBERS_MAX = 1 << 13  # per group: 32 full buses
VFIO_DEV = "vfio-dev"  # a function bound to a VFIO driver has this directory
_GROUP = r"[0-9]{1,9}"


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
    if re.fullmatch(_GROUP, name) is None:
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
    return driver == "vfio-pci" or is_directory(root, os.path.join(root.pci_device(address), VFIO_DEV))


_NONE_KNOWN: Mapping[str, GroupMember] = MappingProxyType({})


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
    return read_iommu_groups(root, [group], skip, known=known)[group]


def read_iommu_groups(
    root: HostRoot, groups: Sequence[int], skip: Container[str] = (), *, known: Mapping[str, GroupMember] = _NONE_KNOWN
) -> dict[int, list[GroupMember]]:
    """Return what ``read_iommu_group_members`` returns, of each group."""
    listed = list_all_names(root, [root.iommu_group_devices(group) for group in groups], MEMBERS_MAX)
    if skip:
        listed = [[name for name in members if name not in skip] for members in listed]
    names = dict(zip(groups, listed, strict=True))
    unread = [(group, name) for group, members in names.items() for name in members if name not in known]
    read = {**known, **_read_members(root, unread)} if unread else known
    return {group: _sorted([read[name] for name in members]) for group, members in names.items()}


def _sorted(members: list[GroupMember]) -> list[GroupMember]:
    if len(members) < 2:
        return members
    return sorted(members, key=lambda m: (m.address is None, m.address or (), m.name))


def _read_members(root: HostRoot, places: Sequence[tuple[int, str]]) -> dict[str, GroupMember]:
    """Return members by name; each is given with its group."""
    addresses = [_address(name) for _, name in places]
    tops = [
        os.path.join(root.iommu_group_devices(group), name) if address is None else root.pci_device(address)
        for (group, name), address in zip(places, addresses, strict=True)
    ]
    drivers = read_link_names(root, [f"{top}/driver" for top in tops])
    rows = list(zip(places, addresses, drivers, strict=True))
    unsure = [(name, address) for (_, name), address, driver in rows if driver not in (None, "vfio-pci") and address]
    statuses = read_statuses(root, [f"{root.pci_device(address)}/{VFIO_DEV}" for _, address in unsure])
    vfio = {name for (name, _), found in zip(unsure, statuses, strict=True) if found and stat.S_ISDIR(found.mode)}
    return {
        name: GroupMember(name, address, driver, name in vfio or (driver == "vfio-pci" and address is not None))
        for (_, name), address, driver in rows
    }


def _address(name: str) -> PCIDeviceAddress | None:
    try:
        return PCIDeviceAddress.parse(name)
    except HostdevError:
        return None
