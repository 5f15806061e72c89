# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Read definitions: the contents of an element become the values of the rows of a table.

What the table does not have is kept as ``Unknown``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pyhostdev.conf.xml.definition import InvalidWord, Unknown
from pyhostdev.conf.xml.xmlshape import CONTENT, FLAG, Row, Shape
from pyhostdev.errors import ConfigError, XMLError
from pyhostdev.util.virxml import dump_element, own_text_of, source_line, text_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pyhostdev.conf.xml.definition import Definition
    from pyhostdev.conf.xml.xmlshape import Table
    from pyhostdev.util.virxml import Element


class Reading:
    """An element that is being read: texts become values at once, child elements after the last of them was read."""

    __slots__ = ("definition", "elements", "errors", "lines", "repeated", "state", "table")

    def __init__(self, definition: Definition, table: Table) -> None:
        self.definition = definition
        self.table = table
        self.state: dict[str, Any] = definition.__dict__
        self.elements: dict[int, list[Element]] = {}  # by the place of their row
        self.errors: list[tuple[int, ConfigError, tuple[Unknown, ...]]] = []  # with the invalid attribute or elements
        self.lines: dict[tuple[str, ...], int | None] = {}  # of child elements, by their paths
        self.state["lines"] = self.lines
        self.repeated: list[tuple[str, int | None]] = []  # tags of elements that count once, with lines

    def read(self, shape: Shape, element: Element) -> None:
        """Read an element of the definition: its attributes and text, and its child elements."""
        texts: list[tuple[str, str]] = element.items()  # type: ignore[assignment]  # never bytes
        if shape.has_text:
            texts = [*texts, *_own_texts(shape, element)]
        readers, own = shape.readers, self.state
        for key, text in texts:
            try:
                place, holder, name, parse = readers[key]
            except KeyError:
                self._keep_attribute(shape.path, key, text, element)
                continue
            state = self._inlined(holder) if holder else own
            if name not in state:  # of several elements, the first counts
                try:
                    state[name] = parse(text)
                except ValueError:
                    self._load_invalid(self.table.rows[place], text, element, state)
        if len(element) == 0 or shape.is_text:
            return
        nodes, lines, elements = shape.nodes, self.lines, self.elements
        for child in element:
            node = nodes.get(child.tag)
            if isinstance(node, Shape):
                if node.path not in lines:
                    lines[node.path] = source_line(child)
                else:
                    self._note_repeated(child)
                if node.holder:
                    self._inlined(node.holder)
                self.read(node, child)
            elif node is None:
                self._keep_element(shape.path, child)
            elif node.place in elements:
                elements[node.place].append(child)
            else:
                elements[node.place] = [child]
                lines.setdefault(node.field.path, source_line(child))

    def _inlined(self, holder: int) -> dict[str, Any]:
        """Return the values of an inlined definition, which is made with the first part of it."""
        inlined = getattr(self.definition, self.table.inlined[holder - 1])
        return cast("dict[str, Any]", inlined.__dict__)

    def load_elements(self) -> None:
        """Set the fields that have definitions of their own."""
        for place, elements in self.elements.items():
            row = self.table.rows[place]
            state = self._inlined(row.holder) if row.holder else self.state
            if len(elements) > 1 and row.field.is_single:
                self._note_repeated(elements[1])
            try:
                state[row.name] = row.field.load(elements)
            except ConfigError as err:
                self.errors.append((place, err, tuple(map(_as_written, elements))))
                if err.readable is not None and row.field.since is None:
                    state[row.name] = err.readable
        if self.repeated:
            self.definition.repeated = tuple(self.repeated)

    def _note_repeated(self, element: Element) -> None:
        self.repeated.append((str(element.tag), source_line(element)))

    def _load_invalid(self, row: Row, text: str, element: Element, state: dict[str, Any]) -> None:
        """Take the default for an invalid value; note the error unless libvirt ignores it."""
        state[row.name] = row.field.default
        if not row.field.lenient:
            line = source_line(element)
            leaf = row.field.leaf
            written = Unknown(leaf, text, line, False) if leaf else _as_written(element)
            self.errors.append((row.place, row.field.refusal(text, str(element.tag), line), (written,)))

    def _keep_element(self, path: tuple[str, ...], element: Element) -> None:
        if not isinstance(element.tag, str):  # a comment
            return
        self._kept_at(path).append(_as_written(element))

    def _keep_attribute(self, path: tuple[str, ...], key: str, value: str, element: Element) -> None:
        kept = self._kept_at(path)
        if not key.startswith("{"):
            kept.append(Unknown(key, value, source_line(element), False))
            return
        uri, local = key[1:].split("}")
        prefix = next((p for p, u in element.nsmap.items() if u == uri and p), "xml")
        if prefix != "xml":
            kept.append(Unknown(f"xmlns:{prefix}", uri, source_line(element), False))
        kept.append(Unknown(f"{prefix}:{local}", value, source_line(element), False))

    def _kept_at(self, path: tuple[str, ...]) -> list[Unknown]:
        unknown: dict[tuple[str, ...], list[Unknown]] = self.definition.__dict__.setdefault("unknown", {})
        return unknown.setdefault(path, [])

    def report(self, element: Element) -> list[ConfigError]:
        """Return the errors in the order of the rows; those of newer rows are kept in the definition instead."""
        found: list[ConfigError] = []
        for place, error, words in sorted(self.errors, key=lambda error: error[0]):
            field = self.table.rows[place].field
            if field.since is None:
                found.append(error)
            else:
                path = field.path[:-1] if words[0].is_element else field.path
                self.definition.invalid_words += (InvalidWord(field.since, error, path, words),)
        return [*found, *self._missing(element)]

    def _missing(self, element: Element) -> Iterator[ConfigError]:
        """Yield an error for each row that must be there and was not found."""
        for row in self.table.required:
            state = self._inlined(row.holder) if row.holder else self.state
            if row.name not in state and row.place not in self.elements:
                field = row.field
                where = "/".join((str(element.tag), *field.path))
                what = f"attribute '{field.leaf}' of <{where}>" if field.leaf else f"<{where}>"
                line, renumbered = source_line(element), field.renumbered
                yield XMLError(f"The {what} is missing", line=line, libvirt_code=field.missing, renumbered=renumbered)


