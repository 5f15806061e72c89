# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Stand-ins for names of typing that modules need while they run.

Loading typing takes 3 ms of a verb's 40 ms, and each of its named tuples 0.2 ms. Type checkers see typing itself. A
module that is always loaded together with lxml can use typing, which lxml loads.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload
else:
    Any = object

    class Generic:
        """A base of classes that take types in brackets; only type checkers use the types."""

        __slots__ = ()

        def __class_getitem__(cls, types: Any) -> type:
            return cls

    class Protocol:
        """A base that describes methods; only type checkers use the description."""

        __slots__ = ()

    class _Maker(type):
        """Turns a class body into a class of ``collections.namedtuple`` with its methods, as typing does."""

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
        """Return a placeholder: only annotations use it."""
        return object

    def overload(function: Any) -> Any:
        """Return the function; the definition without this decorator replaces it."""
        return function


__all__ = ["TYPE_CHECKING", "Any", "Generic", "NamedTuple", "Protocol", "TypeVar", "overload"]
