# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a text in the XML becomes a value and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from pyhostdev.util.virxml import ULLONG_MAX, parse_integer, parse_unsigned

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Codec(Generic[T]):
    """A pair of pure functions; ``parse`` raises ValueError, ``expected`` says what it wanted."""

    __slots__ = ("expected", "format", "parse")

    def __init__(self, parse: Callable[[str], T], format_: Callable[[T], str], expected: str) -> None:
        self.parse = parse
        self.format = format_
        self.expected = expected


def enum(*words: str) -> Codec[str]:
    """Return the codec of one of some words."""

    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(value)
        return value

    return Codec(parse, str, f"one of {', '.join(words)}")


def _choice(true: str, false: str) -> Codec[bool]:
    values = {true: True, false: False}

    def parse(value: str) -> bool:
        if value not in values:
            raise ValueError(value)
        return values[value]

    return Codec(parse, lambda value: true if value else false, f"{true} or {false}")


def unsigned(base: int = 10, *, minimum: int = 0, maximum: int = 0xFFFFFFFF) -> Codec[int]:
    """Return the codec of a non-negative number that is printed in decimal."""

    def parse(value: str) -> int:
        number = parse_unsigned(value, base, maximum)
        if number < minimum:
            raise ValueError(value)
        return number

    return Codec(parse, str, "a number" if not minimum else f"a number from {minimum} on")


def hexadecimal(width: int, base: int = 0, maximum: int = 0xFFFFFFFF) -> Codec[int]:
    """Return the codec of a number printed as 0x and at least width digits."""
    return Codec(
        lambda value: parse_unsigned(value, base, maximum),
        lambda value: f"{value:#0{width + 2}x}",
        "a non-negative number",
    )


def signed(minimum: int = -0x80000000, maximum: int = 0x7FFFFFFF) -> Codec[int]:
    """Return the codec of a number that may be negative."""

    def parse(value: str) -> int:
        number = parse_integer(value)
        if not minimum <= number <= maximum:
            raise ValueError(value)
        return number

    return Codec(parse, str, f"a number from {minimum} on")


def _non_empty(value: str) -> str:
    if not value:
        raise ValueError(value)
    return value


text: Codec[str] = Codec(str, str, "text")
name_text: Codec[str] = Codec(_non_empty, str, "a text that is not empty")
yes_no: Codec[bool] = _choice("yes", "no")
on_off: Codec[bool] = _choice("on", "off")
number: Codec[int] = unsigned()
number_any_base: Codec[int] = unsigned(0)
positive: Codec[int] = unsigned(minimum=1)
big_number: Codec[int] = unsigned(maximum=ULLONG_MAX)
