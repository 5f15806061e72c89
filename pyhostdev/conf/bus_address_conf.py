# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest addresses of devices that are not on a PCI bus.

Mirrors: virDomainDeviceInfo (src/conf/device_conf.h)
"""

from __future__ import annotations

from pyhostdev.conf.address_conf import DeviceAddress
from pyhostdev.conf.xml.xmlcodec import Codec, hexadecimal, number
from pyhostdev.conf.xml.xmlfield import attribute
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR
from pyhostdev.util.virxml import ULLONG_MAX, parse_unsigned

USB_DEPTH_MAX = 4  # numbers in a port: the depth of hubs


class DriveAddress(DeviceAddress):
    """Controller, bus, target and unit of a disk."""

    kind = "drive"

    controller = attribute("controller", number, default=0)
    bus = attribute("bus", number, default=0)
    target = attribute("target", number, default=0)
    unit = attribute("unit", number, default=0)


class VirtioSerialAddress(DeviceAddress):
    """Controller, bus and port of a virtio console or channel."""

    kind = "virtio-serial"

    controller = attribute("controller", number, default=0)
    bus = attribute("bus", number, default=0)
    port = attribute("port", number)


class CCIDAddress(DeviceAddress):
    """Controller and slot of a smartcard."""

    kind = "ccid"

    controller = attribute("controller", number, default=0)
    slot = attribute("slot", number, default=0)


def _parse_usb_port(text: str) -> str:
    parts = text.split(".")
    if len(parts) > USB_DEPTH_MAX:
        raise ValueError(text)
    return ".".join(str(parse_unsigned(part)) for part in parts)


_usb_port = Codec(_parse_usb_port, str, "up to four numbers separated by dots")


class USBAddress(DeviceAddress):
    """Bus and dotted port of a USB device."""

    kind = "usb"

    bus = attribute("bus", number, default=0)
    port = attribute("port", _usb_port, code=VIR_ERR_INTERNAL_ERROR)


class SpaprVIOAddress(DeviceAddress):
    """A register on the virtual bus of a pseries machine."""

    kind = "spapr-vio"

    reg = attribute("reg", hexadecimal(8, 16, ULLONG_MAX))


class CCWAddress(DeviceAddress):
    """A channel of s390x."""

    kind = "ccw"

    cssid = attribute("cssid", hexadecimal(1))
    ssid = attribute("ssid", hexadecimal(1))
    devno = attribute("devno", hexadecimal(4))


class VirtioS390Address(DeviceAddress):
    """The old bus of s390x, without numbers."""

    kind = "virtio-s390"


class VirtioMMIOAddress(DeviceAddress):
    """A memory-mapped virtio transport, without numbers."""

    kind = "virtio-mmio"


class ISAAddress(DeviceAddress):
    """Port and interrupt of an ISA device."""

    kind = "isa"

    iobase = attribute("iobase", hexadecimal(1, 16))
    irq = attribute("irq", hexadecimal(1, 16))


class DIMMAddress(DeviceAddress):
    """Slot and base address of memory."""

    kind = "dimm"

    slot = attribute("slot", number)
    base = attribute("base", hexadecimal(1, 16, ULLONG_MAX))


ADDRESS_TYPES: dict[str, type[DeviceAddress]] = {
    definition.kind: definition
    for definition in (
        DriveAddress,
        VirtioSerialAddress,
        CCIDAddress,
        USBAddress,
        SpaprVIOAddress,
        CCWAddress,
        VirtioS390Address,
        VirtioMMIOAddress,
        ISAAddress,
        DIMMAddress,
    )
}
