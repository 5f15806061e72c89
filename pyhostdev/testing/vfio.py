# SPDX-License-Identifier: LGPL-2.1-or-later
"""
vfio-pci and its variants: which functions they refuse, and what appears when they take one.

Source: drivers/vfio/pci/vfio_pci.c, vfio_pci_core.c, drivers/vfio/group.c (Linux 6.1)
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from pyhostdev.testing.simdevice import drop_file, drop_tree, list_dir, put_file, read_file

if TYPE_CHECKING:
    from pyhostdev.testing.iommu import IOMMUGroups
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.util.hostroot import HostRoot

_DENIED = {  # vfio_pci_dev_in_denylist: accelerators that are unsafe to give away
    (0x8086, device) for device in (0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9)
}


_MAJOR = 239  # of functions' own nodes; the kernel takes one that is free


def probe(device: SimDevice) -> int:
    """Return the errno with which vfio-pci refuses a function, 0 when it takes it."""
    if (device.number("vendor"), device.number("device")) in _DENIED and not _takes_denied(device.root):
        return errno.EINVAL
    if device.is_bridge:
        return errno.EINVAL
    if device.virtual_functions:
        return errno.EBUSY
    return 0 if device.group is not None else errno.EINVAL


def _takes_denied(root: HostRoot) -> bool:
    """True when the module's administrator has disabled the list."""
    return read_file(os.path.join(root.module("vfio-pci"), "parameters", "disable_denylist")) == b"Y\n"


def _next_number(groups: IOMMUGroups) -> int:
    """Return the lowest number no vfio device has."""
    used = {
        int(name.removeprefix("vfio"))
        for driver in list_dir(groups.root.pci_drivers)
        if groups.state.driver(driver).kind == "vfio"
        for device in list_dir(groups.root.pci_driver(driver))
        for name in list_dir(os.path.join(groups.root.pci_driver(driver), device, "vfio-dev"))
    }
    return next(number for number in range(len(used) + 1) if number not in used)


def add_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """Make the group's node and the function's ``vfio-dev`` appear, and its own node on a host with iommufd."""
    if not list_dir(device.join("vfio-dev")):
        number = _next_number(groups)
        directory = device.join("vfio-dev", f"vfio{number}")
        os.makedirs(directory)
        put_file(os.path.join(directory, "uevent"), b"")
        if os.path.exists(groups.root.dev_iommu):
            put_file(os.path.join(directory, "dev"), f"{_MAJOR}:{number}\n".encode())
            _put_node(groups.root, f"vfio{number}")
    if device.group is not None:
        groups.add_node(device.group)


def _put_node(root: HostRoot, name: str) -> None:
    os.makedirs(root.dev_vfio_devices, exist_ok=True)
    path = os.path.join(root.dev_vfio_devices, name)
    put_file(path, b"")
    os.chmod(path, 0o600)


def withdraw_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """
    Make the function's own node and ``vfio-dev`` go, as soon as its unbind begins; ``dev/vfio/devices`` with the last.

    Source: vfio_unregister_group_dev (drivers/vfio/vfio_main.c), Linux 6.6
    """
    names = list_dir(device.join("vfio-dev"))
    for name in names:
        drop_file(os.path.join(groups.root.dev_vfio_devices, name))
    drop_tree(device.join("vfio-dev"))
    if not names:
        return
    with contextlib.suppress(OSError):  # absent, or others have nodes there
        os.rmdir(groups.root.dev_vfio_devices)


def remove_device(groups: IOMMUGroups, device: SimDevice) -> None:
    """Make the function's ``vfio-dev`` go, and the group's node with the last one."""
    withdraw_device(groups, device)
    if device.group is not None:
        groups.drop_node(device.group)
