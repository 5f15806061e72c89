# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The XML of a host's device, as ``virsh nodedev-dumpxml`` prints it for a PCI function.

Mirrors: src/conf/node_device_conf.c
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virpcivpd import PCIVPDResource
from pyhostdev.util.virxml import escape_attribute, escape_text

COMPUTER = "computer"  # the parent of a device without a parent device
LINK_SPEEDS = ("", "2.5", "5", "8", "16", "32", "64")  # GT/s, by the number in the link registers
HEADER_CAPABILITIES = {1: "pci-bridge", 2: "cardbus-bridge"}

_READ_ONLY = {"EC": "change_level", "MN": "manufacture_id", "PN": "part_number", "SN": "serial_number"}
_READ_WRITE = {"YA": "asset_tag"}


class PCIELink(NamedTuple):
    """The capability or the status of a link; the status has no port number."""

    speed: int
    width: int
    port: int | None = None


class MediatedDeviceType(NamedTuple):
    """One type of mediated device that a driver offers."""

    id: str
    name: str | None
    device_api: str | None
    available_instances: int | None


@dataclass(frozen=True)
class NodeDevCapPCIDev:
    """
    The capability ``pci`` of a device; None and empty mean that the host does not have the fact.

    Mirrors: virNodeDevCapPCIDev
    """

    address: PCIDeviceAddress
    class_: int | None = None
    product: int | None = None
    product_name: str | None = None
    vendor: int | None = None
    vendor_name: str | None = None
    physical_function: PCIDeviceAddress | None = None
    virtual_functions: tuple[PCIDeviceAddress, ...] = ()
    max_virtual_functions: int = 0
    header_type: int | None = None
    mdev_types: tuple[MediatedDeviceType, ...] = ()
    vpd: PCIVPDResource | None = None
    iommu_group: int | None = None
    iommu_group_devices: tuple[PCIDeviceAddress, ...] = ()
    numa_node: int | None = None
    is_pci_express: bool = False
    link_cap: PCIELink | None = None
    link_sta: PCIELink | None = None


@dataclass(frozen=True)
class NodeDeviceDef:
    """
    One device of a host.

    Mirrors: virNodeDeviceDef
    """

    name: str
    path: str
    parent: str
    driver: str | None
    pci: NodeDevCapPCIDev

    def format(self) -> str:
        """
        Return the XML of the device.

        Mirrors: virNodeDeviceDefFormat
        """
        return "".join(f"{line}\n" for line in _device_lines(self))


def node_device_name(address: PCIDeviceAddress) -> str:
    """Return the name that libvirt gives a PCI function: pci_0000_01_00_0."""
    return f"pci_{address.domain:04x}_{address.bus:02x}_{address.slot:02x}_{address.function}"


def _nested(start: str, inside: Iterator[str], end: str) -> Iterator[str]:
    """Yield an element with its contents; every line inside is indented by two blanks."""
    yield start
    yield from (f"  {line}" for line in inside)
    yield end


def _element(name: str, text: str) -> str:
    return f"<{name}>{escape_text(text)}</{name}>"


def _device_lines(device: NodeDeviceDef) -> Iterator[str]:
    def inside() -> Iterator[str]:
        yield _element("name", device.name)
        yield _element("path", device.path)
        yield _element("parent", device.parent)
        if device.driver is not None:
            yield from _nested("<driver>", iter([_element("name", device.driver)]), "</driver>")
        yield from _nested("<capability type='pci'>", _pci_lines(device.pci), "</capability>")

    return _nested("<device>", inside(), "</device>")


def _pci_lines(pci: NodeDevCapPCIDev) -> Iterator[str]:
    """
    Yield the contents of the capability ``pci``.

    Mirrors: virNodeDeviceCapPCIDefFormat
    """
    if pci.class_ is not None:
        yield f"<class>0x{pci.class_:06x}</class>"
    for name in ("domain", "bus", "slot", "function"):
        yield f"<{name}>{getattr(pci.address, name)}</{name}>"
    yield _identity("product", pci.product, pci.product_name)
    yield _identity("vendor", pci.vendor, pci.vendor_name)
    yield from _sriov_lines(pci)
    if pci.header_type in HEADER_CAPABILITIES:
        yield f"<capability type='{HEADER_CAPABILITIES[pci.header_type]}'/>"
    yield from _mdev_lines(pci.mdev_types)
    yield from _vpd_lines(pci.vpd)
    if pci.iommu_group_devices:
        start = f"<iommuGroup number='{pci.iommu_group}'>"
        yield from _nested(start, map(_address, pci.iommu_group_devices), "</iommuGroup>")
    if pci.numa_node is not None:
        yield f"<numa node='{pci.numa_node}'/>"
    yield from _express_lines(pci)


