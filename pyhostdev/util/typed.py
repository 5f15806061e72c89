# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What modules use of typing while they run, without typing: that costs a verb 3 ms, and each named tuple 0.2 ms.

Type checkers see typing itself. Modules that are loaded with lxml, which loads typing, may use both.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple, Protocol, TypeVar, overload
else:
    Any = object

    class Protocol:
        """A class that others have the methods of."""

        __slots__ = ()

    class _Maker(type):
        """Makes of a class body what typing makes of it, a class of ``collections.namedtuple`` with more methods."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body["__annotations__"]
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """The base of a class whose annotated names are the fields of a tuple."""

    def TypeVar(name: str, **limits: Any) -> Any:  # noqa: N802 - typing's name
        """Return anything: only annotations use it."""
        return object

    def overload(function: Any) -> Any:
        """Return the function, which the one without this mark replaces."""
        return function


__all__ = ["TYPE_CHECKING", "Any", "NamedTuple", "Protocol", "TypeVar", "overload"]
