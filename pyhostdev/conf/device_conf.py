# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What all devices of a domain share: alias, boot order, ROM, and guest address.

Mirrors: src/conf/device_conf.c, virDomainDeviceInfo (src/conf/device_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyhostdev.conf.xml.xmlcodec import Codec, hexadecimal, nodeset, number, on_off, positive, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, optional_element
from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_XML_ERROR,
    ConfigUnsupportedError,
    InvalidAddressError,
    Renumbering,
    XMLError,
)
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virxml import ULLONG_MAX, parse_unsigned, shown, source_line

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyhostdev.util.virxml import Element

ATTRIBUTE_NUMBER = Renumbering("attribute-number", VIR_ERR_XML_ERROR)
WORD_NUMBERS = Renumbering("word-numbers", VIR_ERR_XML_ERROR)
USB_DEPTH_MAX = 4  # numbers in a port: the depth of hubs
_ALIAS_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class DeviceAddress(ElementDef):
    """
    The guest address of a device; ``type`` selects the subclass.

    Mirrors: virDomainDeviceAddressType (src/conf/device_conf.h)
    """

    tag = "address"
    kind: ClassVar[str] = ""

    type = attribute("type")

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        self.type = self.kind

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """
        Read the address by its type.

        Raises:
            ConfigUnsupportedError: the type is missing or unknown.
            XMLError: a part of the address is not valid.
        """
        kind = element.get("type")
        definition = ADDRESS_TYPES.get(str(kind))
        if definition is None:
            message = "An <address> has no type" if kind is None else f"Address type '{shown(kind)}' is unknown"
            code = VIR_ERR_INTERNAL_ERROR if kind is None else None
            line = source_line(element)
            raise ConfigUnsupportedError(message, line=line, libvirt_code=code, renumbered=ATTRIBUTE_NUMBER)
        self = definition()
        self.read(element)
        return self  # type: ignore[return-value]  # only called on DeviceAddress


class PCIGuestAddress(DeviceAddress):
    """
    A guest PCI address; all zero means that an address must be chosen.

    Mirrors: virPCIDeviceAddress (src/util/virpci.h)
    """

    kind = "pci"

    domain = attribute("domain", hexadecimal(4), default=0)
    bus = attribute("bus", hexadecimal(2), default=0)
    slot = attribute("slot", hexadecimal(2), default=0)
    function = attribute("function", hexadecimal(1), default=0)
    multifunction = attribute("multifunction", on_off)
    zpci_uid = attribute("zpci/@uid", hexadecimal(4))
    zpci_fid = attribute("zpci/@fid", hexadecimal(8))

    @classmethod
    def at(cls, address: PCIDeviceAddress, *, multifunction: bool | None = None) -> Self:
        """Return the guest address for a PCI address."""
        made = cls()
        made.domain, made.bus, made.slot, made.function = address
        made.multifunction = multifunction
        return made

    @property
    def pci(self) -> PCIDeviceAddress:
        """The PCI address without the other attributes."""
        return PCIDeviceAddress(self.domain, self.bus, self.slot, self.function)

    @property
    def is_empty(self) -> bool:
        """True if the address must be chosen; as ``PCIDeviceAddress.is_empty``, the function does not count."""
        return not (self.domain or self.bus or self.slot)

    def parsed(self, element: Element) -> None:
        """Refuse numbers out of range."""
        check_pci_address(self.pci, element)

    def hides(self, name: str) -> bool:
        """Return True for the numbers of an address that must be chosen: they are not printed."""
        return name in PCIDeviceAddress._fields and self.is_empty


def check_pci_address(address: PCIDeviceAddress, element: Element) -> None:
    """
    Refuse a PCI address out of range; an empty one is accepted.

    Raises:
        XMLError: has the element's line.

    Mirrors: virPCIDeviceAddressParseXML (src/conf/device_conf.c)
    """
    try:
        address.check()
    except InvalidAddressError as err:
        if not address.is_empty:
            raise XMLError(str(err), line=source_line(element)) from err


class UnassignedAddress(DeviceAddress):
    """The guest does not get the device."""

    kind = "unassigned"


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


# elements for which libvirt reads <boot>, and those for which it reads <rom>
BOOTABLE = ("disk", "interface", "hostdev", "redirdev", "filesystem")
WITH_ROM = ("interface", "hostdev")

ADDRESS_TYPES: dict[str, type[DeviceAddress]] = {
    definition.kind: definition
    for definition in (
        PCIGuestAddress,
        UnassignedAddress,
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


class DeviceInfo(ElementDef):
    """
    Alias, address, boot order and ROM of a device; the fields are in the device's element.

    Mirrors: virDomainDeviceInfo (src/conf/device_conf.h)
    """

    boot_order = attribute("boot/@order", positive)
    boot_loadparm = attribute("boot/@loadparm", Codec(str.upper, str, "a name"))
    alias = attribute("alias/@name")
    master_startport = attribute("master/@startport", number)
    rom_enabled = attribute("rom/@enabled", yes_no)
    rom_bar = attribute("rom/@bar", on_off)
    rom_file = attribute("rom/@file")
    acpi_index = attribute("acpi/@index", positive)
    acpi_nodeset = attribute("acpi/@nodeset", nodeset, since="acpi-nodeset")
    address = optional_element("address", DeviceAddress)

    # set when the domain is defined, see guest_addresses
    written_at: int | None = None  # its position in the user's definition; None for added devices
    why: str | None = None  # why the device has this address

    def parsed(self, element: Element) -> None:
        """Refuse <boot> without order, and drop a generated alias."""
        if self.has_child("boot") and self.boot_order is None and element.tag in BOOTABLE:
            raise XMLError("A <boot> has no order", line=source_line(element))
        alias = self.alias
        if alias is not None and not is_user_alias(alias):
            self.alias = None

    def drop_foreign(self, tag: str) -> None:
        """Drop what devices of this kind do not have."""
        if tag not in BOOTABLE:
            self.boot_order = self.boot_loadparm = None
        if tag not in WITH_ROM:
            self.rom_enabled = self.rom_bar = self.rom_file = None

    @property
    def pci(self) -> PCIGuestAddress | None:
        """The address if it is a chosen PCI address, else None."""
        address = self.address
        return address if isinstance(address, PCIGuestAddress) and not address.is_empty else None

    @property
    def needs_address(self) -> bool:
        """True if an address must be chosen for the device."""
        address = self.address
        return address is None or (isinstance(address, PCIGuestAddress) and address.is_empty)

    @property
    def is_unassigned(self) -> bool:
        """True if the address has type='unassigned'."""
        return isinstance(self.address, UnassignedAddress)


def is_user_alias(alias: str) -> bool:
    """
    True for an alias that a user may choose.

    Mirrors: virDomainDeviceAliasIsUserAlias (src/conf/domain_conf.c)
    """
    return alias.startswith("ua-") and _ALIAS_CHARACTERS.issuperset(alias)
