# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Write the page that lists how pyhostdev treats each element of libvirt's domain grammar, from the tables in the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyhostdev.conf.address_conf import PCIGuestAddress, UnassignedAddress
from pyhostdev.conf.bus_address_conf import ADDRESS_TYPES
from pyhostdev.conf.device_conf import AnyAddress
from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import Opaque
from pyhostdev.conf.xml.xmlshape import Row, Shape
from pyhostdev.qemu.qemu_command.ignored import IGNORED, REFUSED_BY_START, Note
from pyhostdev.qemu.qemu_command.refused import REFUSED
from pyhostdev.qemu.qemu_domain.namespace import ELEMENTS

GRAMMAR = Path(__file__).parent.parent / "testdata/grammar/libvirt-12.8.txt"
ALWAYS = Note._field_defaults["asked"]  # of a note that applies to every definition
STATES = ("done", "noted", "refused", "kept")
# always refused: by validation, or because pyhostdev does not store secrets
REFUSED_WHOLE = (
    "domain/launchSecurity",
    *(f"domain/devices/disk/{place}{name}" for place in ("", "source/") for name in ("auth", "encryption")),
)
HEAD = """# What is supported

This page lists how pyhostdev treats every element and attribute of libvirt 12.8's domain grammar. `docs/supported.py`
generates it from the tables that the code uses, and a test compares both.

- **done**: it is on QEMU's command line, or `pyhostdev start` does it, or nothing needs to be done.
- **noted**: it is accepted and printed. The plan says that `pyhostdev start` does nothing about it, or refuses to
  start a guest without it.
- **refused**: it is known, and `argv` and `start` refuse it by name, with its line; `xml` prints it.
- **kept**: it is not known. `validate` reports it, `xml` prints it as it was written, `argv` and `start` refuse it.

An element or attribute can be done for one kind of device, or one value, and noted or refused for another: the table
shows the better state, and messages name the device. The grammar also has elements and attributes of other hypervisors.
"""


class Place(NamedTuple):
    """A place in the tables: a definition and what may stand there, or the one row that has it all."""

    definition: type[ElementDef]
    shape: Shape | None
    row: Row | None


def words() -> dict[str, list[str]]:
    """Return the elements of the grammar, each with its attributes."""
    lines = [line.split() for line in GRAMMAR.read_text().splitlines() if line[:1] != "#"]
    return {line[0]: line[1:] for line in lines}


def states() -> dict[str, str]:
    """Return the state of each element, and of each attribute as ``element/@name``."""
    found = {}
    for element, attributes in words().items():
        found[element] = state(element, None)
        found |= {f"{element}/@{name}": state(element, name) for name in attributes}
    return found


def state(element: str, attribute: str | None) -> str:
    """Return the best state of a word among the definitions that its place allows."""
    if element.startswith("domain/qemu:"):
        return "done" if element.split("/")[1].removeprefix("qemu:") in ELEMENTS else "kept"
    if element.startswith(REFUSED_WHOLE):
        return "refused"
    places = places_of(element)
    found = [of_place(place, attribute) for place in places] or ["kept"]
    return min(found, key=STATES.index)


def places_of(element: str) -> list[Place]:
    """Return where the tables have an element; empty where none has it."""
    places = [Place(DomainDef, DomainDef.table.shape, None)]
    for tag in element.split("/")[1:]:
        places = [below for place in places for below in step(place, tag)]
    return places


def step(place: Place, tag: str) -> Iterator[Place]:
    """Yield the places of an element in a place."""
    if place.row is not None:
        yield place  # kept verbatim, with all that is in it
        return
    node = place.shape.nodes.get(tag) if place.shape is not None else None
    if isinstance(node, Shape):
        yield Place(place.definition, node, None)
    elif node is not None and isinstance(node.field, Opaque):
        yield Place(owner(place.definition, node), None, node)
    elif node is not None:
        definition = getattr(node.field, "definition", None)
        for kind in () if definition is None else kinds(definition):
            yield Place(kind, kind.table.shape, None)
        if definition is None:
            yield Place(owner(place.definition, node), None, node)


def kinds(definition: Any) -> Iterator[type[ElementDef]]:
    """Yield a definition and those that can stand in its place."""
    yield definition
    addresses = (PCIGuestAddress, UnassignedAddress, *ADDRESS_TYPES.values())
    for derived in addresses if definition is AnyAddress else definition.__subclasses__():
        yield from kinds(derived)


def owner(definition: type[ElementDef], row: Row) -> type[ElementDef]:
    """Return the definition that declares a row: an inlined one has its own name in the tables."""
    if row.owner is None:
        return definition
    inlined: Any = definition.declared()[row.owner]
    return inlined.definition  # type: ignore[no-any-return]


def of_place(place: Place, attribute: str | None) -> str:
    """Return the state of an element in a place, or of its attribute."""
    if place.row is not None:
        return of_row(place.definition, place.row)
    assert place.shape is not None
    if attribute is not None:
        row = place.shape.attributes.get(attribute)
        return "kept" if row is None else of_row(owner(place.definition, row), row)
    rows = [row for row in (place.shape.content, place.shape.flag) if row is not None]
    found = [of_row(owner(place.definition, row), row) for row in rows]
    # an element without a value has the best state of its attributes
    inner = [of_row(owner(place.definition, row), row) for row in place.shape.attributes.values()]
    return min(found or inner or ["done"], key=STATES.index)


def of_row(definition: type[ElementDef], row: Row) -> str:
    """Return the state of a row of a definition's table."""
    name = row.field.name
    for kind in (kind.__name__ for kind in definition.__mro__):
        if name in REFUSED.get(kind, {}):
            return "refused"
        words = [table[kind][name] for table in (IGNORED, REFUSED_BY_START) if name in table.get(kind, {})]
        if any(word.asked is ALWAYS for word in words):
            return "noted"
    return "refused" if isinstance(row.field, Opaque) and not row.field.for_host else "done"


def page() -> str:
    """Return the page as MyST Markdown."""
    found = states()
    counts = {state: sum(1 for word in found.values() if word == state) for state in STATES}
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    count = f"\n{len(found)} elements and attributes: {total}.\n"
    return HEAD + count + "".join(section(name, found) for name in sections(found))


def sections(found: dict[str, str]) -> list[str]:
    """Return the elements that have a section: those of a domain, and the devices."""
    tops = {path.split("/@")[0] for path in found}
    return sorted(path for path in tops if len(path.split("/")) <= depth(path) and path != "domain/devices")


def depth(path: str) -> int:
    """Return how many elements deep a section of the page is."""
    return 3 if path.startswith("domain/devices/") else 2


def section(name: str, found: dict[str, str]) -> str:
    """Return one section: a row for each element in it."""
    rows = [row(path, found) for path in words() if section_of(path) == name]
    title = name.split("/")[-1]
    return f"\n## {title}\n\n| element | done | noted | refused | kept |\n|---|---|---|---|---|\n" + "".join(rows)


def section_of(path: str) -> str:
    """Return the section that an element belongs to."""
    return "/".join(path.split("/")[: depth(path)])


def row(path: str, found: dict[str, str]) -> str:
    """Return an element's row: a dot marks the element itself in the column of its state."""
    inside = path.split("/", depth(path) - 1)[-1]
    cells = {state: ["•"] if found[path] == state else [] for state in STATES}
    for name in words()[path]:
        cells[found[f"{path}/@{name}"]].append(f"`{name}`")
    return f"| `{inside}` | " + " | ".join(" ".join(cells[state]) for state in STATES) + " |\n"


if __name__ == "__main__":
    (Path(__file__).parent / "supported.md").write_text(page())
