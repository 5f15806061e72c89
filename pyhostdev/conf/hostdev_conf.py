# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Host devices of a domain.

Mirrors: virDomainHostdevDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lxml import etree

from pyhostdev.conf.address_conf import UnassignedAddress, check_pci_address
from pyhostdev.conf.device_conf import ATTRIBUTE_NUMBER, DeviceInfo
from pyhostdev.conf.xml.xmlcodec import enum, hexadecimal, number_any_base, on_off, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, flag, ignored, inline, opaque, optional_element
from pyhostdev.errors import (
    VIR_ERR_CONFIG_UNSUPPORTED,
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_XML_ERROR,
    ConfigUnsupportedError,
    Renumbering,
    XMLError,
    raise_all,
)
from pyhostdev.util.deprecation import warn_renamed
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.viruuid import normal_uuid
from pyhostdev.util.virxml import shown, source_line

if TYPE_CHECKING:
    from collections.abc import Collection

    from typing_extensions import Self

    from pyhostdev.util.virxml import Element

_MDEV_NUMBER = Renumbering("mdev-uuid-number", VIR_ERR_XML_ERROR)

# elements that a not assigned device cannot have, because they describe the guest's side
_GUEST_SIDE = ("address", "alias", "boot", "rom", "acpi", "teaming")

_MISPLACED = etree.XPath(
    "(self::*|*[not(self::metadata)]/descendant-or-self::*)[@assigned][not(self::hostdev)]", smart_strings=False
)


def misplaced_assigned(element: Element) -> list[XMLError]:
    """
    Return an error for each ``assigned`` that has no effect, on an element or below it, outside metadata.

    The attribute decides whether a guest gets a device, so it is never ignored.
    """
    return [
        XMLError(f"<{shown(str(found.tag))}> cannot have 'assigned'", line=source_line(found))
        for found in cast("list[Element]", _MISPLACED(element))
    ]


def refuse_misplaced(root: Element, source: str | bytes) -> None:
    """
    Refuse a document with an ``assigned`` that has no effect; nothing is looked for in a text without this word.

    Raises:
        XMLError: as ``misplaced_assigned``; the first error, with further ones in ``others``.
    """
    if b"assigned" in source if isinstance(source, bytes) else "assigned" in source:
        raise_all(misplaced_assigned(root))


class HostdevSource(ElementDef):
    """The host side of a host device; one subclass for each type of hostdev."""

    tag = "source"

    startup_policy = attribute("startupPolicy", enum("mandatory", "requisite", "optional"))

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """
        Read the source by the type of the hostdev around it.

        Raises:
            XMLError: the hostdev has no known type, or a part of its source is not valid.
        """
        parent = element.getparent()
        kind = None if parent is None else parent.get("type")
        definition = SOURCE_TYPES.get(str(kind), PCISource)
        self = definition()
        self.read(element)
        return self  # type: ignore[return-value]  # only called on HostdevSource


# attributes of other sources and of guest addresses
_FOREIGN_TO_PCI = (
    "address/@device",
    "address/@target",
    "address/@unit",
    "address/@uuid",
    "address/@multifunction",
    "address/zpci",
    "vendor",
    "product",
)


class PCISource(HostdevSource):
    """A PCI function of the host."""

    write_filtering = attribute("writeFiltering", yes_no)
    domain = attribute("address/@domain", hexadecimal(4), default=0)
    bus = attribute("address/@bus", hexadecimal(2), default=0)
    slot = attribute("address/@slot", hexadecimal(2), default=0)
    function = attribute("address/@function", hexadecimal(1), default=0)
    origstates = opaque("origstates")
    foreign = ignored(*_FOREIGN_TO_PCI)

    @property
    def address(self) -> PCIDeviceAddress:
        """The address on the host."""
        return PCIDeviceAddress(self.domain, self.bus, self.slot, self.function)

    def parsed(self, element: Element) -> None:
        """Refuse numbers out of range."""
        check_pci_address(self.address, element)


class USBSource(HostdevSource):
    """
    A USB device by address, by vendor and product, or both.

    Mirrors: virDomainHostdevSubsysUSBDefParseXML (src/conf/domain_conf.c)
    """

    guest_reset = attribute("guestReset", enum("off", "uninitialized", "on"))
    vendor_id = attribute("vendor/@id", hexadecimal(4))
    product_id = attribute("product/@id", hexadecimal(4))
    bus = attribute("address/@bus", number_any_base)
    device = attribute("address/@device", number_any_base)

    @property
    def is_empty(self) -> bool:
        """True if it names no device."""
        return self.vendor_id is None and self.bus is None

    def parsed(self, element: Element) -> None:
        """Refuse an incomplete source."""
        for what, parts in (("vendor and product", "vendor product"), ("address", "bus device")):
            names = [f"{part}_id" if what != "address" else part for part in parts.split()]
            said = [getattr(self, name) is not None for name in names]
            if any(said) and not all(said):
                text = f"The {what} of a USB <source> is incomplete"
                is_absent = what != "address" and any(element.find(part) is None for part in parts.split())
                code = VIR_ERR_INTERNAL_ERROR if is_absent else None
                raise XMLError(text, line=source_line(element), libvirt_code=code)
        if self.vendor_id == 0:
            raise XMLError("The vendor of a USB <source> cannot be 0", line=source_line(element))


