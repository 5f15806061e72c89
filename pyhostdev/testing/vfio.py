# SPDX-License-Identifier: LGPL-2.1-or-later
"""
vfio-pci and its variants: the functions that they refuse, and the nodes that appear with a bind.

Source: drivers/vfio/pci/vfio_pci.c, vfio_pci_core.c, drivers/vfio/group.c (Linux 6.1)
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pyhostdev.testing.simdevice import numbered

if TYPE_CHECKING:
    from pyhostdev.testing.iommu import IOMMUGroups
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.testing.tree import Tree

_DENIED = {  # vfio_pci_dev_in_denylist: accelerators that are unsafe to assign
    (0x8086, device) for device in (0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9)
}


_MAJOR = 239  # of the functions' own nodes; a real kernel picks a free major


def probe(device: SimDevice) -> int:
    """Return the errno with which vfio-pci refuses a function, 0 if it accepts it."""
    if (device.number("vendor"), device.number("device")) in _DENIED and not _takes_denied(device.tree):
        return errno.EINVAL
    if device.is_bridge:
        return errno.EINVAL
    if device.virtual_functions:
        return errno.EBUSY
    return 0 if device.group is not None else errno.EINVAL


def _takes_denied(tree: Tree) -> bool:
    """True if the administrator has disabled the list."""
    return tree.read_file(os.path.join(tree.root.module("vfio-pci"), "parameters", "disable_denylist")) == b"Y\n"


def _next_number(groups: IOMMUGroups) -> int:
    """Return the lowest free number for a vfio device."""
    tree, root = groups.tree, groups.root
    names = (
        name
        for driver in tree.list_dir(root.pci_drivers)
        if groups.state.driver(driver).kind == "vfio"
        for device in tree.list_dir(root.pci_driver(driver))
        for name in tree.list_dir(os.path.join(root.pci_driver(driver), device, "vfio-dev"))
    )
    used = numbered(names, "vfio")
    return next(number for number in range(len(used) + 1) if number not in used)


def add_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """Create the group's node and the function's ``vfio-dev``, and its own node on a host with iommufd."""
    tree = device.tree
    if not tree.list_dir(device.join("vfio-dev")):
        number = _next_number(groups)
        directory = device.join("vfio-dev", f"vfio{number}")
        tree.make_dirs(directory)
        tree.put_file(os.path.join(directory, "uevent"), b"")
        if tree.exists(groups.root.dev_iommu):
            tree.put_file(os.path.join(directory, "dev"), f"{_MAJOR}:{number}\n".encode())
            tree.make_dirs(groups.root.dev_vfio_devices)
            tree.put_file(os.path.join(groups.root.dev_vfio_devices, f"vfio{number}"), b"", mode=0o600)
    if device.group is not None:
        groups.add_node(device.group)


def withdraw_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """
    Remove the function's own node and ``vfio-dev`` as soon as its unbind begins.

    ``dev/vfio/devices`` is removed with its last node.

    Source: vfio_unregister_group_dev (drivers/vfio/vfio_main.c), Linux 6.6
    """
    tree, nodes = device.tree, groups.root.dev_vfio_devices
    names = tree.list_dir(device.join("vfio-dev"))
    for name in names:
        tree.drop_file(os.path.join(nodes, name))
    tree.drop_tree(device.join("vfio-dev"))
    if names:
        tree.drop_empty(nodes)  # it may hold nodes of other functions


def remove_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """Remove the function's ``vfio-dev``, and the group's node with the last one."""
    withdraw_device(groups, device)
    if device.group is not None:
        groups.drop_node(device.group)
