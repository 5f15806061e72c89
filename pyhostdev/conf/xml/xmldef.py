# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Definitions as tables: the contents of an XML element are declared once, for parsing and printing.

A class that derives from ElementDef lists its fields in the order libvirt prints them:

    class DomainHostdevDef(ElementDef):
        tag = "hostdev"
        managed = attribute("managed", yes_no, default=False)
        driver_name = attribute("driver/@name", enum("kvm", "vfio", "xen"))
        source = child("source", HostdevSource)

Attributes and elements that are not in the table are kept where they were found, and printed after the known ones.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pyhostdev.conf.xml.xmlfield import Field, Opaque, Part
from pyhostdev.conf.xml.xmlshape import Row, Shape, Table, compile_table
from pyhostdev.errors import ConfigError, XMLError, raise_all
from pyhostdev.util.virxml import (
    attributes_of,
    dump_element,
    escape_attribute,
    escape_text,
    own_text_of,
    parse_document,
    source_line,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

    from pyhostdev.util.virxml import Element

INDENT = "  "


class Unknown(NamedTuple):
    """An unknown attribute with its value, or an unknown element with its text."""

    name: str
    value: str
    line: int | None
    is_element: bool

    @property
    def label(self) -> str:
        """The name; that of an attribute starts with @."""
        return self.name if self.is_element else f"@{self.name}"

    @property
    def is_foreign(self) -> bool:
        """True for a name in a namespace, or the declaration of a namespace."""
        return self.name[:1] == "{" or ":" in self.name


class ElementDef:
    """
    The base of all definitions: parsing, printing, copying and comparing by the table of fields.

    Two definitions are equal if they are printed alike; lines do not count.
    """

    tag: ClassVar[str] = ""
    # attributes that decide whether a guest gets a device: refused where they have no effect
    never_kept: ClassVar[frozenset[str]] = frozenset({"assigned"})
    line: int | None = None  # of the source, for messages
    lines: Mapping[str, int | None] = MappingProxyType({})  # lines of the fields in child elements
    unknown: dict[tuple[str, ...], list[Unknown]]
    # newer attributes and elements -> the row of CHANGES that brought them; older releases do not read them
    late_errors: tuple[tuple[str, ConfigError], ...] = ()

    _table: ClassVar[Table | None] = None
    _declared: ClassVar[dict[str, Field[Any]] | None] = None
    _initials: ClassVar[tuple[tuple[str, Field[Any]], ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._table = cls._declared = None
        own = tuple((k, v) for k, v in vars(cls).items() if isinstance(v, Field) and v.is_fresh)
        cls._initials = cls._initials + own

    def __init__(self, **values: Any) -> None:
        self.unknown = {}
        state = self.__dict__
        for name, field in self._initials:
            state[name] = field.initial()
        for name, value in values.items():
            if not isinstance(getattr(type(self), name, None), Field):
                raise TypeError(f"{type(self).__name__} has no field '{name}'")
            state[name] = value

    @classmethod
    def declared(cls) -> dict[str, Field[Any]]:
        """Return the fields in the order of printing: those of the bases, then the class's own."""
        if cls._declared is None:
            cls._declared = {}
            for base in reversed(cls.__mro__):
                cls._declared.update((k, v) for k, v in vars(base).items() if isinstance(v, Field))
        return cls._declared

    @classmethod
    def table(cls) -> Table:
        """Return the compiled fields, cached per class."""
        if cls._table is None:
            cls._table = compile_table(cls)
        return cls._table

    # -- parsing

    @classmethod
    def parse(cls, source: str | bytes) -> Self:
        """
        Read a document whose root is this element.

        Raises:
            ConfigError: the XML is malformed, has another root, or an invalid value; ``others`` has further errors.
        """
        root = parse_document(source)
        if root.tag != cls.tag:
            raise XMLError(f"<{cls.tag}> expected, not <{root.tag}>", line=source_line(root))
        return cls.from_element(root)

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """
        Read an element of a tree.

        Raises:
            ConfigError: a value is not valid, or a required one is absent; ``others`` has the rest.
        """
        self = cls()
        self.read(element)
        return self

    def read(self, element: Element) -> None:
        """
        Fill self from an element.

        Raises:
            ConfigError: a value is not valid, or a required one is absent; ``others`` has the rest.
        """
        table = self.table()
        self.line = source_line(element)
        found: dict[int, list[tuple[str, Element]]] = {}
        self._collect(table.shape, element, found)
        errors: list[ConfigError] = []
        for index in sorted(found):
            self._load(table.rows[index], found[index], errors)
        errors += self._missing(table, found, element)
        raise_all(errors)
        for name in table.embedded:
            part = self.__dict__[name]
            part.line = self.line
            part.parsed(element)
        self.parsed(element)

    def parsed(self, element: Element) -> None:
        """Check or derive values that depend on several fields; a hook for subclasses."""

    def line_of(self, name: str) -> int | None:
        """Return the line of a field, or the line of its element if the field has no line of its own."""
        return self.lines.get(name, self.line)

    def hides(self, name: str) -> bool:
        """Return True if a field must not be printed; a hook for subclasses."""
        return False

    def _load(self, row: Row, found: list[tuple[str, Element]], errors: list[ConfigError]) -> None:
        """Read one row; collect its errors, so that the following rows are still read."""
        holder = self if row.owner is None else self.__dict__[row.owner]
        try:
            holder.__dict__[row.field.name] = row.field.load(found)
        except ConfigError as err:
            if row.field.since is None:
                errors.append(err)
            else:
                self.late_errors += ((row.field.since, err),)
        if row.field.path:
            holder.__dict__.setdefault("lines", {})[row.field.name] = source_line(found[0][1])

    def _missing(
        self, table: Table, found: dict[int, list[tuple[str, Element]]], element: Element
    ) -> Iterator[ConfigError]:
        for row in table.required:
            if row.place not in found:
                field = row.field
                where = "/".join((str(element.tag), *field.path))
                what = f"attribute '{field.leaf}' of <{where}>" if field.leaf else f"<{where}>"
                yield XMLError(f"The {what} is missing", line=source_line(element), libvirt_code=field.code)

    def _collect(self, shape: Shape, element: Element, found: dict[int, list[tuple[str, Element]]]) -> None:
        """Assign the contents of an element to rows, or to the unknown."""
        for key, value in attributes_of(element):
            row = shape.attributes.get(key)
            if row is not None:
                found.setdefault(row.place, []).append((value, element))
            else:
                self._keep_attribute(shape.path, key, value, element)
        # in an element with text only, child elements are part of the text
        is_text = shape.content is not None and not shape.nodes
        text = text_of(element) if is_text else own_text_of(element)
        is_indentation = not is_text and len(element) > 0 and not text.strip()
        for row in (shape.content, shape.flag):
            if row is not None and not (is_indentation and row is shape.content):
                found.setdefault(row.place, []).append((text, element))
        for part in element if not is_text else ():
            if isinstance(part.tag, str):
                self._collect_part(shape, part.tag, part, found)

    def _collect_part(self, shape: Shape, tag: str, part: Element, found: dict[int, list[tuple[str, Element]]]) -> None:
        node = shape.nodes.get(tag)
        if node is None:
            self._refuse_misplaced(attributes_of(part), part)
            kept = Unknown(tag, dump_element(part), source_line(part), True)
            self.unknown.setdefault(shape.path, []).append(kept)
        elif isinstance(node, Shape):
            self._collect(node, part, found)
        else:
            found.setdefault(node.place, []).append(("", part))

    def _keep_attribute(self, path: tuple[str, ...], key: str, value: str, element: Element) -> None:
        self._refuse_misplaced([(key, value)], element)
        kept = self.unknown.setdefault(path, [])
        if not key.startswith("{"):
            kept.append(Unknown(key, value, source_line(element), False))
            return
        uri, local = key[1:].split("}")
        prefix = next((p for p, u in element.nsmap.items() if u == uri and p), "xml")
        if prefix != "xml":
            kept.append(Unknown(f"xmlns:{prefix}", uri, source_line(element), False))
        kept.append(Unknown(f"{prefix}:{local}", value, source_line(element), False))

    def _refuse_misplaced(self, attributes: list[tuple[str, str]], element: Element) -> None:
        for key, _ in attributes:
            if key in self.never_kept:
                raise XMLError(f"<{element.tag}> cannot have '{key}'", line=source_line(element))

    # -- printing

    def format(self) -> str:
        """Return the element as XML text."""
        return "\n".join(self.format_lines(self.tag)) + "\n"

    def format_lines(self, tag: str, indent: str = "", *, always: bool = True) -> list[str]:
        """Return the lines of the element with a given name; none if it is empty, unless ``always``."""
        return self._format_shape(self.table().shape, tag, indent, always=always)

    def _format_shape(self, shape: Shape, tag: str, indent: str, *, always: bool) -> list[str]:
        head = "".join(self._format_attributes(shape))
        inner: list[str] = []
        for name, node in shape.nodes.items():
            if isinstance(node, Shape):
                inner += self._format_shape(node, name, indent + INDENT, always=False)
            else:
                inner += self._format_row(node, name, indent + INDENT)
        kept = self.unknown.get(shape.path, ())
        inner += (indent + INDENT + part.value for part in kept if part.is_element)
        body = self._dumped(shape.content)
        is_empty = body is None and self._dumped(shape.flag) is None
        if is_empty and not (always or head or inner):
            return []
        return _element_lines(f"{indent}<{tag}{head}", tag, indent, body, inner)

    def _format_attributes(self, shape: Shape) -> Iterator[str]:
        for name, row in shape.attributes.items():
            value = self._dumped(row)
            if value is not None:
                yield f" {name}='{escape_attribute(value)}'"
        for part in dict.fromkeys(self.unknown.get(shape.path, ())):
            if not part.is_element:
                yield f" {part.name}='{escape_attribute(part.value)}'"

    def _format_row(self, row: Row, tag: str, indent: str) -> list[str]:
        value = self._value(row)
        if value is None:
            return []
        if isinstance(row.field, Opaque):
            return [indent + value]
        if isinstance(row.field, Part):
            return list(value.format_lines(tag, indent, always=False))
        parts = value if isinstance(value, list) else [value]
        return [line for part in parts for line in part.format_lines(tag, indent)]

    def _value(self, row: Row) -> Any:
        holder = self if row.owner is None else self.__dict__[row.owner]
        return getattr(holder, row.field.name)

    def _dumped(self, row: Row | None) -> str | None:
        if row is None:
            return None
        holder = self if row.owner is None else self.__dict__[row.owner]
        if holder.hides(row.field.name):
            return None
        text: str | None = row.field.dump(getattr(holder, row.field.name))
        return text

    # -- values

    def copy(self) -> Self:
        """Return an independent copy."""
        clone = type(self).__new__(type(self))
        clone.__dict__.update((k, _copied(v)) for k, v in self.__dict__.items() if k[0] != "_")
        return clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ElementDef) or type(other) is not type(self):
            return NotImplemented
        rows = self.table().rows
        return all(self._value(row) == other._value(row) for row in rows) and (
            _without_lines(self.unknown) == _without_lines(other.unknown)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.format_lines(self.tag or '?')[0].strip()}>"

    def unmodelled(self) -> list[tuple[str, int | None]]:
        """Return path and line of all unknown attributes and elements, also of nested definitions."""
        found: list[tuple[str, int | None]] = []
        for place, part in self.parts((self.tag,)):
            where = "/".join(place) if part.unknown or part.table().opaque_rows else ""
            found += [("/".join((where, *path, word.label)), word.line) for path, word in part.own_unknown()]
            for row in part.table().opaque_rows:
                if part._value(row) is not None:
                    holder = part if row.owner is None else part.__dict__[row.owner]
                    found.append(("/".join((where, *row.field.path)), holder.line_of(row.field.name)))
        return found

    def parts(self, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ElementDef]]:
        """Yield self and all nested definitions, each with its path of elements; parts never set are left out."""
        yield place, self
        for row in self.table().nested_rows:
            holder = self if row.owner is None else self.__dict__[row.owner]
            value = holder.__dict__.get(row.field.name)
            if isinstance(value, ElementDef):
                yield from value.parts((*place, *row.field.path))
            elif value:
                for part in value:
                    yield from part.parts((*place, *row.field.path))

    def has_unknown(self) -> bool:
        """Return True if this definition or a nested one has unknown attributes or elements."""
        todo: list[ElementDef] = [self]
        while todo:
            part = todo.pop()
            if part.unknown and any(part.unknown.values()):
                return True
            state = part.__dict__
            for name in part.table().nested:
                value = state.get(name)
                if isinstance(value, ElementDef):
                    todo.append(value)
                elif value:
                    todo += value
        return False

    def own_unknown(self) -> Iterator[tuple[tuple[str, ...], Unknown]]:
        """Yield the unknown attributes and elements of this definition, each with its path of elements."""
        for path, kept in self.unknown.items():
            for word in kept:
                yield path, word


def _element_lines(head: str, tag: str, indent: str, body: str | None, inner: list[str]) -> list[str]:
    if inner:
        # after text, indentation would be part of the text
        start = [f"{head}>"] if not body else [f"{head}>{escape_text(body)}{inner.pop(0).lstrip()}"]
        return [*start, *inner, f"{indent}</{tag}>"]
    return [f"{head}>{escape_text(body)}</{tag}>" if body else f"{head}/>"]


def _copied(value: Any) -> Any:
    if isinstance(value, ElementDef):
        return value.copy()
    if isinstance(value, list):
        return [_copied(part) for part in value]
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return value


def _without_lines(
    unknown: dict[tuple[str, ...], list[Unknown]],
) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    return {path: [part[:2] for part in parts] for path, parts in unknown.items() if parts}
