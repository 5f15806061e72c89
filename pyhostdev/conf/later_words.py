# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The treatment of attributes and elements that a libvirt release does not know yet: dropped; values are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlfield import Attribute, Content
from pyhostdev.errors import raise_all
from pyhostdev.util.finding import NOTE, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.conf.xml.xmlshape import Row
    from pyhostdev.errors import ConfigError


def forget_later_words(definition: ElementDef, release: LibvirtRelease) -> None:
    """
    Remove the fields that the release does not know yet from a definition.

    Raises:
        ConfigError: a known attribute has a newer value, or a newer attribute an invalid value; ``others`` has the
            further errors.
    """
    raise_all([error for _, part in definition.parts() for error in _forget(part, release)])


def _forget(part: ElementDef, release: LibvirtRelease) -> Iterator[ConfigError]:
    yield from (error for change, error in part.late_errors if release.has(change))
    for row in part.table().later_rows:
        if row.field.since is not None and not release.has(row.field.since):
            _drop(_holder(part, row), row)
        elif isinstance(row.field, (Attribute, Content)) and row.field.codec.later:
            value = getattr(_holder(part, row), row.field.name)
            change = row.field.codec.later.get(value)
            if change is not None and not release.has(change):
                yield row.field.refusal(value, part.tag, part.line)


def later_word_notes(definition: ElementDef, release: LibvirtRelease) -> list[Finding]:
    """
    Return a note for each attribute and element that the release does not know yet and therefore ignores.

    Args:
        definition: as the user wrote it.
    """
    return [note for _, part in definition.parts() for note in _notes(part, release)]


def _notes(part: ElementDef, release: LibvirtRelease) -> Iterator[Finding]:
    for row in part.table().later_rows:
        field = row.field
        if field.since is None or release.has(field.since) or not vars(_holder(part, row)).get(field.name):
            continue
        element = [part.tag, *field.path][-1]
        place = f"'{field.leaf}' of <{element}>" if field.leaf else f"<{element}>"
        message = f"{place} is ignored, as in libvirt {release}: only newer releases know it"
        yield Finding("ignored", NOTE, None, message, part.line)


def _drop(holder: ElementDef, row: Row) -> None:
    if row.field.is_fresh:
        vars(holder)[row.field.name] = row.field.initial()
    else:
        vars(holder).pop(row.field.name, None)


def _holder(part: ElementDef, row: Row) -> Any:
    return part if row.owner is None else getattr(part, row.owner)
