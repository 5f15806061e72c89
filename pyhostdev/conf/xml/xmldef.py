# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Definitions as tables: the contents of an XML element are declared once, for parsing and printing.

A class that derives from ElementDef lists its fields in the order libvirt prints them:

    class DomainHostdevDef(ElementDef):
        tag = "hostdev"
        managed = attribute("managed", yes_no, default=False)
        driver_name = attribute("driver/@name", enum("kvm", "vfio", "xen"))
        source = optional_element("source", HostdevSource)

Attributes and elements that are not in the table are kept where they were found, and printed after the known ones.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pyhostdev.conf.xml.definition import InvalidWord, Unknown
from pyhostdev.conf.xml.xmlfield import Field
from pyhostdev.conf.xml.xmlread import Reading, without_words
from pyhostdev.conf.xml.xmlshape import Row, Table, compile_table
from pyhostdev.errors import ConfigError, XMLError, raise_all
from pyhostdev.util.virxml import parse_document, source_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from typing_extensions import Self

    from pyhostdev.conf.xml.xmlprint import ElementPlan
    from pyhostdev.util.virxml import Element


class _CompiledOnUse:
    """Compiles the fields of a class when its table is first read, and gives its place to the table."""

    def __get__(self, instance: ElementDef | None, owner: type[ElementDef]) -> Table:
        owner.table = compile_table(owner)
        return owner.table


