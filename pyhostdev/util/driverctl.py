# SPDX-License-Identifier: LGPL-2.1-or-later
"""
driverctl's folder: one file a device, with the driver that is made its override whenever the device appears.
"""

from __future__ import annotations

import errno
import os

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress

NO_DRIVER = "none"  # what is saved to keep a device from every driver
_SIZE_MAX = 64  # bytes; more than a driver's name can have


def read_driverctl_override(root: HostRoot, address: PCIDeviceAddress) -> str | None:
    """
    Return the driver that driverctl keeps a function with; None when it has nothing saved.

    The text is as it is in the file, its first line without blanks around it: it may be no driver's name.

    Raises:
        SysfsError: the file is there and cannot be read.

    Host: reads ``etc/driverctl.d/pci-ADDRESS``
    """
    path = root.driverctl_override(address)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe in its place says nothing, at once
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise SysfsError(err.errno or 0, path, "read a saved override") from err
    try:
        lines = os.read(fd, _SIZE_MAX).decode("utf-8", "backslashreplace").splitlines()
    except OSError as err:
        raise SysfsError(err.errno or 0, path, "read a saved override") from err
    finally:
        os.close(fd)
    return (lines[0].strip() or None) if lines else None
