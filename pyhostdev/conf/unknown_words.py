# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Attributes and elements of a definition that the tables do not know.

On a ``<hostdev>``, or an ``<interface>`` that is one, an unknown name may be a misspelled attribute that decides
whether the guest gets the device: ``asigned='no'`` would assign it. Elsewhere in a domain it is kept and reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.domain_fields import DomainFields
from pyhostdev.errors import ConfigError, XMLError
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virxml import nearest_words, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.xml.definition import Unknown
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.conf.xml.xmlshape import Row, Shape

# attributes and elements of newer libvirt releases (schema of 12.8) that do not affect prepare
_LATER_WORDS = {
    "mac/@currentAddress": "11.3",
}
# attributes that libvirt reads in other sources and ignores here: every source of a PCI device is a PCI address
_HARMLESS_WORDS = frozenset({"source/address/@type"})
_HINT = "; did you mean"
_ALIKE = 0.6  # how like a known name an unknown one must be to be called a mistake for it


def unknown_words(dom: DomainFields) -> list[Finding]:
    """
    Return findings about unknown attributes and elements of host devices, in the order of the domain.

    Reason ``unknown-word`` is an error, also for an invalid value of a name that some releases lack. A name of a newer
    libvirt is a note ``unsupported``; one without an effect, and an element that stands twice, is a note ``ignored``.
    A name in a foreign namespace is checked only if it is like a known one: libvirt reads attributes without regard to
    their namespace (xmlGetProp).
    """
    return [finding for _, finding in words_with_paths(dom)]


def words_with_paths(dom: DomainFields) -> list[tuple[str, Finding]]:
    """Return the findings of ``unknown_words``, each with its path in ``DomainFields.unmodelled``."""
    odd = [device for device in _host_devices(dom) if device.has_odd_words()]
    found = (pair for device in odd for pair in _word_findings(device))
    return [(f"{dom.tag}/devices/{path}", finding) for path, finding in found]


def kept_words(dom: DomainFields) -> list[Finding]:
    """Return a note for each unknown attribute or element outside host devices; it is kept unchanged."""
    hostdevs = {id(device) for device in _host_devices(dom)}
    found = []
    for device in [*dom.devices(), dom]:
        if id(device) not in hostdevs:
            place = ("domain", "devices", device.tag) if device is not dom else ("domain",)
            found += [_kept(*said) for said in _unknown_outside_hostdevs(device, place)]
    return sorted(found, key=lambda finding: finding.line or 0)


def other_words(dom: DomainFields) -> dict[tuple[str, int | None], str]:
    """
    Return a sentence for each unknown attribute or element outside host devices.

    The keys are path and line, as in ``DomainFields.unmodelled``.
    """
    hostdevs = {id(device) for device in _host_devices(dom)}
    found = {}
    for device in [*dom.devices(), dom]:
        place = ("domain", "devices", device.tag) if device is not dom else ("domain",)
        for owner, word, hint in _unknown_outside_hostdevs(device, place) if id(device) not in hostdevs else ():
            what = _described(owner, word.label)
            text = f"Unknown {what}{hint}" if hint else f"{what[0].upper()}{what[1:]} is not supported"
            found[f"{owner}/{word.label}", word.line] = text
    return found


def with_unknown_words(error: ConfigError) -> list[ConfigError]:
    """
    Return the errors of a domain that cannot be parsed, and one for each unknown name: of a host device, or like a
    known one.
    """
    errors = [error, *error.others]
    if isinstance(error.readable, DomainFields):
        dom = error.readable
        errors += (XMLError(w.message, line=w.line) for w in unknown_words(dom) if w.severity == ERROR)
        errors += (XMLError(text, line=line) for (_, line), text in other_words(dom).items() if _HINT in text)
    return errors


def _unknown_outside_hostdevs(device: ElementDef, place: tuple[str, ...]) -> Iterator[tuple[str, Unknown, str]]:
    """Yield the unknown names of a device, or of a domain outside its devices, each with its element and a hint."""
    for inner, part in device.walk(place):
        if device.tag != "domain" or inner[1:2] != ("devices",):
            for path, word in part.own_unknown():
                if not word.is_foreign:
                    yield "/".join((*inner, *path)), word, _hint(part, path, word)


