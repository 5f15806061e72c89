# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The interface of a definition that the fields of a table need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyhostdev.util.virxml import Element


class Definition(Protocol):
    """A definition: its fields, and its constructor from an element."""

    @classmethod
    def declared(cls) -> dict[str, Any]:
        """Return the fields by name, in the order of printing."""

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """Read the definition from its element."""
