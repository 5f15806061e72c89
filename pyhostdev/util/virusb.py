# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The USB devices of a host, as sysfs shows them.

Mirrors: src/util/virusb.c
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.errors import SysfsError
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import list_names, read_attribute, read_link_name

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


def find_usb_name(root: HostRoot, bus: int, device: int) -> str | None:
    """
    Return the name of a USB device in sysfs, such as ``1-2.4``; None if the host does not have it.

    Raises:
        SysfsError: the devices cannot be read.

    Host: sys/bus/usb/devices
    """
    names = (name for name in sorted(list_names(root, root.usb_devices)) if ":" not in name)
    return next((name for name in names if read_usb_numbers(root, name) == (bus, device)), None)


def read_usb_numbers(root: HostRoot, name: str) -> tuple[int, int] | None:
    """
    Return the bus and device numbers of a USB device; None if the host does not have it.

    Raises:
        SysfsError: they cannot be read.

    Host: sys/bus/usb/devices
    """
    place = os.path.join(root.usb_devices, name)
    texts = [read_attribute(root, os.path.join(place, part)) or "" for part in ("busnum", "devnum")]
    return (int(texts[0]), int(texts[1])) if all(text.isdecimal() for text in texts) else None


def interface_drivers(root: HostRoot, name: str) -> dict[str, str]:
    """
    Return the driver of each interface of a USB device that has one.

    Raises:
        SysfsError: they cannot be read.

    Host: sys/bus/usb/devices
    """
    places = (entry for entry in list_names(root, root.usb_devices) if entry.startswith(f"{name}:"))
    found = {entry: read_link_name(root, os.path.join(root.usb_devices, entry, "driver")) for entry in sorted(places)}
    return {entry: driver for entry, driver in found.items() if driver is not None}


def bind_interface(root: HostRoot, interface: str, driver: str) -> None:
    """
    Bind an interface of a USB device to a driver.

    Raises:
        SysfsError: the driver is not loaded, or refuses the interface.

    Host: sys/bus/usb/drivers
    """
    path = root.usb_bind(driver)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # the file cannot be read, not even by root
        try:
            os.write(fd, interface.encode())
        finally:
            os.close(fd)
    except OSError as err:
        raise SysfsError(err.errno or 0, path, f"bind the USB interface {interface} to {driver}") from err


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
    pairs = ((found, zip(wanted, found, strict=True)) for found in usb_devices(root))
    return [found for found, values in pairs if all(value in (None, own) for value, own in values)]
