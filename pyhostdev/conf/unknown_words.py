# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Words on a host device that the tables do not know.

Elsewhere in a domain an unknown word is kept and reported. On a ``<hostdev>``, or an ``<interface>`` that is one, it
may be a typing error in the word that says who gets the device: ``asigned='no'`` would give it to the guest.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from pyhostdev.conf.xmlshape import Shape
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.xmldef import ElementDef

# libvirt's own words of later releases (its schema of 12.8), which change how the device is handed over
_LATER_WORDS = {
    "driver/@iommufd": "12.1",
    "acpi/@nodeset": "11.8",
    "mac/@currentAddress": "11.3",
}
# what people write from habit: every source of a PCI device is a PCI address
_HARMLESS_WORDS = frozenset({"source/address/@type"})


def unknown_words(dom: DomainDef) -> list[Finding]:
    """
    Return the words on PCI host devices that are not known, in the order of the domain.

    An error is reason ``unknown-word``; a word of a later libvirt is a note ``unsupported``, and a word that says
    nothing is a note ``ignored``. Attributes and elements in a namespace of their own belong to others.
    """
    return [finding for device in _host_devices(dom) for finding in words_on(device)]


def _host_devices(dom: DomainDef) -> Iterator[ElementDef]:
    yield from dom.hostdevs
    yield from (net for net in dom.interfaces if net.hostdev is not None)


def words_on(device: ElementDef) -> Iterator[Finding]:
    """Yield the findings of one device, see ``unknown_words``."""
    source = getattr(device, "source", None)
    address = source if isinstance(source, PCIDeviceAddress) else None
    for path, line in device.unmodelled():
        words = path.partition("/")[2]
        if ":" in words or words.rpartition("/")[2] in _known_opaque(device):
            continue
        yield _finding(device, words, address, line)


def _known_opaque(device: ElementDef) -> set[str]:
    """Return the elements that are kept as they were written, and refused or built elsewhere."""
    rows = device.table().rows
    return {row.field.path[-1] for row in rows if type(row.field).__name__ == "Opaque" and row.field.path}


def _finding(device: ElementDef, words: str, address: PCIDeviceAddress | None, line: int | None) -> Finding:
    place, _, leaf = words.rpartition("/")
    where = "/".join(filter(None, (device.tag, place)))
    what = f"attribute '{shown(leaf[1:])}' of <{where}>" if leaf[:1] == "@" else f"element <{shown(leaf)}> in <{where}>"
    if words in _HARMLESS_WORDS:
        return Finding("ignored", NOTE, address, f"The {what} says nothing and is ignored", line)
    if words in _LATER_WORDS:
        release = _LATER_WORDS[words]
        return Finding("unsupported", NOTE, address, f"The {what} (libvirt {release}) is not supported yet", line)
    return Finding("unknown-word", ERROR, address, f"Unknown {what}{_hint(device, place, leaf)}", line)


def _hint(device: ElementDef, place: str, leaf: str) -> str:
    """Return the known word that is nearest, as the end of a sentence."""
    shape: Shape | None = device.table().shape
    for tag in place.split("/") if place else ():
        node = shape.nodes.get(tag) if shape is not None else None
        shape = node if isinstance(node, Shape) else _shape_of(device, tag)
    if shape is None:
        return ""
    known = shape.attributes if leaf[:1] == "@" else shape.nodes
    near = get_close_matches(leaf.lstrip("@"), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _shape_of(device: ElementDef, tag: str) -> Shape | None:
    """Return the shape of an element with a definition of its own."""
    for row in device.table().rows:
        definition = getattr(row.field, "definition", None)
        if definition is not None and row.field.path[-1:] == (tag,):
            value = getattr(device, row.field.name, None)
            kind: type[ElementDef] = definition if value is None else type(value)
            return kind.table().shape
    return None