class SCSISource(HostdevSource):
    """A SCSI unit of a host adapter, or behind iSCSI."""

    protocol = attribute("protocol", enum("adapter", "iscsi"))
    name = attribute("name")
    adapter = attribute("adapter/@name")
    bus = attribute("address/@bus", number_any_base)
    target = attribute("address/@target", number_any_base)
    unit = attribute("address/@unit", number_any_base)
    host = attribute("host/@name")
    port = attribute("host/@port")
    auth = opaque("auth")
    initiator = attribute("initiator/iqn/@name")

    def parsed(self, element: Element) -> None:
        """
        Refuse a source without a unit.

        Mirrors: virDomainHostdevSubsysSCSIDefParseXML (src/conf/domain_conf.c)
        """
        wanted = ("name", "host") if self.protocol == "iscsi" else ("adapter", "bus", "target", "unit")
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            raise XMLError(f"A SCSI <source> has no {missing[0]}", line=source_line(element))


class SCSIHostSource(HostdevSource):
    """A whole SCSI host adapter, through vhost."""

    protocol = attribute("protocol", enum("vhost"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    wwpn = attribute("wwpn")

    def parsed(self, element: Element) -> None:
        """Refuse a source without protocol or wwpn."""
        if self.protocol is None or self.wwpn is None:
            raise XMLError("A SCSI host <source> needs protocol and wwpn", line=source_line(element))


class MdevSource(HostdevSource):
    """A mediated device."""

    uuid = attribute("address/@uuid")

    def parsed(self, element: Element) -> None:
        """Refuse a source without uuid; normalise the uuid."""
        if self.uuid is None:
            text = "The source of a mediated device has no uuid"
            renumbered = _MDEV_NUMBER if element.find("address") is not None else None
            raise ConfigUnsupportedError(text, line=source_line(element), renumbered=renumbered)
        try:
            self.uuid = normal_uuid(self.uuid)
        except ValueError:
            raise XMLError(
                f"Invalid UUID '{shown(self.uuid)}'",
                line=source_line(element),
                libvirt_code=VIR_ERR_INTERNAL_ERROR,
                renumbered=_MDEV_NUMBER,
            ) from None


SOURCE_TYPES: dict[str, type[HostdevSource]] = {
    "pci": PCISource,
    "usb": USBSource,
    "scsi": SCSISource,
    "scsi_host": SCSIHostSource,
    "mdev": MdevSource,
}


class InterfaceNetwork(NamedTuple):
    """The network settings that an ``<interface>`` requests, as phrases, and whether it has a ``<virtualport>``."""

    words: tuple[str, ...]
    has_virtualport: bool


class HostdevDriver(ElementDef):
    """How a PCI function is prepared and reached: the part of <driver> that an <interface type='hostdev'> has, too."""

    model = attribute("driver/@model", since="hostdev-driver-model")
    iommufd = attribute("driver/@iommufd", yes_no, since="iommufd")


class DomainHostdevDef(ElementDef):
    """
    A host device of a domain.

    ``assigned`` is absent (None), yes or no; absent means yes, and stays absent when printed.

    Mirrors: virDomainHostdevDef (src/conf/domain_conf.h)
    """

    tag = "hostdev"

    mode = attribute(
        "mode",
        enum("subsystem", "capabilities"),
        default="subsystem",
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        renumbered=ATTRIBUTE_NUMBER,
    )
    type = attribute(
        "type",
        enum(*SOURCE_TYPES, "storage", "misc", "net"),
        default="",
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        renumbered=ATTRIBUTE_NUMBER,
    )
    managed = attribute("managed", yes_no, default=False, lenient=True)
    assigned = attribute("assigned", yes_no)
    sgio = attribute("sgio", enum("filtered", "unfiltered"))
    rawio = attribute("rawio", yes_no)
    model = attribute(
        "model",
        enum(
            "vfio-pci",
            "vfio-ccw",
            "vfio-ap",
            "virtio",
            "virtio-transitional",
            "virtio-non-transitional",
        ),
    )
    display = attribute("display", on_off)
    ramfb = attribute("ramfb", on_off)
    driver_name = attribute("driver/@name", enum("kvm", "vfio", "xen"))
    host_driver = inline(HostdevDriver)
    source_def = optional_element("source", HostdevSource)
    teaming_type = attribute("teaming/@type", enum("persistent", "transient"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    teaming_persistent = attribute("teaming/@persistent")
    readonly = flag("readonly")
    shareable = flag("shareable")
    info = inline(DeviceInfo)

    interface: InterfaceNetwork | None = None  # set if it comes from an <interface type='hostdev'>
    nvme_disks: tuple[str, ...] = ()  # set if it is the controller of these disks, and not a device of the guest

    @classmethod
    def for_pci(
        cls,
        address: PCIDeviceAddress | str,
        *,
        managed: bool = False,
        assigned: bool | None = None,
        unassigned: bool = False,
    ) -> Self:
        """
        Return the definition of a PCI function.

        Args:
            assigned: the value of the attribute ``assigned``; None omits it.
            unassigned: True adds ``<address type='unassigned'/>``, libvirt's spelling.
        """
        self = cls(type="pci", managed=managed, assigned=assigned)
        self.source_def = PCISource(**PCIDeviceAddress.of(address)._asdict())
        if unassigned:
            self.info.address = UnassignedAddress()
        return self

    @property
    def source(self) -> PCIDeviceAddress | HostdevSource | None:
        """The host's address of a PCI device, the source definition of another."""
        source = self.source_def
        return source.address if isinstance(source, PCISource) else source

    @property
    def driver_model(self) -> str | None:
        """The old spelling of ``host_driver.model``."""
        warn_renamed("driver_model", "host_driver.model")
        return self.host_driver.model

    @property
    def is_pci(self) -> bool:
        """True for a PCI function in mode subsystem."""
        return self.mode == "subsystem" and self.type == "pci"

    @property
    def pci_address(self) -> PCIDeviceAddress:
        """The host address; only valid if ``is_pci``."""
        assert isinstance(self.source_def, PCISource)
        return self.source_def.address

    @property
    def is_assigned(self) -> bool:
        """True if the guest gets the device."""
        return self.assigned is not False and not self.info.is_unassigned

    @property
    def spelling(self) -> str | None:
        """The spelling in use: "assigned", "unassigned" or None."""
        if self.assigned is not None:
            return "assigned"
        return "unassigned" if self.info.is_unassigned else None

    def hides(self, name: str) -> bool:
        """Return True for ``managed`` of a mode other than subsystem."""
        return name == "managed" and self.mode != "subsystem"

    def guest_side_names(self) -> list[str]:
        """Return the names of elements about the guest's side, without an unassigned address."""
        info = self.info
        found = {
            "address": info.address is not None and not info.is_unassigned,
            "alias": info.alias is not None,
            "boot": info.boot_order is not None,
            "rom": (info.rom_enabled, info.rom_bar, info.rom_file) != (None, None, None),
            "acpi": info.acpi_index is not None,
            "teaming": self.teaming_type is not None,
        }
        return [name for name in _GUEST_SIDE if found[name]]

    @classmethod
    def check_document(cls, root: Element, source: str | bytes) -> None:
        """Refuse ``assigned`` where it has no effect."""
        refuse_misplaced(root, source)

    def parsed(self, element: Element) -> None:
        """Refuse a definition that is invalid on any host."""
        line = self.line
        if self.assigned is not None:
            self._check_assigned(element)
        if not self.type:
            raise XMLError("A <hostdev> has no type", line=line)
        if self.mode == "capabilities" and self.type in SOURCE_TYPES:
            text = f"A <hostdev> of mode capabilities cannot have the type {self.type}"
            raise ConfigUnsupportedError(text, line=line, renumbered=ATTRIBUTE_NUMBER)
        if self.source_def is None and not self.has_child("source"):
            raise XMLError("A <hostdev> has no <source>", line=line)
        self._check_type(line)
        if not self.is_pci:
            self.host_driver.iommufd = None  # libvirt reads it of PCI devices only

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """Return the driver name of a device other than PCI, and the source of a device in mode capabilities."""
        if element.get("mode") == "capabilities" and element.get("type") in SOURCE_TYPES:
            return ("driver/@name", "source")
        return () if element.get("type") == "pci" else ("driver/@name",)

    def _check_assigned(self, element: Element) -> None:
        """
        Refuse ``assigned`` on other than PCI devices, and elements about the guest's side next to ``assigned='no'``.

        Raises:
            XMLError: the message names the element.
        """
        line = self.line
        if not self.is_pci:
            raise XMLError("Only a PCI <hostdev> can have 'assigned'", line=line)
        if self.assigned and self.info.is_unassigned:
            raise XMLError("assigned='yes' contradicts an <address type='unassigned'>", line=line)
        if self.assigned:
            return
        for name in _GUEST_SIDE:
            if element.find(name) is not None:
                raise XMLError(f"A <hostdev> with assigned='no' cannot have <{name}>", line=line)

    def _check_type(self, line: int | None) -> None:
        kind, model, source = self.type, self.model, self.source_def
        if kind == "mdev" and model is None:
            raise XMLError("A <hostdev> of type mdev needs a model", line=line)
        if kind not in ("mdev", "scsi_host") and model is not None:
            raise XMLError(f"A <hostdev> of type {kind} cannot have a model", line=line)
        if kind != "usb" and source is not None and source.startup_policy is not None:
            raise ConfigUnsupportedError("Only a USB <source> can have a startupPolicy", line=line)
        if kind != "scsi" and (self.sgio is not None or self.rawio is not None):
            raise XMLError(f"A <hostdev> of type {kind} cannot have sgio or rawio", line=line)