def _identity(element: str, number: int | None, name: str | None) -> str:
    start = f"<{element}" if number is None else f"<{element} id='0x{number:04x}'"
    return f"{start}>{escape_text(name)}</{element}>" if name else f"{start}/>"


def _address(address: PCIDeviceAddress) -> str:
    domain, bus, slot, function = address
    return f"<address domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x{function}'/>"


def _sriov_lines(pci: NodeDevCapPCIDev) -> Iterator[str]:
    if pci.physical_function is not None:
        start = "<capability type='phys_function'>"
        yield from _nested(start, iter([_address(pci.physical_function)]), "</capability>")
    if pci.virtual_functions or pci.max_virtual_functions:
        count = f" maxCount='{pci.max_virtual_functions}'" if pci.max_virtual_functions else ""
        start = f"<capability type='virt_functions'{count}"
        if pci.virtual_functions:
            yield from _nested(f"{start}>", map(_address, pci.virtual_functions), "</capability>")
        else:
            yield f"{start}/>"


def _mdev_lines(types: tuple[MediatedDeviceType, ...]) -> Iterator[str]:
    """
    Yield the types of mediated devices.

    Mirrors: virNodeDeviceCapMdevTypesFormat
    """

    def inside() -> Iterator[str]:
        for one in types:
            yield from _nested(f"<type id='{escape_attribute(one.id)}'>", _mdev_type_lines(one), "</type>")

    if types:
        yield from _nested("<capability type='mdev_types'>", inside(), "</capability>")


def _mdev_type_lines(one: MediatedDeviceType) -> Iterator[str]:
    values = {"name": one.name, "deviceAPI": one.device_api, "availableInstances": one.available_instances}
    return (_element(name, str(value)) for name, value in values.items() if value is not None)


def _vpd_lines(vpd: PCIVPDResource | None) -> Iterator[str]:
    """
    Yield the Vital Product Data.

    Mirrors: virNodeDeviceCapVPDFormat
    """

    def inside(found: PCIVPDResource) -> Iterator[str]:
        if found.name is not None:
            yield _element("name", found.name)
        if found.readonly is not None:
            yield from _fields("readonly", found.readonly, _READ_ONLY, {"V": "vendor_field"})
        if found.readwrite is not None:
            yield from _fields("readwrite", found.readwrite, _READ_WRITE, {"V": "vendor_field", "Y": "system_field"})

    if vpd is not None:
        yield from _nested("<capability type='vpd'>", inside(vpd), "</capability>")


def _fields(access: str, fields: dict[str, str], known: dict[str, str], families: dict[str, str]) -> Iterator[str]:
    """Yield one section: named fields first, then each family of fields with its index."""

    def inside() -> Iterator[str]:
        yield from (_element(name, fields[keyword]) for keyword, name in known.items() if keyword in fields)
        for first, name in families.items():
            for keyword, value in fields.items():
                if keyword[0] == first and keyword not in known:
                    yield f"<{name} index='{keyword[1]}'>{escape_text(value)}</{name}>"

    return _nested(f"<fields access='{access}'>", inside(), "</fields>")


def _express_lines(pci: NodeDevCapPCIDev) -> Iterator[str]:
    """
    Yield the links of a PCI Express function; functions inside the root complex have no link.

    Mirrors: virPCIEDeviceInfoFormat
    """
    if not pci.is_pci_express:
        return
    links = {"cap": pci.link_cap, "sta": pci.link_sta}
    found = [_link(validity, link) for validity, link in links.items() if link is not None]
    if found:
        yield from _nested("<pci-express>", iter(found), "</pci-express>")
    else:
        yield "<pci-express/>"


def _link(validity: str, link: PCIELink) -> str:
    port = "" if link.port is None else f" port='{link.port}'"
    speed = f" speed='{LINK_SPEEDS[link.speed]}'" if 0 < link.speed < len(LINK_SPEEDS) else ""
    return f"<link validity='{validity}'{port}{speed} width='{link.width}'/>"
