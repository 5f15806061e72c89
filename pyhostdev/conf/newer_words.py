# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Drop attributes and elements that are newer than a libvirt release, and refuse newer values.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.libvirt_release import LibvirtRelease
from pyhostdev.conf.unknown_words import repeated_words, unknown_words
from pyhostdev.conf.xml.xmlfield import Attribute, Content
from pyhostdev.errors import raise_all
from pyhostdev.util.finding import NOTE, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.conf.xml.xmlshape import Row
    from pyhostdev.errors import ConfigError


def drop_newer_words(definition: ElementDef, release: LibvirtRelease) -> None:
    """
    Remove the fields that are newer than the release from a definition.

    Raises:
        ConfigError: a known attribute has a newer value, or a newer attribute an invalid value; ``others`` has the
            further errors.
    """
    raise_all([error for nested in definition.elements() for error in _drop_newer(nested, release)])


def _drop_newer(nested: ElementDef, release: LibvirtRelease) -> Iterator[ConfigError]:
    if nested.tag == "hostdev" and not release.has("pci-hostdev-display"):
        _drop_pci_display(nested)
    if nested.invalid_words:
        yield from (word.error for word in nested.invalid_words if release.has(word.since))
        nested.invalid_words = ()
    kind: Any = type(nested)
    for row in _lacking(kind, release):
        if row.field.since is not None and not release.has(row.field.since):
            _drop(_holder(nested, row), row)
        elif isinstance(row.field, (Attribute, Content)) and row.field.codec.since:
            value = getattr(_holder(nested, row), row.field.name)
            change = row.field.codec.since.get(value)
            if change is not None and not release.has(change):
                line = _holder(nested, row).line_of(row.field.name)
                since = LibvirtRelease.since(change)
                why = f"libvirt {release} does not know it, libvirt {since} and later do"
                yield row.field.refusal(value, nested.tag, line, why)


@cache  # one entry for each class and release
def _lacking(kind: Any, release: LibvirtRelease) -> tuple[Row, ...]:
    """Return the rows of a class of definitions of which a release does not know the name, or a word."""
    return tuple(row for row in kind.table.newer_rows if not all(map(release.has, _changes(row.field))))


def _changes(field: Any) -> list[str]:
    """Return the rows of CHANGES that brought a field and its words."""
    words = field.codec.since.values() if isinstance(field, (Attribute, Content)) else ()
    return [*words, *([field.since] if field.since is not None else [])]


def _drop_pci_display(hostdev: Any) -> None:
    """Remove display and ramfb of a PCI device; those of a mediated device are older."""
    if hostdev.is_pci:
        hostdev.display = hostdev.ramfb = None


def dropped_word_notes(definition: DomainFields, release: LibvirtRelease) -> list[Finding]:
    """
    Return a note for each attribute and element that has no effect: too new for the release, or said twice.

    Args:
        definition: as the user wrote it.
    """
    of_hostdevs = [word for word in unknown_words(definition) if word.severity == NOTE]
    notes = [*of_hostdevs, *repeated_words(definition), *newer_word_notes(definition, release)]
    return sorted(dict.fromkeys(notes), key=lambda note: note.line or 0)


def newer_word_notes(definition: ElementDef, release: LibvirtRelease) -> list[Finding]:
    """
    Return a note for each attribute and element that is newer than the release, which therefore ignores it.

    Args:
        definition: as the user wrote it.
    """
    return [note for _, nested in definition.walk() for note in _notes(nested, release)]


def _notes(nested: ElementDef, release: LibvirtRelease) -> Iterator[Finding]:
    for row in nested.table.newer_rows:
        field = row.field
        if field.since is None or release.has(field.since) or not vars(_holder(nested, row)).get(field.name):
            continue
        yield _note([nested.tag, *field.path][-1], field.leaf, field.since, nested.line, release)
    for invalid in nested.invalid_words:
        if not release.has(invalid.since):
            word = invalid.words[0]
            element, leaf = (word.name, "") if word.is_element else ([nested.tag, *invalid.path][-1], word.name)
            yield _note(element, leaf, invalid.since, word.line, release)


def _note(element: str, leaf: str, since: str, line: int | None, release: LibvirtRelease) -> Finding:
    place = f"'{leaf}' of <{element}>" if leaf else f"<{element}>"
    message = f"{place} is ignored, as in libvirt {release}: libvirt {LibvirtRelease.since(since)} knows it"
    return Finding("ignored", NOTE, None, message, line)


def _drop(holder: ElementDef, row: Row) -> None:
    if row.field.make is not None:
        vars(holder)[row.field.name] = row.field.make()
    else:
        vars(holder).pop(row.field.name, None)


def _holder(nested: ElementDef, row: Row) -> Any:
    return nested if row.owner is None else getattr(nested, row.owner)
