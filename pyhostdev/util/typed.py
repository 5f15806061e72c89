# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Named tuples whose class costs a third of the time that ``typing.NamedTuple`` takes.

typing compiles the annotation of every field to check it. Type checkers do that here, and a verb loads some fifty of
these classes.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False  # typing costs more than this module
if TYPE_CHECKING:
    from typing import Any, NamedTuple

    __all__ = ["NamedTuple"]
else:

    class _Maker(type):
        """Makes of a class body what typing makes of it, but keeps the annotations as their source text."""

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
        """The base of a class whose annotated names are the fields of a tuple, as with ``typing.NamedTuple``."""
