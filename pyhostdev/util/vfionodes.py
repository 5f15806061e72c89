# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which nodes VFIO has for a function and its group, and which numbers their devices have.

The majors are dynamic; sysfs tells the numbers.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pyhostdev.util.virfile import list_names, read_attribute

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_NUMBER = re.compile(r"([0-9]+):([0-9]+)", re.ASCII)
_DEVICE = re.compile(r"vfio[0-9]{1,9}", re.ASCII)


def read_device_node_names(root: HostRoot, address: PCIDeviceAddress) -> list[str]:
    """
    Return the names of a function's own devices of VFIO; one when a driver of VFIO has it, else none.

    Raises:
        SysfsError: they cannot be listed.

    Host: ``devices/ADDRESS/vfio-dev``, since Linux 6.0; the node in ``dev/vfio/devices`` since 6.6, for iommufd
    """
    names = list_names(root, os.path.join(root.pci_device(address), "vfio-dev"))
    return sorted(name for name in names if _DEVICE.fullmatch(name))


def read_node_number(root: HostRoot, name: str, address: PCIDeviceAddress | None) -> int | None:
    """
    Return the number of the device that a node below ``dev/vfio`` stands for; None where the host does not tell.

    Raises:
        SysfsError: its attribute is there and cannot be read.
    """
    if address is None or name.isdigit():
        top = root.class_vfio(int(name))
    else:
        top = os.path.join(root.pci_device(address), "vfio-dev", os.path.basename(name))
    text = read_attribute(root, os.path.join(top, "dev"))
    found = None if text is None else _NUMBER.fullmatch(text)
    return None if found is None else os.makedev(int(found[1]), int(found[2]))
