# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the rows of a table ask of a definition, which is a table itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyhostdev.util.virxml import Element


class Definition(Protocol):
    """A definition: its fields, and how it is made from an element."""

    @classmethod
    def declared(cls) -> dict[str, Any]: ...

    @classmethod
    def from_element(cls, element: Element) -> Self: ...
