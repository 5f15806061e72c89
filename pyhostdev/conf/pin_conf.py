# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Pins: the identities of host devices, in the domain's ``<metadata>``, which libvirt keeps as it is.

A pin stands next to the address of its device::

    <pin:hostdevs xmlns:pin="urn:pyhostdev:pin:1">
      <pin:hostdev address="0000:01:00.0" vendor="0x8086" device="0x1528" path="0000:00/01.0/00.0"/>
    </pin:hostdevs>
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lxml import etree

from pyhostdev.errors import InvalidAddressError, XMLError
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciidentity import DeviceIdentity
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import attributes_of, dump_element, parse_document, parse_unsigned, shown, source_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.util.virxml import Element

NAMESPACE = "urn:pyhostdev:pin:1"
_PINS, _PIN, _PF = (f"{{{NAMESPACE}}}{name}" for name in ("hostdevs", "hostdev", "pf"))
_SERIAL = r"[0-9a-f]{2}(-[0-9a-f]{2}){7}"
_MACS = r"[0-9a-f]{2}(:[0-9a-f]{2})+( [0-9a-f]{2}(:[0-9a-f]{2})+)*"
_PATH = r"[0-9a-f]{4,8}:[0-9a-f]{2}(/[0-9a-f]{2}\.[0-7])+"


class HostdevPin(NamedTuple):
    """The identity of the host device that a domain declares at an address."""

    address: PCIDeviceAddress
    identity: DeviceIdentity


def _number(text: str) -> int:
    return parse_unsigned(text, 0)


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(text)
        return text

    return parse


# attribute -> field, digits if it is printed as a hexadecimal number, and how it is read
_ATTRIBUTES: dict[str, tuple[str, int, Callable[[str], object]]] = {
    "vendor": ("vendor", 4, _number),
    "device": ("device", 4, _number),
    "subsystem-vendor": ("subsystem_vendor", 4, _number),
    "subsystem": ("subsystem_device", 4, _number),
    "class": ("class_", 6, _number),
    "revision": ("revision", 2, _number),
    "function": ("function", 0, _number),
    "vf": ("vf", 0, _number),
    "path": ("path", 0, _matching(_PATH)),
    "serial": ("serial", 0, _matching(_SERIAL)),
    "mac": ("mac", 0, _matching(_MACS)),
}


def read_pins(dom: DomainFields) -> list[HostdevPin]:
    """
    Return the pins of a domain, in their order.

    Raises:
        XMLError: a pin is incomplete, or has a part that is unknown or not valid.
    """
    return [_pin_of(element) for pins in _documents(dom) for element in pins]


def with_pins(dom: DomainFields, pins: Iterable[HostdevPin]) -> str | None:
    """Return the domain's metadata with these pins instead of its own; None if that leaves nothing."""
    metadata = _metadata(dom)
    for old in metadata.findall(_PINS):
        metadata.remove(old)
    elements = [_element_of(pin) for pin in pins]
    if elements:
        holder = etree.SubElement(metadata, _PINS, nsmap={"pin": NAMESPACE})
        holder.extend(elements)
        etree.indent(holder, space="  ", level=2)
        holder.tail = "\n  "
        _indent_before(metadata, holder)
    return dump_element(metadata) if len(metadata) else None


def _indent_before(metadata: Element, holder: Element) -> None:
    """Put the pins on separate lines after the existing elements."""
    previous = holder.getprevious()
    if previous is None:
        metadata.text = "\n    "
    else:
        previous.tail = "\n    "


def _metadata(dom: DomainFields) -> Element:
    if dom.metadata is None:
        return parse_document("<metadata/>")
    metadata = parse_document(f"<domain>{dom.metadata}</domain>").find("metadata")
    assert metadata is not None  # the parser created it
    return metadata


def _documents(dom: DomainFields) -> list[Element]:
    if dom.metadata is None or NAMESPACE not in dom.metadata:
        return []
    return _metadata(dom).findall(_PINS)


def _pin_of(element: Element) -> HostdevPin:
    if element.tag != _PIN:
        raise _wrong(element, f"has an unknown element '{shown(_local(element))}'")
    text = element.get("address")
    if text is None:
        raise _wrong(element, "has no address")
    try:
        address = PCIDeviceAddress.parse(text)
    except InvalidAddressError as err:
        raise _wrong(element, f"is invalid: {err}") from None
    return HostdevPin(address, _identity_of(element, ("address",)))


def _identity_of(element: Element, others: tuple[str, ...] = ()) -> DeviceIdentity:
    found: dict[str, object] = {}
    for name, text in attributes_of(element):
        if name in others:
            continue
        field, _, parse = _ATTRIBUTES.get(name, ("", 0, str))
        if not field:
            raise _wrong(element, f"has an unknown attribute '{shown(name)}'")
        try:
            found[field] = parse(text)
        except ValueError:
            raise _wrong(element, f"has an invalid {name} '{shown(text)}'") from None
    for part in element:
        if part.tag != _PF or "pf" in found or "address" not in others:
            raise _wrong(element, f"has an unknown element '{shown(_local(part))}'")
        found["pf"] = _identity_of(part)
    return DeviceIdentity(**found)  # type: ignore[arg-type]  # each parser returns its field's type


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _wrong(element: Element, what: str) -> XMLError:
    return XMLError(f"The pin of a host device in <metadata> {what}", line=source_line(element), reason="unknown-word")


def _element_of(pin: HostdevPin) -> Element:
    element = _filled(etree.Element(_PIN, nsmap={"pin": NAMESPACE}), pin.identity, address=str(pin.address))
    if pin.identity.pf is not None:
        _filled(etree.SubElement(element, _PF), pin.identity.pf)
    return element


def _filled(element: Element, identity: DeviceIdentity, **first: str) -> Element:
    for name, text in first.items():
        element.set(name, text)
    for name, (field, digits, _) in _ATTRIBUTES.items():
        value = getattr(identity, field)
        if value is not None:
            element.set(name, f"0x{value:0{digits}x}" if digits else str(value))
    return element