def without_words(element: Element, paths: Collection[str]) -> tuple[Element, tuple[tuple[str, int | None], ...]]:
    """
    Return an element without the attributes and elements at some paths, and the labels and lines of those dropped.

    The element itself is not changed: a copy is, if there is something to drop.
    """
    present = [path for path in paths if _at(element, path)]
    if not present:
        return element, ()
    from copy import deepcopy  # few elements have such words

    copied, dropped = deepcopy(element), []
    for path in present:
        leaf = path.rpartition("/")[2]
        for found in _at(copied, path):
            dropped.append((leaf, source_line(found)))
            if leaf[:1] == "@":
                del found.attrib[leaf[1:]]
            else:
                found.getparent().remove(found)  # type: ignore[union-attr]  # it is below the copy
    return copied, tuple(dropped)


def _at(element: Element, path: str) -> list[Element]:
    """Return the elements at a path, for the path of an attribute those that have it."""
    parents, _, leaf = path.rpartition("/")
    if leaf[:1] != "@":
        return element.findall(path)
    return [found for found in (element.findall(parents) if parents else [element]) if found.get(leaf[1:]) is not None]


def _as_written(element: Element) -> Unknown:
    return Unknown(str(element.tag), dump_element(element), source_line(element), True)


def _own_texts(shape: Shape, element: Element) -> Iterator[tuple[str, str]]:
    """Yield the text of an element under the keys of the rows that need it."""
    text = text_of(element) if shape.is_text else own_text_of(element)
    is_indentation = not shape.is_text and len(element) > 0 and not text.strip()
    if shape.content is not None and not is_indentation and (text or shape.content.field.keeps_empty):
        yield CONTENT, text
    if shape.flag is not None:
        yield FLAG, text
