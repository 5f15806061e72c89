# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The number of a function's IOMMU group.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from pyhostdev.errors import SysfsError
from pyhostdev.util.virfile import read_link_name

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress


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
