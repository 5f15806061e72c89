# SPDX-License-Identifier: LGPL-2.1-or-later
"""
driverctl's folder: one file a device, with the driver that is made its override whenever the device appears.
"""

from __future__ import annotations

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virfile import read_bytes

NO_DRIVER = "none"  # what is saved to keep a device from every driver
_SIZE_MAX = 4096  # bytes; driverctl writes one name, an editor may leave comments
_SHOWN_MAX = 64  # characters; more than a driver's name can have


def read_driverctl_override(root: HostRoot, address: PCIDeviceAddress) -> str | None:
    """
    Return the driver that driverctl keeps a function with; None when it has nothing saved.

    The text is as it is in the file, its first line without blanks around it: it may be no driver's name.

    Raises:
        SysfsError: the file is there and cannot be read, or has more than a page (EFBIG).

    Host: reads ``etc/driverctl.d/pci-ADDRESS``
    """
    path = root.driverctl_override(address)
    try:
        data = read_bytes(root, path, _SIZE_MAX)
    except SysfsError as err:
        raise SysfsError(err.errno or 0, path, "read a saved override") from err
    lines = (data or b"").decode("utf-8", "backslashreplace").splitlines()
    return (lines[0].strip()[:_SHOWN_MAX] or None) if lines else None
