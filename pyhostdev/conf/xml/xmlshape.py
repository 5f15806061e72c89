# SPDX-License-Identifier: LGPL-2.1-or-later
"""A definition's fields as a tree: what may stand where in its element, in the order it is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.conf.xml.xmlfield import Attribute, Content, Embedded, Flag, Ignored

if TYPE_CHECKING:
    from pyhostdev.conf.xml.definition import Definition


class Row(NamedTuple):
    """A field in one definition: its place in the order, and the object that holds the value."""

    place: int
    field: Any  # a Field; the name of its type would make type checkers ask it for its value
    owner: str | None  # the embedded part that holds the value


class Shape:
    """One element of a definition: what may stand in it, in the order it is printed."""

    __slots__ = ("attributes", "content", "flag", "nodes", "path")

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path
        self.attributes: dict[str, Row] = {}
        self.content: Row | None = None
        self.flag: Row | None = None
        self.nodes: dict[str, Shape | Row] = {}

    def descend(self, path: tuple[str, ...]) -> Shape:
        """Return the shape of an element below, made where it is not known yet."""
        shape = self
        for tag in path:
            node = shape.nodes.setdefault(tag, Shape((*shape.path, tag)))
            if not isinstance(node, Shape):
                raise TypeError(f"<{tag}> has a definition of its own")
            shape = node
        return shape

    def add(self, row: Row) -> None:
        """Give a row its place."""
        field = row.field
        if isinstance(field, Attribute):
            self.descend(field.path).attributes[field.leaf] = row
        elif isinstance(field, Content):
            self.descend(field.path).content = row
        elif isinstance(field, Ignored):
            for path in field.paths:
                self._add_ignored(row, path.split("/"))
        elif isinstance(field, Flag):
            self.descend(field.path).flag = row
        else:
            self.descend(field.path[:-1]).nodes[field.path[-1]] = row

    def _add_ignored(self, row: Row, path: list[str]) -> None:
        *parents, last = path
        shape = self.descend(tuple(parents))
        if last.startswith("@"):
            shape.attributes[last[1:]] = row
        else:
            shape.nodes[last] = row


class Table(NamedTuple):
    """What a definition's fields amount to."""

    rows: tuple[Row, ...]
    shape: Shape
    embedded: tuple[str, ...]
    required: tuple[Row, ...]


def compile_table(cls: type[Definition]) -> Table:
    """Return what the fields of a class amount to."""
    rows: list[Row] = []
    embedded: list[str] = []
    for name, field in cls.declared().items():
        if isinstance(field, Embedded):
            embedded.append(name)
            inner = field.definition.declared().values()
            rows += [Row(len(rows) + i, part, name) for i, part in enumerate(inner)]
        else:
            rows.append(Row(len(rows), field, None))
    shape = Shape(())
    for row in rows:
        shape.add(row)
    required = tuple(row for row in rows if getattr(row.field, "required", False))
    return Table(tuple(rows), shape, tuple(embedded), required)