def _kept(owner: str, word: Unknown, hint: str) -> Finding:
    text = f"Unknown {_described(owner, word.label)} is kept unchanged{hint}"
    return Finding("ignored", NOTE, None, text, word.line)


def _host_devices(dom: DomainFields) -> Iterator[ElementDef]:
    yield from dom.hostdevs
    yield from (net for net in dom.interfaces if net.hostdev is not None)


def hostdev_word_findings(device: ElementDef) -> Iterator[Finding]:
    """Yield the findings of one device, see ``unknown_words``."""
    return (finding for _, finding in _word_findings(device))


def repeated_words(dom: DomainFields) -> list[Finding]:
    """
    Return a note for each element outside host devices that stands more than once, of which libvirt uses the first, and
    for each attribute and element that has no effect beside the others.
    """
    hostdevs = {id(device) for device in _host_devices(dom)}
    parts = [part for inner, part in dom.walk((dom.tag,)) if inner[1:2] != ("devices",)]
    parts += [part for device in dom.devices() if id(device) not in hostdevs for _, part in device.walk()]
    return [note for part in parts for note in _repeated(part, None)]


def _repeated(part: ElementDef, address: PCIDeviceAddress | None) -> Iterator[Finding]:
    for tag, line in part.repeated:
        text = f"<{part.tag}> has more than one <{tag}>: what a further one says again is ignored"
        yield Finding("ignored", NOTE, address, text, line)
    for label, line in part.unread_words:
        what = _described(part.tag, label)
        yield Finding("ignored", NOTE, address, f"The {what} has no effect here and is ignored", line)


def _word_findings(device: ElementDef) -> Iterator[tuple[str, Finding]]:
    source = getattr(device, "source", None)
    address = source if isinstance(source, PCIDeviceAddress) else None
    for place, part in device.walk():
        inner = "/".join((device.tag, *place))
        yield from ((inner, note) for note in _repeated(part, address))
        for invalid in part.invalid_words:
            yield inner, Finding("unknown-word", ERROR, address, invalid.error.message, invalid.error.line)
        for path, word in part.own_unknown():
            if not word.is_foreign or (not word.declares_namespace and _hint(part, path, word)):
                where = "/".join((device.tag, *place, *path, word.label))
                yield where, _finding(device.tag, part, (*place, *path), path, word, address)


def _finding(
    tag: str,
    part: ElementDef,
    place: tuple[str, ...],
    path: tuple[str, ...],
    word: Unknown,
    address: PCIDeviceAddress | None,
) -> Finding:
    words = "/".join((*place, word.label))
    what = _described("/".join((tag, *place)), word.label)
    if words in _HARMLESS_WORDS:
        return Finding("ignored", NOTE, address, f"The {what} has no effect and is ignored", word.line)
    if words in _LATER_WORDS:
        release = _LATER_WORDS[words]
        return Finding("unsupported", NOTE, address, f"The {what} (libvirt {release}) is not supported yet", word.line)
    return Finding("unknown-word", ERROR, address, f"Unknown {what}{_hint(part, path, word)}", word.line)


def _described(owner: str, label: str) -> str:
    """Return a phrase that names an attribute or element and its place."""
    if label[:1] == "@":
        return f"attribute '{shown(label[1:])}' of <{owner}>"
    return f"element <{shown(label)}> in <{owner}>"


def _hint(part: ElementDef, path: tuple[str, ...], word: Unknown) -> str:
    """Return the nearest known name, as the end of a sentence."""
    shape: Shape | Row = part.table.shape
    for tag in path:
        shape = shape.nodes[tag]  # type: ignore[union-attr]  # only shapes hold unknown names
    known = shape.nodes if word.is_element else shape.attributes  # type: ignore[union-attr]
    near = nearest_words(word.local_name, known, 1, _ALIKE)
    return f"{_HINT} '{near[0]}'?" if near else ""
