# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Sentences that explain why a host device does not match the RelaxNG grammar.

A RelaxNG validator tries every alternative and then reports the element around the mistake. The rules of the tables are
checked first, as they name the mistake. If they find none, parts of the device are removed until the rest is valid.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from pyhostdev.conf.hostdev_conf import DomainHostdevDef
from pyhostdev.conf.unknown_words import hostdev_word_findings
from pyhostdev.errors import ConfigError
from pyhostdev.util.finding import ERROR
from pyhostdev.util.virxml import attributes_of, shown, source_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.util.virxml import Element

    IsValid = Callable[[Element], bool]

PARTS_MAX = 60  # parts that are removed one by one; the longest device that libvirt prints has about 30


def explain(is_valid: IsValid, hostdev: Element) -> list[tuple[int, str]]:
    """
    Return lines and sentences about a host device that is not valid; never empty.

    Args:
        is_valid: tells whether an element matches the grammar.
    """
    line = source_line(hostdev) or 1
    found = [*_by_rules(hostdev)] or [*_by_removal(is_valid, hostdev)]
    if not found:
        text = f"A {_named(hostdev)} is incomplete, or parts of it contradict each other"
        found = [(line, text)]
    return [(max(line, at), text) for at, text in found]


def _by_rules(hostdev: Element) -> Iterator[tuple[int, str]]:
    """Yield the errors of parsing, and the unknown attributes and elements."""
    try:
        device = DomainHostdevDef.from_element(hostdev)
    except ConfigError as err:
        yield from ((error.line or 1, str(error)) for error in (err, *err.others))
        return
    yield from ((word.line or 1, word.message) for word in hostdev_word_findings(device) if word.severity == ERROR)


def _obstructing_attribute(is_valid: IsValid, whole: Element, part: Element) -> tuple[str, str]:
    """Return name and value of the attribute of a part without which the whole is valid; empty texts without one."""
    for name, value in attributes_of(part):
        del part.attrib[name]
        is_valid_now = is_valid(whole)
        part.set(name, value)
        if is_valid_now:
            return name, value
    return "", ""


def _by_removal(is_valid: IsValid, hostdev: Element) -> Iterator[tuple[int, str]]:
    """Yield the smallest part without which the device is valid."""
    whole = copy.deepcopy(hostdev)
    parts = [part for part in whole.iter() if isinstance(part.tag, str)][:PARTS_MAX]
    for part in parts:
        name, value = _obstructing_attribute(is_valid, whole, part)
        if name:
            text = f"'{shown(name)}' of <{shown(str(part.tag))}> cannot be '{shown(value)}' in a {_named(hostdev)}"
            yield source_line(part) or 1, text
            return
    for part in reversed(parts[1:]):  # the inner ones first
        parent = part.getparent()
        assert parent is not None
        at = parent.index(part)
        parent.remove(part)
        is_valid_now = is_valid(whole)
        parent.insert(at, part)
        if is_valid_now:
            yield source_line(part) or 1, f"A {_named(hostdev)} cannot have <{shown(str(part.tag))}> as it is written"
            return


def _named(hostdev: Element) -> str:
    """Return the device with the attributes that determine its valid contents."""
    said = "".join(f" {name}='{shown(hostdev.get(name, ''))}'" for name in ("type", "assigned") if hostdev.get(name))
    return f"<hostdev{said}>"
