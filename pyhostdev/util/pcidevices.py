# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Facts of several PCI functions; each kind of fact is read for all of them at once.

A plan needs the same facts of many devices. The objects are those of ``virpci``, with their facts already known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from pyhostdev.util import pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.iommugroup import GroupMember
from pyhostdev.util.pciaddress import PCIDeviceAddress, address_of
from pyhostdev.util.virfile import list_all_names, parse_number, read_attributes, read_link_names
from pyhostdev.util.virpci import PCIDevice, read_virtual_functions

Devices = Mapping[PCIDeviceAddress, PCIDevice]


def read_pci_devices(
    root: HostRoot, addresses: Iterable[PCIDeviceAddress], known: Devices = MappingProxyType({})
) -> dict[PCIDeviceAddress, PCIDevice]:
    """
    Return those of some functions that the host has, in the order of their addresses.

    Args:
        known: functions that were read before; they are not read again.

    Raises:
        SysfsError: an attribute exists but cannot be read.
    """
    wanted = sorted(set(addresses))
    new = _read(root, [address for address in wanted if address not in known])[0]
    found = ((address, known.get(address) or new.get(address)) for address in wanted)
    return {address: dev for address, dev in found if dev is not None}


def read_pci_devices_with_groups(
    root: HostRoot, addresses: Iterable[PCIDeviceAddress]
) -> tuple[dict[PCIDeviceAddress, PCIDevice], dict[int, list[GroupMember]]]:
    """
    Return those of some functions that the host has, and the members of each IOMMU group that has no other members.

    Raises:
        SysfsError: an attribute or a group exists but cannot be read.
    """
    return _read(root, addresses, with_groups=True)


def _read(
    root: HostRoot, addresses: Iterable[PCIDeviceAddress], *, with_groups: bool = False
) -> tuple[dict[PCIDeviceAddress, PCIDevice], dict[int, list[GroupMember]]]:
    """Return functions with the facts that a plan asks of each: its inode, its kind of driver, and its resets."""
    if not addresses:
        return {}, {}
    reader = pciscan.FunctionReader(root)
    try:
        records, more = reader.read_more(addresses)
        whole = reader.whole_groups(records) if with_groups else ()
    finally:
        reader.close()
    rows = zip(map(address_of, records.column("key")), records, more, strict=True)
    devs = {address: PCIDevice(root, address, record, _facts(asked)) for address, record, asked in rows}
    groups: dict[int, list[GroupMember]] = {group: [] for group in whole}
    for dev in devs.values():
        if dev.iommu_group in groups:
            groups[dev.iommu_group].append(dev.as_group_member())
    return devs, groups


def _facts(asked: pciscan.More) -> dict[str, object]:
    """Return the facts of a device by the names under which it keeps them."""
    inode, is_vfio, can_reset, methods = asked
    if can_reset and methods is None:
        return {"incarnation": inode, "vfio": is_vfio}
    return {"incarnation": inode, "vfio": is_vfio, "reset_methods": (methods or "").split()}


def _learn_ari(devs: Sequence[PCIDevice]) -> None:
    """Read whether the bus of each function has ARI; the functions are not VFs."""
    paths = [dev.path("ari_enabled") for dev in devs]
    for dev, path, text in zip(devs, paths, read_attributes(devs[0].root, paths) if devs else [], strict=True):
        dev.learn("ari", None if text is None else parse_number(text, path))


def read_siblings(devs: Sequence[PCIDevice], known: Devices) -> dict[PCIDeviceAddress, list[PCIDevice]]:
    """
    Return what ``PCIDevice.read_siblings`` returns, by the address of function 0 of each multifunction device.

    Args:
        devs: functions that are not VFs.
        known: functions that were read before.
    """
    if not devs:
        return {}
    _learn_ari(devs)
    wanted: dict[PCIDeviceAddress, list[PCIDeviceAddress]] = {}
    for dev in devs:
        first = dev.function_zero
        if first not in wanted:
            wanted[first] = dev.sibling_addresses()
    found = read_pci_devices(devs[0].root, (address for addresses in wanted.values() for address in addresses), known)
    siblings = {}
    for first, addresses in wanted.items():
        there = (found.get(address) for address in addresses)
        siblings[first] = [dev for dev in there if dev is not None and not dev.is_virtual_function]
        for dev in siblings[first]:
            dev.learn("function_zero", found.get(first))
    return siblings


def read_entries(devs: Sequence[PCIDevice]) -> None:
    """Read the names in each device's directory, which tell what its driver has created."""
    if devs:
        for dev, names in zip(devs, list_all_names(devs[0].root, [dev.path()[:-1] for dev in devs]), strict=True):
            dev.learn("entries", names)


def read_all_virtual_functions(devs: Sequence[PCIDevice]) -> dict[PCIDeviceAddress, list[PCIDeviceAddress]]:
    """Return the VFs of each PF, in the order of their numbers."""
    if not devs:
        return {}
    root = devs[0].root
    firsts = read_link_names(root, [dev.path("virtfn0") for dev in devs])
    pfs = [dev.address for dev, first in zip(devs, firsts, strict=True) if first is not None]
    return {pf: read_virtual_functions(root, pf) for pf in pfs}
