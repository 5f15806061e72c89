# SPDX-License-Identifier: LGPL-2.1-or-later
"""A definition's fields as a tree of elements, in the order of printing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlfield import Attribute, Content, Flag, Ignored, Inline, Nested, Opaque

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.xml.definition import Definition

    Reader = tuple[int, int, str, Callable[[str], Any]]  # a plain tuple, which Python unpacks fastest

CONTENT, FLAG = "text()", "()"  # keys of an element's text and presence, which no attribute has


class Row:
    """A field in one definition: its position, the object that has its value, and its name."""

    __slots__ = ("field", "holder", "name", "owner", "place")

    def __init__(self, place: int, field: Any, owner: str | None, holder: int) -> None:
        self.place = place
        self.field = field  # a Field; typed Any because a type checker would read the descriptor
        self.owner = owner  # the inlined definition with the value; None for the definition itself
        self.holder = holder  # the number of the inlined definition, from 1 on; 0 for the definition itself
        self.name: str = field.name

    @property
    def reader(self) -> Reader:
        """What reading a text needs: the place, the number of the definition, the name, and the parser."""
        return self.place, self.holder, self.name, self.field.parse


class Shape:
    """One element of a definition: its possible contents, in the order of printing."""

    __slots__ = ("attributes", "content", "flag", "has_text", "holder", "is_text", "nodes", "path", "readers")

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path
        self.attributes: dict[str, Row] = {}
        self.content: Row | None = None
        self.flag: Row | None = None
        self.nodes: dict[str, Shape | Row] = {}
        self.readers: dict[str, Reader] = {}  # of attributes, and of text and presence under keys of their own
        self.holder = 0  # the number of the inlined definition to which all contents belong; else 0
        self.has_text = False  # the element's text or its presence is a value
        self.is_text = False  # the element contains only text: child elements are part of it

    def complete(self) -> None:
        """Derive facts when all rows are known."""
        self.has_text = self.content is not None or self.flag is not None
        self.is_text = self.content is not None and not self.nodes
        for node in self.nodes.values():
            if isinstance(node, Shape):
                node.complete()
        holders = {
            row.holder for row in (*self.attributes.values(), *self.nodes.values(), self.content, self.flag) if row
        }
        self.holder = holders.pop() if len(holders) == 1 else 0

    def descend(self, path: tuple[str, ...]) -> Shape:
        """Return the shape of a nested element; create it if needed."""
        shape = self
        for tag in path:
            node = shape.nodes.setdefault(tag, Shape((*shape.path, tag)))
            if not isinstance(node, Shape):
                raise TypeError(f"<{tag}> has its own definition")
            shape = node
        return shape

    def add(self, row: Row) -> None:
        """Add a row at its path."""
        field = row.field
        if isinstance(field, Attribute):
            self.descend(field.path).add_attribute(field.leaf, row)
        elif isinstance(field, Content):
            shape = self.descend(field.path)
            shape.content, shape.readers[CONTENT] = row, row.reader
        elif isinstance(field, Ignored):
            for path in field.paths:
                self._add_ignored(row, path.split("/"))
        elif isinstance(field, Flag):
            shape = self.descend(field.path)
            shape.flag, shape.readers[FLAG] = row, row.reader
        else:
            self.descend(field.path[:-1]).nodes[field.path[-1]] = row

    def add_attribute(self, name: str, row: Row) -> None:
        """Add the row of an attribute."""
        self.attributes[name], self.readers[name] = row, row.reader

    def _add_ignored(self, row: Row, path: list[str]) -> None:
        *parents, last = path
        shape = self.descend(tuple(parents))
        if last.startswith("@"):
            shape.add_attribute(last[1:], row)
        else:
            shape.nodes[last] = row


class Table:
    """The compiled fields of a definition."""

    __slots__ = ("inlined", "nested", "nested_rows", "newer_rows", "opaque_rows", "required", "rows", "shape")

    def __init__(self, rows: tuple[Row, ...], inlined: tuple[str, ...], nested: tuple[str, ...]) -> None:
        self.rows = rows
        self.inlined = inlined
        self.nested = nested  # fields that hold definitions or lists of them
        self.shape = Shape(())
        for row in rows:
            self.shape.add(row)
        self.shape.complete()
        self.required = tuple(row for row in rows if getattr(row.field, "required", False))
        self.nested_rows = tuple(row for row in rows if isinstance(row.field, Nested))
        # known elements that are kept as they are, and that no room reads
        self.opaque_rows = tuple(row for row in rows if isinstance(row.field, Opaque) and not row.field.for_host)
        # those that older releases do not know, or know with fewer values
        self.newer_rows = tuple(row for row in rows if _is_newer(row.field))


def compile_table(cls: type[Definition]) -> Table:
    """Compile the fields of a class."""
    rows: list[Row] = []
    inlined: list[str] = []
    for name, field in cls.declared().items():
        if isinstance(field, Inline):
            inlined.append(name)
            inner = field.definition.declared().values()
            rows += [Row(len(rows) + i, nested, name, len(inlined)) for i, nested in enumerate(inner)]
        else:
            rows.append(Row(len(rows), field, None, 0))
    nested = tuple(name for name, field in cls.declared().items() if isinstance(field, (Nested, Inline)))
    return Table(tuple(rows), tuple(inlined), nested)


def _is_newer(field: Any) -> bool:
    return field.since is not None or (isinstance(field, (Attribute, Content)) and bool(field.codec.since))
