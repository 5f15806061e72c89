# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What all devices of a domain share: alias, boot order, ROM, and guest address.

Mirrors: src/conf/device_conf.c, virDomainDeviceInfo (src/conf/device_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.address_conf import DeviceAddress, PCIGuestAddress, UnassignedAddress
from pyhostdev.conf.xml.xmlcodec import Codec, nodeset, number, on_off, positive, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import OptionalElement, attribute, optional_element
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, VIR_ERR_XML_ERROR, ConfigUnsupportedError, Renumbering, XMLError
from pyhostdev.util.virxml import shown, source_line

if TYPE_CHECKING:
    from pyhostdev.util.virxml import Element

ATTRIBUTE_NUMBER = Renumbering("attribute-number", VIR_ERR_XML_ERROR)
WORD_NUMBERS = Renumbering("word-numbers", VIR_ERR_XML_ERROR)
_ALIAS_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class AnyAddress(DeviceAddress):
    """An address in the XML, whose ``type`` selects its definition."""

    @classmethod
    def from_element(cls, element: Element) -> DeviceAddress:  # type: ignore[override]  # of any kind
        """
        Read the address by its type.

        Raises:
            ConfigUnsupportedError: the type is missing or unknown.
            XMLError: a part of the address is not valid.
        """
        kind = element.get("type")
        definition = _definition_of(str(kind))
        if definition is None:
            message = "An <address> has no type" if kind is None else f"Address type '{shown(kind)}' is unknown"
            code = VIR_ERR_INTERNAL_ERROR if kind is None else None
            line = source_line(element)
            raise ConfigUnsupportedError(message, line=line, libvirt_code=code, renumbered=ATTRIBUTE_NUMBER)
        return definition.from_element(element)


def _definition_of(kind: str) -> type[DeviceAddress] | None:
    if kind in ("pci", "unassigned"):
        return PCIGuestAddress if kind == "pci" else UnassignedAddress
    from pyhostdev.conf.bus_address_conf import ADDRESS_TYPES  # devices that are passed through have no other kind

    return ADDRESS_TYPES.get(kind)


# elements for which libvirt reads <boot>, and those for which it reads <rom>
BOOTABLE = ("disk", "interface", "hostdev", "redirdev", "filesystem")
WITH_ROM = ("interface", "hostdev")


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
    address: OptionalElement[DeviceAddress] = optional_element("address", AnyAddress)

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
