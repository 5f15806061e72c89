# SPDX-License-Identifier: LGPL-2.1-or-later
"""
VFs that are created and removed through ``sriov_numvfs``.

Source: sriov_numvfs_store, sriov_enable, pci_iov_add_virtfn (drivers/pci/iov.c), Linux 6.1
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from pyhostdev.testing import hotplug
from pyhostdev.testing.answers import NotSimulated
from pyhostdev.testing.functionfiles import link_virtual_functions, put_function, put_in_group
from pyhostdev.testing.hostspec import FunctionSpec
from pyhostdev.testing.simdevice import SimDevice, list_devices, numbered
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from pyhostdev.testing.drivercore import DriverCore

_NUM_VFS = 0x10  # PCIE50 9.3.3.7, from the capability's start


def virtual_address(pf: SimDevice, index: int) -> PCIDeviceAddress:
    """
    Return the address of a PF's VF: routing id plus offset plus index times stride.

    Raises:
        NotSimulated: the tree does not show offset and stride.

    Source: PCIE50 9.2.1.2
    """
    offset, stride = pf.number("sriov_offset"), pf.number("sriov_stride")
    if offset < 0 or stride < 0:
        raise NotSimulated(f"The tree does not show the addresses of the VFs of {pf.address}")
    routing_id = pf.address.bus << 8 | pf.address.devfn
    routing_id += offset + index * stride
    bus, devfn = routing_id >> 8, routing_id & 0xFF
    return PCIDeviceAddress(pf.address.domain, bus, devfn >> 3, devfn & 7)


def _virtual_spec(core: DriverCore, pf: SimDevice, index: int) -> FunctionSpec:
    number = pf.number("sriov_vf_device", 16)
    if number < 0:
        raise NotSimulated(f"The tree does not show the device id of the VFs of {pf.address}")
    return FunctionSpec(
        address=virtual_address(pf, index),
        vendor=pf.number("vendor"),
        device=number,
        class_=pf.number("class"),
        subsystem=(pf.number("subsystem_vendor"), pf.number("subsystem_device")),
        revision=pf.number("revision"),
        numa_node=pf.number("numa_node"),
        group=None if pf.group is None else _free_group(core),
        physfn=pf.address,
        express=0,
        flr=True,
    )


def _free_group(core: DriverCore) -> int:
    used = numbered(core.tree.list_dir(core.root.iommu_groups))
    return next(number for number in range(len(used) + 1) if number not in used)


def _put_vf(core: DriverCore, pf: SimDevice, index: int) -> SimDevice:
    ari = pf.read("ari_enabled") == b"1\n"
    spec = _virtual_spec(core, pf, index)
    on_own_bus = spec.address.bus == pf.address.bus
    vf = put_function(core.tree, spec, os.path.dirname(pf.place), ari=ari and on_own_bus)
    if spec.group is not None:
        put_in_group(core.tree, vf.path, spec.group)
    return vf


def enable(core: DriverCore, pf: SimDevice, count: int) -> None:
    """
    Create VFs, each in its own group, and offer them to the drivers.

    Raises:
        NotSimulated: the tree does not describe them.
    """
    vfs = []
    for index in range(count):
        vfs.append(_put_vf(core, pf, index))
        core.tell("add", vfs[-1])
    link_virtual_functions(pf, vfs)
    _show_count(pf, count)
    for vf in vfs:
        core.attach_new(vf)
    core.tell("change", pf)


def disable(core: DriverCore, pf: SimDevice) -> None:
    """
    Remove all VFs, the PF's links to them first.

    Raises:
        Blocked: the driver of a VF does not release it; the rest waits for it.
    """
    for name in core.tree.list_dir(pf.path):
        if name.startswith("virtfn"):
            core.tree.drop_file(pf.join(name))
    for vf in list_devices(core.tree):
        if vf.physfn == pf.address:
            hotplug.remove(core, vf)
            hotplug.forget(core, vf.address)
    _show_count(pf, 0)


def _show_count(pf: SimDevice, count: int) -> None:
    """Write the number of VFs to the attribute and to config space."""
    pf.update("sriov_numvfs", f"{count}\n".encode())
    config = bytearray(pf.read("config") or b"")
    where = pciconfig.find_extended_capability(bytes(config), pciregs.EXT_CAP_ID_SRIOV)
    if where and len(config) >= where + _NUM_VFS + 2:
        struct.pack_into("<H", config, where + 0x08, 0x09 if count else 0)
        struct.pack_into("<H", config, where + _NUM_VFS, count)
        pf.update("config", bytes(config))
