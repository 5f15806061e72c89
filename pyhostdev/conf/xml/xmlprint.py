# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Print definitions: once per class, the shape of its element becomes a plan, and each definition then fills the plan.

Few of a definition's many fields are set. An element of a plan has the names of all fields that it prints, so that one
comparison of names skips it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlfield import Attribute, Content, DefaultElement, Flag, Ignored, Opaque
from pyhostdev.conf.xml.xmlshape import Row, Shape
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import escape_attribute, escape_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.xml.definition import Definition

INDENT = "  "


class PrintedValue(NamedTuple):
    """A value that is printed as an attribute, or as the text of an element."""

    holder: int  # whose field: 0 is the definition itself, then its inlined ones in order
    name: str  # of the field
    default: Any  # the value of a definition without one
    silent: Any  # a value that is not printed; neither is None
    text: Callable[[Any], str]
    start: str  # of an attribute: " managed='"
    may_hide: bool  # the holder has the hook ``hides``


class Page:
    """The lines of one definition, and the values that they are made of."""

    __slots__ = ("holders", "lines", "present", "states", "unknown")

    def __init__(self, definition: Definition, inlined: tuple[str, ...]) -> None:
        self.holders: list[Definition] = [definition, *[getattr(definition, name) for name in inlined]]
        self.states = [holder.__dict__ for holder in self.holders]
        self.present: set[str] = set().union(*self.states)  # names of the fields that are set
        self.unknown = definition.kept_words()
        self.lines: list[str] = []

    def attributes(self, words: tuple[PrintedValue, ...]) -> str:
        """Return the attributes of a start tag."""
        states, found = self.states, ""
        for holder, name, default, silent, text, start, may_hide in words:
            value = states[holder].get(name, default)
            if value is None or value == silent or (may_hide and self.holders[holder].hides(name)):
                continue
            found += f"{start}{escape_attribute(text(value))}'"
        return found

    def text(self, word: PrintedValue) -> str | None:
        """Return the text of an element, None if it is not printed."""
        value = self.states[word.holder].get(word.name, word.default)
        is_hidden = word.may_hide and self.holders[word.holder].hides(word.name)
        return None if value is None or value == word.silent or is_hidden else word.text(value)

    def unknown_words(self, path: tuple[str, ...]) -> tuple[str, list[str]]:
        """Return the unknown attributes of a start tag, and the unknown elements in it."""
        words = self.unknown.get(path, ())
        attributes: dict[str, str] = {}
        for word in words:
            if not word.is_element:
                attributes.setdefault(word.name, word.value)  # of an element that stands several times, the first
        head = "".join(f" {name}='{escape_attribute(value)}'" for name, value in attributes.items())
        return head, [word.value for word in words if word.is_element]


class ElementPlan:
    """An element that a definition prints itself: its attributes, its text, and its child elements in order."""

    __slots__ = ("attributes", "children", "content", "flag", "is_fixed", "names", "path", "tag")

    names: frozenset[str]
    is_fixed: bool  # it has contents that do not come from a field that is set

    def __init__(self, shape: Shape, kinds: list[type[Definition]]) -> None:
        self.path = shape.path
        self.tag = shape.path[-1] if shape.path else ""
        self.attributes = tuple(_words(shape.attributes, kinds))
        self.content = None if shape.content is None else _word(shape.content, "", kinds)
        self.flag = None if shape.flag is None else _word(shape.flag, "", kinds)
        self.children = tuple(_children(shape, kinds))
        words = [word for word in (*self.attributes, self.content, self.flag) if word is not None]
        self.names = frozenset(word.name for word in words).union(*(child.names for child in self.children))
        self.is_fixed = any(word.default != word.silent for word in words) or any(c.is_fixed for c in self.children)

    def write(self, page: Page, tag: str, indent: str, *, always: bool = False) -> None:
        """Add the lines of the element; none if it is empty, unless ``always``."""
        lines, deeper = page.lines, indent + INDENT
        at = len(lines)
        lines.append("")  # the start tag, known at the end
        for child in self.children:
            if child.is_fixed or page.unknown or not child.names.isdisjoint(page.present):
                child.write(page, child.tag, deeper)
        head = page.attributes(self.attributes)
        if page.unknown:
            more, elements = page.unknown_words(self.path)
            head += more
            lines += [deeper + element for element in elements]
        body = None if self.content is None else page.text(self.content)
        if len(lines) > at + 1:
            _enclose(lines, at, f"{indent}<{tag}{head}>", body)
            lines.append(f"{indent}</{tag}>")
        elif body:
            lines[at] = f"{indent}<{tag}{head}>{escape_text(body)}</{tag}>"
        elif always or head or body is not None or (self.flag is not None and page.text(self.flag) is not None):
            lines[at] = f"{indent}<{tag}{head}/>"
        else:
            del lines[at]


def _enclose(lines: list[str], at: int, start: str, body: str | None) -> None:
    """Put a start tag and a text before the lines of child elements."""
    # after text, indentation would be part of the text
    lines[at] = f"{start}{escape_text(body)}{lines.pop(at + 1).lstrip()}" if body else start


class NestedPlan:
    """An element that another definition prints."""

    __slots__ = ("field", "holder", "is_fixed", "names", "tag")

    def __init__(self, row: Row, tag: str) -> None:
        self.field = row.field
        self.holder = row.holder
        self.tag = tag
        self.names = frozenset({row.field.name})
        self.is_fixed = isinstance(row.field, DefaultElement)

    def write(self, page: Page, tag: str, indent: str) -> None:
        """Add the lines of each definition in the field."""
        value = getattr(page.holders[self.holder], self.field.name)
        if isinstance(value, list):
            for definition in value:
                page.lines += definition.format_lines(tag, indent)
        elif isinstance(self.field, Opaque):
            page.lines += () if value is None else [indent + value]
        elif value is not None:
            page.lines += value.format_lines(tag, indent, always=not self.is_fixed)


def _words(rows: dict[str, Row], kinds: list[type[Definition]]) -> Iterator[PrintedValue]:
    for name, row in rows.items():
        if not isinstance(row.field, Ignored):
            yield _word(row, f" {name}='", kinds)


def _word(row: Row, start: str, kinds: list[type[Definition]]) -> PrintedValue:
    field = row.field
    may_hide = kinds[row.holder].has_hides()
    if isinstance(field, Flag):
        return PrintedValue(row.holder, field.name, False, False, _empty, start, may_hide)
    assert isinstance(field, (Attribute, Content))
    silent = field.default if field.quiet else None
    return PrintedValue(row.holder, field.name, field.default, silent, field.codec.format, start, may_hide)


def _empty(value: bool) -> str:
    """Return the text of a flag."""
    return ""


def _children(shape: Shape, kinds: list[type[Definition]]) -> Iterator[ElementPlan | NestedPlan]:
    for tag, node in shape.nodes.items():
        if isinstance(node, Shape):
            yield ElementPlan(node, kinds)
        elif not isinstance(node.field, Ignored):
            yield NestedPlan(node, tag)
