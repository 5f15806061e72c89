# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest address of a device: what all kinds share, and the kinds of devices that are passed through.

Mirrors: virDomainDeviceInfo (src/conf/device_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyhostdev.conf.xml.xmlcodec import hexadecimal, on_off
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute
from pyhostdev.errors import InvalidAddressError, XMLError
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virxml import source_line

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyhostdev.util.virxml import Element


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
