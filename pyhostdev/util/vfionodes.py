# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The VFIO nodes of a function and of its group, and their device numbers.

The major numbers are dynamic; sysfs holds the device numbers.
"""

from __future__ import annotations

import os
import re

from pyhostdev.util.iommugroup import VFIO_DEV, read_group
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.virfile import list_all_names, read_attributes, read_status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_NUMBER = r"([0-9]+):([0-9]+)"
_DEVICE = r"vfio[0-9]{1,9}"


def read_device_node_names(root: HostRoot, address: PCIDeviceAddress) -> list[str]:
    """
    Return the names of a function's own VFIO devices: one if a VFIO driver is bound to it, else an empty list.

    Raises:
        SysfsError: they cannot be listed.

    Host: ``devices/ADDRESS/vfio-dev``, since Linux 6.0; the node in ``dev/vfio/devices`` since 6.6, for iommufd
    """
    return read_all_device_node_names(root, [address])[0]


def read_all_device_node_names(root: HostRoot, addresses: Sequence[PCIDeviceAddress]) -> list[list[str]]:
    """Return what ``read_device_node_names`` returns, of each function."""
    listed = list_all_names(root, [f"{root.pci_device(address)}/{VFIO_DEV}" for address in addresses])
    return [sorted(name for name in names if re.fullmatch(_DEVICE, name)) for names in listed]


def read_nodes(root: HostRoot, address: PCIDeviceAddress) -> list[str]:
    """
    Return the nodes through which a function can be used now: its group's, and its own for iommufd.

    Raises:
        SysfsError: they cannot be listed.
    """
    names = read_device_node_names(root, address)
    group = read_group(root, address)
    if not names or group is None:
        return []
    paths = [root.vfio_group(group), *(os.path.join(root.dev_vfio_devices, name) for name in names)]
    return [path for path in paths if read_status(root, path) is not None]


def read_node_number(root: HostRoot, name: str, address: PCIDeviceAddress | None) -> int | None:
    """
    Return the device number of a node below ``dev/vfio``; None if the host does not show it.

    Raises:
        SysfsError: its attribute exists but cannot be read.
    """
    return read_node_numbers(root, [(name, address)])[0]


def read_node_numbers(root: HostRoot, nodes: Sequence[tuple[str, PCIDeviceAddress | None]]) -> list[int | None]:
    """Return what ``read_node_number`` returns, of each node."""
    texts = read_attributes(root, [_number_file(root, *node) for node in nodes])
    found = (None if text is None else re.fullmatch(_NUMBER, text) for text in texts)
    return [None if match is None else os.makedev(int(match[1]), int(match[2])) for match in found]


def _number_file(root: HostRoot, name: str, address: PCIDeviceAddress | None) -> str:
    if address is None or name.isdigit():
        return f"{root.class_vfio(int(name))}/dev"
    return f"{root.pci_device(address)}/{VFIO_DEV}/{os.path.basename(name)}/dev"
