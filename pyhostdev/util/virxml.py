# SPDX-License-Identifier: LGPL-2.1-or-later
"""
XML as libvirt reads it, from untrusted callers.

A document passes a streaming check of its size and number of nodes before any tree is built, and of its depth before
the tree is read. A DOCTYPE is refused, so there are no entities to expand. Numbers follow C's strtoul as libvirt calls
it.

Mirrors: src/util/virxml.c, src/util/virstring.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lxml import etree

from pyhostdev.errors import XMLError
from pyhostdev.util.xmlstream import ATTRIBUTES_MAX, DEPTH_MAX, NODES_MAX, as_utf8, check_limits, not_well_formed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from pyhostdev.errors import Renumbering

    Element: TypeAlias = etree._Element

_START_TAG_MAX = ATTRIBUTES_MAX * len(" a=''")  # a longer one may have too many attributes
_IS_TOO_DEEP = etree.XPath(f"boolean({'/*' * (DEPTH_MAX + 1)})")

SHOWN_MAX = 64  # characters of an invalid value in a message

UINT_MAX = 0xFFFFFFFF
ULLONG_MAX = 0xFFFFFFFFFFFFFFFF

_DIGITS = {8: frozenset("01234567"), 10: frozenset("0123456789"), 16: frozenset("0123456789abcdefABCDEF")}
_DIGITS_MAX = 64  # longer than any valid number, and short enough to be converted at once
_SHORT = 16  # characters of a number that is remembered
_REMEMBERED = 1024  # numbers


def parse_document(source: str | bytes) -> Element:
    """
    Parse a document and return its root element.

    Raises:
        XMLError: it is too large, too deep, has a DOCTYPE, is not valid text or not well-formed; with the line.
    """
    data = as_utf8(source)
    if _is_small(data):
        root = _parse_plain(data)
        if root is not None:
            return root
    check_limits(data, counting=True)  # which error is the first
    return _parse_tree(data)


def parse_elements(text: str | None) -> list[Element]:
    """
    Return the elements in a text that a definition keeps as it was read, such as two ``<seclabel>``; none for None.

    Raises:
        XMLError: as ``parse_document``.
    """
    return [] if text is None else list(parse_document(f"<all>{text}</all>"))


def _parse_plain(data: bytes) -> Element | None:
    """
    Return the root of a small document, None for one that may be wrong.

    Both parsers read plain ASCII alike, if the tree's reports nothing. Of other documents the stream's is asked, too.
    """
    parser = _tree_parser()
    try:
        root = etree.fromstring(data, parser)
        if not data.isascii() or b"<?" in data or len(parser.error_log):
            check_limits(data, counting=False)
    except (XMLError, etree.XMLSyntaxError):
        return None
    return None if _IS_TOO_DEEP(root) else root


def _tree_parser() -> etree.XMLParser:
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_pis=True, encoding="utf-8")


def _parse_tree(data: bytes) -> Element:
    try:
        return etree.fromstring(data, _tree_parser())
    except etree.XMLSyntaxError as err:
        raise not_well_formed(err.msg or "unknown reason", err.lineno) from None


def _is_small(data: bytes) -> bool:
    """
    Return True if counts of characters prove that a document exceeds no limit; its depth is not considered.

    Each element has a "<", each attribute a "=", and a DOCTYPE its name; each of these may also be in a text. An
    attribute takes at least five characters.
    """
    if data.count(b"<") + data.count(b"=") > NODES_MAX or b"<!DOCTYPE" in data:
        return False
    at = -1
    while len(data) > at + _START_TAG_MAX + 1:
        at = data.rfind(b"<", at + 1, at + _START_TAG_MAX + 2)  # as far on as the next "<" may be
        if at < 0:
            return False
    return True


def parse_unsigned(text: str, base: int = 10, maximum: int = UINT_MAX) -> int:
    """
    Parse a non-negative number; base 0 selects the base by the prefix as in C (0x hexadecimal, 0 octal).

    Leading blanks and a plus sign are accepted, as by strtoul; text after the digits is not.

    Raises:
        ValueError: the text is not such a number, or the number is larger than maximum.

    Mirrors: virStrToLong_uip (src/util/virstring.c)
    """
    value = parse_integer(text, base)
    if not 0 <= value <= maximum or "-" in text:
        raise ValueError(text)
    return value


class _Numbers(dict[str, int]):
    """Numbers by their texts: a short text is parsed once, another each time."""

    def __init__(self, base: int, maximum: int) -> None:
        super().__init__()
        self.base = base
        self.maximum = maximum

    def __missing__(self, text: str) -> int:
        number = parse_unsigned(text, self.base, self.maximum)
        if len(text) <= _SHORT and len(self) < _REMEMBERED:
            self[text] = number
        return number


def unsigned_parser(base: int, maximum: int) -> Callable[[str], int]:
    """
    Return ``parse_unsigned`` for one base and maximum.

    It remembers the numbers of short texts: the addresses of many devices repeat few numbers.
    """
    return _Numbers(base, maximum).__getitem__


def parse_integer(text: str, base: int = 10) -> int:
    """
    Parse a number that may be negative, in C notation; the caller checks the range.

    Raises:
        ValueError: the text is not such a number.

    Mirrors: virStrToLong_ll (src/util/virstring.c)
    """
    digits = text.lstrip(" \t\n\v\f\r")
    is_negative = digits.startswith("-")
    if digits.startswith(("+", "-")):
        digits = digits[1:]
    radix = base or 10
    if base in (0, 16) and digits.startswith(("0x", "0X")):
        digits, radix = digits[2:], 16
    elif base == 0 and digits.startswith("0"):
        radix = 8
    if not 0 < len(digits) <= _DIGITS_MAX or not _DIGITS[radix].issuperset(digits):
        raise ValueError(text)
    return -int(digits, radix) if is_negative else int(digits, radix)


_ATTRIBUTE_ESCAPES = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "'": "&apos;",
        "\t": "&#9;",
        "\n": "&#10;",
        "\r": "&#13;",
    }
)
_TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})


def escape_attribute(value: str) -> str:
    """Return value escaped for an attribute between single quotes."""
    return value if value.isalnum() else value.translate(_ATTRIBUTE_ESCAPES)


def escape_text(value: str) -> str:
    """Return value escaped for text between two tags."""
    return value.translate(_TEXT_ESCAPES)


def source_line(element: Element) -> int | None:
    """Return the line of an element in its document."""
    return element.sourceline  # type: ignore[return-value]  # a number


def text_of(element: Element) -> str:
    """
    Return all text in an element, including that of its descendants; comments are not text.

    Mirrors: xmlNodeGetContent of libxml2, as libvirt calls it
    """
    return "".join(cast("list[str]", list(element.itertext()))) if len(element) else element.text or ""


def own_text_of(element: Element) -> str:
    """Return the text in an element before its first child element; comments are not text."""
    text = element.text or ""
    for part in element:
        if isinstance(part.tag, str):
            break
        text += part.tail or ""
    return text


def attributes_of(element: Element) -> list[tuple[str, str]]:
    """Return names and values in document order; a namespaced name is ``{uri}name``."""
    return cast("list[tuple[str, str]]", element.items())


def dump_element(element: Element) -> str:
    """Return an element verbatim with its contents and the namespaces it needs."""
    import copy

    clone = copy.deepcopy(element)
    clone.tail = None
    etree.cleanup_namespaces(clone)
    return etree.tostring(clone, encoding="unicode")


def is_blank(text: str | None) -> bool:
    """Return True if elements that are kept as text have neither attributes nor child elements."""
    return text is not None and not any(len(element) or element.attrib for element in parse_elements(text))


def invalid_value(
    what: str,
    value: str,
    why: str,
    line: int | None,
    code: int | None = None,
    renumbered: Renumbering | None = None,
) -> XMLError:
    """Return the error for an attribute or a text with an invalid value; ``why`` gives the expected form."""
    message = f"Invalid value '{shown(value)}' of {what}: {why}"
    return XMLError(message, line=line, libvirt_code=code, renumbered=renumbered)


def shown(value: str) -> str:
    """Return a user's text in a form fit for a message: short, and without control characters."""
    return printable(value if len(value) <= SHOWN_MAX else value[:SHOWN_MAX] + "...")


def nearest_words(word: str, known: Iterable[str], count: int, cutoff: float = 0.0) -> list[str]:
    """
    Return the known words that are most like another one, the nearest first.

    Args:
        cutoff: how alike a word must be, from 0 to 1.
    """
    from difflib import get_close_matches

    return get_close_matches(word[:SHOWN_MAX], list(known), count, cutoff)


def printable(text: str) -> str:
    """Return a text with control characters and other invisible characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]