class ElementDef:
    """
    The base of all definitions: parsing, printing, copying and comparing by the table of fields.

    Two definitions are equal if they are printed alike; lines do not count.
    """

    tag: ClassVar[str] = ""
    own_fields: ClassVar[dict[str, Field[Any]]] = {}  # by name, without those of the bases
    table: ClassVar[Table]  # the compiled fields of the class
    line: int | None = None  # of the source, for messages
    lines: Mapping[tuple[str, ...], int | None] = MappingProxyType({})  # lines of child elements, by their paths
    unknown: Mapping[tuple[str, ...], list[Unknown]] = MappingProxyType({})
    repeated: tuple[tuple[str, int | None], ...] = ()  # tags of elements that count once, with lines of further ones
    unread_words: tuple[tuple[str, int | None], ...] = ()  # labels of words without an effect here, with their lines
    invalid_words: tuple[InvalidWord, ...] = ()  # older releases do not read them

    _plan: ClassVar[ElementPlan | None] = None
    _declared: ClassVar[dict[str, Field[Any]] | None] = None
    _initials: ClassVar[tuple[tuple[str, Callable[[], Any]], ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._plan = cls._declared = None
        cls.table = _CompiledOnUse()  # type: ignore[assignment]  # it becomes a Table
        cls.own_fields = {name: field for name, field in vars(cls).items() if isinstance(field, Field)}
        cls._initials += tuple((k, field.make) for k, field in cls.own_fields.items() if field.make is not None)
        for name, field in cls.own_fields.items():
            field.put_default(cls, name)

    def __init__(self, **values: Any) -> None:
        state = self.__dict__
        for name, make in self._initials:
            state[name] = make()
        if values:
            fields = self.declared()
            for name, value in values.items():
                if name not in fields:
                    raise TypeError(f"{type(self).__name__} has no field '{name}'")
                setattr(self, name, value)

    @classmethod
    def declared(cls) -> dict[str, Field[Any]]:
        """Return the fields in the order of printing: those of the bases, then the class's own."""
        if cls._declared is None:
            cls._declared = {}
            for base in reversed(cls.__mro__):
                cls._declared |= vars(base).get("own_fields", {})
        return cls._declared

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
        cls.check_document(root, source)
        return cls.from_element(root)

    @classmethod
    def check_document(cls, root: Element, source: str | bytes) -> None:
        """Check rules that concern the whole document; a hook for subclasses."""

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
        table = self.table
        self.line = source_line(element)
        paths = self.unread(element)
        if paths:
            element, self.unread_words = without_words(element, paths)
        reading = Reading(self, table)
        reading.read(table.shape, element)
        if reading.elements or reading.repeated:
            reading.load_elements()
        errors = reading.report(element) if reading.errors or table.required else []
        for name in table.inlined:
            inlined = self.__dict__.get(name)
            if inlined is None:  # the element has no part of it
                continue
            try:
                inlined.parsed(element)
            except ConfigError as err:
                errors.append(err)
        if errors:
            raise_all(errors, self)
        self.parsed(element)

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """
        Return the paths of attributes and elements that libvirt does not read beside the others; a hook for subclasses.

        They are dropped with their contents, also invalid ones. A path is written as for a field: ``driver/@name``.
        """
        return ()

    def parsed(self, element: Element) -> None:
        """
        Check or derive values that depend on several fields; a hook for subclasses.

        It is called for an inlined definition if the element has a part of it.
        """

    def has_child(self, tag: str) -> bool:
        """Return True if the element that was read has a child element with this tag, which the table knows."""
        return (tag,) in self.lines

    def line_of(self, name: str) -> int | None:
        """Return the line of a field, or the line of its element if the field has no line of its own."""
        field = self.declared().get(name)
        return self.line if field is None else self.lines.get(field.path, self.line)

    def hides(self, name: str) -> bool:
        """Return True if a field must not be printed; a hook for subclasses."""
        return False

    @classmethod
    def has_hides(cls) -> bool:
        """Return True if a subclass has the hook ``hides``."""
        return cls.hides is not ElementDef.hides

    # -- printing

    def format(self) -> str:
        """Return the element as XML text."""
        return "\n".join(self.format_lines(self.tag)) + "\n"

    def format_lines(self, tag: str, indent: str = "", *, always: bool = True) -> list[str]:
        """Return the lines of the element with a given name; none if it is empty, unless ``always``."""
        from pyhostdev.conf.xml.xmlprint import Page  # many definitions are only read

        page = Page(self, self.table.inlined)
        self.plan().write(page, tag, indent, always=always)
        return page.lines

    @classmethod
    def plan(cls) -> ElementPlan:
        """Return the plan by which definitions of this class are printed; it is made once."""
        if cls._plan is None:
            from pyhostdev.conf.xml.xmlprint import ElementPlan

            fields: dict[str, Any] = cls.declared()
            inlined = (fields[name].definition for name in cls.table.inlined)
            cls._plan = ElementPlan(cls.table.shape, [cls, *inlined])
        return cls._plan

    def _value(self, row: Row) -> Any:
        holder = self if row.owner is None else getattr(self, row.owner)
        return getattr(holder, row.field.name)

    # -- values

    def copy(self) -> Self:
        """Return an independent copy."""
        clone = type(self).__new__(type(self))
        state = clone.__dict__
        state.update(self.__dict__)
        for name, value in self.__dict__.items():
            if type(value) not in _IMMUTABLE and name != "lines":  # which nothing changes
                state[name] = _copied(value)
        return clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ElementDef) or type(other) is not type(self):
            return NotImplemented
        rows = self.table.rows
        return all(self._value(row) == other._value(row) for row in rows) and (
            _without_lines(self.kept_words()) == _without_lines(other.kept_words())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.format_lines(self.tag or '?')[0].strip()}>"

    def unmodelled(self) -> list[tuple[str, int | None]]:
        """Return path and line of all unknown attributes and elements, also of nested definitions."""
        found: list[tuple[str, int | None]] = []
        if not any(nested.unknown or nested.has_opaque() for nested in self.elements()):
            return found
        for place, nested in self.walk((self.tag,)):
            opaque_rows = nested.table.opaque_rows
            if not nested.unknown and not opaque_rows:
                continue
            where = "/".join(place)
            found += [("/".join((where, *path, word.label)), word.line) for path, word in nested.own_unknown()]
            for row in opaque_rows:
                if nested._value(row) is not None:
                    holder = nested if row.owner is None else getattr(nested, row.owner)
                    found.append(("/".join((where, *row.field.path)), holder.line_of(row.field.name)))
        return found

    def has_opaque(self) -> bool:
        """Return True if the definition has an element that is kept as it is, and that no room reads."""
        return any(self._value(row) is not None for row in self.table.opaque_rows)

    def walk(self, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ElementDef]]:
        """Yield self and all nested definitions that were set, each with its path of elements."""
        yield place, self
        state = self.__dict__
        for row in self.table.nested_rows:
            holder = self if row.owner is None else state.get(row.owner)
            value = None if holder is None else holder.__dict__.get(row.name)
            if isinstance(value, ElementDef):
                yield from value.walk((*place, *row.field.path))
            elif value:
                for nested in value:
                    yield from nested.walk((*place, *row.field.path))

    def elements(self) -> list[ElementDef]:
        """Return self and all nested definitions that were set, in the order of ``walk``."""
        found: list[ElementDef] = []
        todo: list[ElementDef] = [self]
        while todo:
            nested = todo.pop()
            found.append(nested)
            for row in reversed(nested.table.nested_rows):
                state = nested.__dict__
                if row.owner is not None:
                    if row.owner not in state:
                        continue
                    state = state[row.owner].__dict__
                value = state.get(row.name)
                if isinstance(value, ElementDef):
                    todo.append(value)
                elif value:
                    todo += reversed(value)
        return found

    def has_odd_words(self) -> bool:
        """Return True if this definition or a nested one has unknown, repeated or invalid attributes or elements."""
        return any(nested._has_own_odd_words() for nested in self.elements())

    def _has_own_odd_words(self) -> bool:
        return bool(self.repeated or self.unread_words or self.invalid_words or any(self.unknown.values()))

    def kept_words(self) -> Mapping[tuple[str, ...], list[Unknown]]:
        """Return the unknown and the invalid newer attributes and elements, by their path of elements."""
        if not self.invalid_words:
            return self.unknown
        kept = {path: list(words) for path, words in self.unknown.items()}
        for invalid in self.invalid_words:
            kept.setdefault(invalid.path, []).extend(invalid.words)
        return kept

    def own_unknown(self) -> Iterator[tuple[tuple[str, ...], Unknown]]:
        """Yield the unknown attributes and elements of this definition, each with its path of elements."""
        for path, words in self.unknown.items():
            for word in words:
                yield path, word


_IMMUTABLE = frozenset({str, int, bool, tuple, type(None)})


def _copied(value: Any) -> Any:
    if isinstance(value, ElementDef):
        return value.copy()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, dict):
        return {key: item if type(item) in _IMMUTABLE else _copied(item) for key, item in value.items()}
    return value


def _without_lines(
    unknown: Mapping[tuple[str, ...], list[Unknown]],
) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    return {path: [word[:2] for word in words] for path, words in unknown.items() if words}
