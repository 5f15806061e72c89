# SPDX-License-Identifier: LGPL-2.1-or-later
"""Codecs: convert between text in the XML and values."""

from __future__ import annotations

from pyhostdev.errors import VIR_ERR_INVALID_ARG, VIR_ERR_XML_ERROR
from pyhostdev.util.typed import TYPE_CHECKING, Any, Generic, TypeVar
from pyhostdev.util.virxml import ULLONG_MAX, nearest_words, parse_integer, parse_unsigned, unsigned_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")

INT_MAX = 0x7FFFFFFF
NODE_MAX = 1023  # the highest NUMA node in a set
WORDS_NEAR = 3  # words in a message about a longer list
WORDS_NAMED_MAX = 10  # the longest list of words in a message


class Codec(Generic[T]):
    """A pair of pure functions; ``parse`` raises ValueError, ``expected`` describes valid text."""

    __slots__ = ("code", "expected", "format", "parse", "since", "words")

    def __init__(
        self,
        parse: Callable[[str], T],
        format_: Callable[[T], str],
        expected: str,
        words: tuple[str, ...] = (),
        code: int = VIR_ERR_XML_ERROR,
        since: Mapping[str, str] | None = None,
    ) -> None:
        self.since = since or {}  # newer words -> the row of CHANGES that brought them
        self.parse = parse
        self.format = format_
        self.expected = expected
        self.words = words  # all valid words, if they can be listed
        self.code = code  # libvirt's error number for an invalid value


class _Words(dict[str, T]):
    """The values of words; another word is a ValueError."""

    def __missing__(self, word: str) -> T:
        raise ValueError(word)


def enum(*words: str, since: Mapping[str, str] | None = None) -> Codec[str]:
    """Return the codec of a set of words; ``since`` maps newer words to their row of CHANGES."""
    newer = tuple(since or ())
    known, words = words, (*words, *newer)
    expected = f"one of {', '.join(known)}" if len(words) <= WORDS_NAMED_MAX else "a known word"
    if newer and len(words) <= WORDS_NAMED_MAX:
        expected += f", or of newer releases {', '.join(newer)}"
    return Codec(_Words(zip(words, words, strict=True)).__getitem__, str, expected, words, since=since)


def expected_words(codec: Codec[Any], value: str) -> str:
    """Return what is expected instead of an invalid value: all words if they are few, else those nearest to it."""
    if len(codec.words) <= WORDS_NAMED_MAX:
        return codec.expected
    return f"a known word, of which {', '.join(nearest_words(value, codec.words, WORDS_NEAR))} are the nearest"


def _choice(true: str, false: str) -> Codec[bool]:
    values = _Words({true: True, false: False})
    return Codec(values.__getitem__, lambda value: true if value else false, f"{true} or {false}", (true, false))


def unsigned(
    base: int = 10, *, minimum: int = 0, maximum: int = 0xFFFFFFFF, code: int = VIR_ERR_XML_ERROR
) -> Codec[int]:
    """Return the codec of a non-negative number that is printed in decimal."""

    def parse(value: str) -> int:
        number = parse_unsigned(value, base, maximum)
        if number < minimum:
            raise ValueError(value)
        return number

    return Codec(parse, str, f"a number from {minimum} on", code=code)


def hexadecimal(width: int, base: int = 0, maximum: int = 0xFFFFFFFF) -> Codec[int]:
    """Return the codec of a number printed as 0x and at least width digits."""
    spec = f"#0{width + 2}x"
    return Codec(unsigned_parser(base, maximum), lambda value: format(value, spec), "a non-negative number")


def signed(minimum: int = -INT_MAX - 1, base: int = 10, *, maximum: int = INT_MAX) -> Codec[int]:
    """Return the codec of a signed number that is printed in decimal; by default a C int."""

    def parse(value: str) -> int:
        number = parse_integer(value, base)
        if not minimum <= number <= maximum:
            raise ValueError(value)
        return number

    return Codec(parse, str, f"a number from {minimum} on")


def nodes_of(text: str) -> list[int]:
    """
    Return the numbers of a set, sorted: 0,2-4,^3 is 0, 2 and 4.

    Raises:
        ValueError: the text is not a set of numbers, or one is too high.

    Mirrors: virBitmapParse (src/util/virbitmap.c)
    """
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().removeprefix("^").partition("-")
        low = parse_unsigned(first, 10, NODE_MAX)
        high = parse_unsigned(last, 10, NODE_MAX) if dash else low
        if high < low or (part.strip().startswith("^") and (dash or low not in found)):
            raise ValueError(text)
        found = found - {low} if part.strip().startswith("^") else found | set(range(low, high + 1))
    return sorted(found)


def set_text(numbers: Iterable[int]) -> str:
    """
    Return a set of numbers as libvirt prints it: 0,2-4.

    Mirrors: virBitmapFormat (src/util/virbitmap.c)
    """
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _checked_nodeset(text: str) -> str:
    nodes_of(text)
    return text


def _normal_set(text: str) -> str:
    found = nodes_of(text)
    if not found:
        raise ValueError(text)
    return set_text(found)


def _non_empty(value: str) -> str:
    if not value:
        raise ValueError(value)
    return value


text: Codec[str] = Codec(str, str, "text")
name_text: Codec[str] = Codec(_non_empty, str, "a non-empty text")
cpuset: Codec[str] = Codec(_normal_set, str, "numbers and ranges like 0,2-3", code=VIR_ERR_INVALID_ARG)
nodeset: Codec[str] = Codec(_checked_nodeset, str, "numbers and ranges like 0,2-3", code=VIR_ERR_INVALID_ARG)
yes_no: Codec[bool] = _choice("yes", "no")
on_off: Codec[bool] = _choice("on", "off")
number: Codec[int] = unsigned()
number_any_base: Codec[int] = unsigned(0)
positive: Codec[int] = unsigned(minimum=1)
big_number: Codec[int] = unsigned(maximum=ULLONG_MAX)

_UNITS = {
    "b": 1,
    "bytes": 1,
    "kb": 1000,
    "k": 1 << 10,
    "kib": 1 << 10,
    "mb": 10**6,
    "m": 1 << 20,
    "mib": 1 << 20,
    "gb": 10**9,
    "g": 1 << 30,
    "gib": 1 << 30,
    "tb": 10**12,
    "t": 1 << 40,
    "tib": 1 << 40,
    "pb": 10**15,
    "p": 1 << 50,
    "pib": 1 << 50,
    "eb": 10**18,
    "e": 1 << 60,
    "eib": 1 << 60,
}


def unit_factor(unit: str | None) -> int:
    """
    Return the bytes of a unit; without a unit, of KiB.

    Raises:
        ValueError: the unit is unknown.

    Mirrors: virScaleInteger (src/util/virutil.c)
    """
    if not unit:
        return 1024
    factor = _UNITS.get(unit.lower())
    if factor is None:
        raise ValueError(unit)
    return factor


def _checked_unit(unit: str) -> str:
    unit_factor(unit)
    return unit


size_unit: Codec[str] = Codec(_checked_unit, str, "a unit like KiB", ("KiB", "M", "GB", "bytes"), VIR_ERR_INVALID_ARG)
