# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The driverctl directory: one file per device, naming the driver override to set whenever the device appears.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virfile import is_directory, read_bytes, read_statuses

NO_DRIVER = "none"  # saved to keep a device without a driver
_SIZE_MAX = 4096  # bytes; driverctl writes one name, an editor may leave comments
_SHOWN_MAX = 64  # characters; the longest driver name


def read_driverctl_overrides(root: HostRoot, addresses: Sequence[PCIDeviceAddress]) -> dict[PCIDeviceAddress, str]:
    """
    Return the overrides that driverctl saved for some functions.

    Raises:
        SysfsError: as ``read_driverctl_override``.
    """
    try:
        if not is_directory(root, root.driverctl_directory):
            return {}
        statuses = read_statuses(root, [root.driverctl_override(address) for address in addresses])
    except SysfsError as err:
        raise SysfsError(err.errno or 0, str(err.filename), "read a saved override") from err
    saved = [address for address, status in zip(addresses, statuses, strict=True) if status is not None]
    found = ((address, read_driverctl_override(root, address)) for address in saved)
    return {address: override for address, override in found if override is not None}


def read_driverctl_override(root: HostRoot, address: PCIDeviceAddress) -> str | None:
    """
    Return the override that driverctl saved for a function; None if it saved nothing.

    The result is the first line of the file without surrounding blanks; it may be an invalid driver name.

    Raises:
        SysfsError: the file exists but cannot be read, or is larger than a page (EFBIG).

    Host: reads ``etc/driverctl.d/pci-ADDRESS``
    """
    path = root.driverctl_override(address)
    try:
        data = read_bytes(root, path, _SIZE_MAX)
    except SysfsError as err:
        raise SysfsError(err.errno or 0, path, "read a saved override") from err
    lines = (data or b"").decode("utf-8", "backslashreplace").splitlines()
    return (lines[0].strip()[:_SHOWN_MAX] or None) if lines else None
