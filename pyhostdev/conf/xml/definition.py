# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The interface of a definition that fields, reading and printing need, and the contents that no table has.
"""

from __future__ import annotations

from pyhostdev.util.typed import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from pyhostdev.errors import ConfigError
    from pyhostdev.util.virxml import Element


class Unknown(NamedTuple):
    """An unknown attribute with its value, or an unknown element with its text."""

    name: str
    value: str
    line: int | None
    is_element: bool

    @property
    def label(self) -> str:
        """The name, with @ in front of that of an attribute."""
        return self.name if self.is_element else f"@{self.name}"

    @property
    def is_foreign(self) -> bool:
        """True for a name in a namespace, or the declaration of a namespace."""
        return self.name[:1] == "{" or ":" in self.name

    @property
    def local_name(self) -> str:
        """The name without its namespace."""
        return self.name.rpartition("}" if self.name[:1] == "{" else ":")[2]

    @property
    def declares_namespace(self) -> bool:
        """True for the declaration of a namespace."""
        return not self.is_element and self.name.startswith("xmlns:")


class InvalidWord(NamedTuple):
    """A field that a release of libvirt brought, with an invalid value: kept as written, older releases drop it."""

    since: str  # the row of CHANGES
    error: ConfigError
    path: tuple[str, ...]  # of the elements around it
    words: tuple[Unknown, ...]  # the attribute, or its elements


class Definition(Protocol):
    """A definition: its fields, its constructor from an element, and its lines."""

    line: int | None
    lines: Mapping[tuple[str, ...], int | None]
    unknown: Mapping[tuple[str, ...], list[Unknown]]
    invalid_words: tuple[InvalidWord, ...]
    repeated: tuple[tuple[str, int | None], ...]

    @classmethod
    def declared(cls) -> dict[str, Any]:
        """Return the fields by name, in the order of printing."""

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """Read the definition from its element."""

    @classmethod
    def has_hides(cls) -> bool:
        """Return True if the class has a hook ``hides``."""

    def hides(self, name: str) -> bool:
        """Return True if a field must not be printed."""

    def kept_words(self) -> Mapping[tuple[str, ...], list[Unknown]]:
        """Return the attributes and elements that are printed unchanged, by their path of elements."""

    def format_lines(self, tag: str, indent: str = "", *, always: bool = True) -> list[str]:
        """Return the lines of the definition."""
