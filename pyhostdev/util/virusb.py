# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The USB devices of a host, as sysfs shows them.

Mirrors: src/util/virusb.c
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import list_names, read_attribute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostroot import HostRoot


class USBDevice(NamedTuple):
    """A USB device: its ids, and its bus and device numbers until it is unplugged."""

    vendor: int
    product: int
    bus: int
    device: int

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.product:04x} ({self.bus:03}/{self.device:03})"


def usb_devices(root: HostRoot) -> Iterator[USBDevice]:
    """
    Yield the USB devices of a host, root hubs included.

    Raises:
        SysfsError: the list, or an attribute in it, exists but cannot be read.

    Host: sys/bus/usb/devices
    """
    for name in sorted(list_names(root, root.usb_devices)):
        if ":" in name:  # an interface of a device
            continue
        place = os.path.join(root.usb_devices, name)
        texts = [read_attribute(root, os.path.join(place, part)) for part in ("idVendor", "idProduct")]
        numbers = [read_attribute(root, os.path.join(place, part)) for part in ("busnum", "devnum")]
        try:  # some are missing while the device is being unplugged
            yield USBDevice(*(int(text or "", 16) for text in texts), *(int(text or "", 10) for text in numbers))
        except ValueError:
            continue


def find_usb_devices(
    root: HostRoot,
    vendor: int | None = None,
    product: int | None = None,
    bus: int | None = None,
    device: int | None = None,
) -> list[USBDevice]:
    """
    Return the USB devices with these values; None stands for any.

    Raises:
        SysfsError: the devices cannot be read.

    Mirrors: virUSBDeviceFind (src/util/virusb.c)
    """
    wanted = (vendor, product, bus, device)
    return [
        found
        for found in usb_devices(root)
        if all(value in (None, own) for value, own in zip(wanted, found, strict=True))
    ]
