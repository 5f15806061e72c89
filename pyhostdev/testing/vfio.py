# SPDX-License-Identifier: LGPL-2.1-or-later
"""
vfio-pci and its variants: the functions that they refuse, and the nodes that appear with a bind.

Source: drivers/vfio/pci/vfio_pci.c, vfio_pci_core.c, drivers/vfio/group.c (Linux 6.1)
"""

from __future__ import annotations

import errno
import os
from bisect import insort

from pyhostdev.testing.devicenodes import withdraw, withdrawn_nodes
from pyhostdev.testing.simdevice import numbered
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.testing.iommu import IOMMUGroups
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.testing.tree import Tree

_DENIED = {  # vfio_pci_dev_in_denylist: accelerators that are unsafe to assign
    (0x8086, device) for device in (0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9)
}


_MAJOR = 239  # of the functions' own nodes; a real kernel picks a free major
_NUMBERS = 1 << 20  # the minors that one major has; a name with a larger number is not a vfio device


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


def _take_number(groups: IOMMUGroups) -> int:
    """Return the lowest free number for a vfio device, and mark it as used."""
    state = groups.state
    if state.vfio_free is None:
        used = _used_numbers(groups)
        top = max(used, default=-1) + 1
        state.vfio_free = [*(number for number in range(top) if number not in used), top]
    number = state.vfio_free.pop(0)
    if not state.vfio_free:
        state.vfio_free.append(number + 1)
    return number


def _free_number(groups: IOMMUGroups, number: int) -> None:
    """Mark a number as free again, if the numbers were already counted."""
    free = groups.state.vfio_free
    if free is None or number >= free[-1] or number in free:
        return
    insort(free, number)
    while len(free) > 1 and free[-2] == free[-1] - 1:
        free.pop()


def _used_numbers(groups: IOMMUGroups) -> set[int]:
    """Count the numbers of all vfio devices: read every function on such a driver."""
    tree, root = groups.tree, groups.root
    names = (
        name
        for driver in tree.list_dir(root.pci_drivers)
        if groups.state.driver(driver).kind == "vfio"
        for device in tree.list_dir(root.pci_driver(driver))
        for name in tree.list_dir(os.path.join(root.pci_driver(driver), device, "vfio-dev"))
    )
    return {number for number in numbered(names, "vfio") if number < _NUMBERS}


def add_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """Create the group's node and the function's ``vfio-dev``, and its own node on a host with iommufd."""
    tree = device.tree
    if not tree.list_dir(device.join("vfio-dev")):
        number = _take_number(groups)
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
    Remove the function's own node and ``vfio-dev`` as soon as its unbind begins; the number stays taken until it ends.

    ``dev/vfio/devices`` is removed with its last node.

    Source: vfio_unregister_group_dev (drivers/vfio/vfio_main.c), Linux 6.6
    """
    names = device.tree.list_dir(device.join("vfio-dev"))
    for name in names:
        withdraw(device, name)
    device.tree.drop_tree(device.join("vfio-dev"))
    if names:
        device.tree.drop_empty(groups.root.dev_vfio_devices)  # it may hold nodes of other functions


def remove_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """Remove the function's ``vfio-dev``, and the group's node with the last one."""
    names = device.tree.list_dir(device.join("vfio-dev"))
    withdraw_device(groups, device)
    gone = withdrawn_nodes(device)
    for path in gone:
        device.tree.drop_file(path)
    for number in numbered({*names, *(path.rpartition(".")[2] for path in gone)}, "vfio"):
        _free_number(groups, number)
    if gone:
        device.tree.drop_empty(os.path.dirname(gone[0]))  # it may hold those of other functions
    if device.group is not None:
        groups.drop_node(device.group)
