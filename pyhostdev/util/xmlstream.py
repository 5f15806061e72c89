# SPDX-License-Identifier: LGPL-2.1-or-later
"""
XML from untrusted callers as a stream: its limits, and one text out of it, before or without a tree.

Python's expat is loaded ten times as fast as the library that makes trees.
"""

from __future__ import annotations

import re
from xml.parsers import expat

from pyhostdev.errors import VIR_ERR_XML_DETAIL, XMLError

SIZE_MAX = 1 << 20  # bytes; a domain with 250 devices takes a tenth of it
DEPTH_MAX = 256  # libxml2 itself stops near this depth
NODES_MAX = 100_000  # elements and attributes together
ATTRIBUTES_MAX = 256  # per element

_DECLARED_ENCODING = rb"<\?xml[^>]*?\sencoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']"
_ENCODINGS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin-1": "latin-1",
}


def not_well_formed(why: str, line: int | None) -> XMLError:
    """Return the error about a document that is not well-formed."""
    return XMLError(f"XML is not well-formed: {why}", line=line, libvirt_code=VIR_ERR_XML_DETAIL)


def as_utf8(source: str | bytes) -> bytes:
    """
    Return the document as UTF-8, so that both parsers see the same characters.

    Raises:
        XMLError: it is too large, its encoding is not supported, or its bytes are not valid in that encoding.
    """
    if len(source) > SIZE_MAX:
        raise XMLError(f"XML of {len(source)} characters is larger than the limit of {SIZE_MAX}")
    if isinstance(source, str):
        return _encode(source)
    start = source.removeprefix(b"\xef\xbb\xbf")
    declared = re.match(_DECLARED_ENCODING, start) if start.startswith(b"<?xml") else None
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    if name not in _ENCODINGS:
        raise XMLError(f"XML in encoding '{name}' is not supported, only UTF-8", line=1)
    if _ENCODINGS[name] == "latin-1":
        return source.decode("latin-1").encode("utf-8")
    return _checked_utf8(source, _ENCODINGS[name])


def _encode(text: str) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as err:
        line = text.count("\n", 0, err.start) + 1
        raise not_well_formed("a lone surrogate is not a character", line) from None
    if len(data) > SIZE_MAX:
        raise XMLError(f"XML of {len(data)} bytes is larger than the limit of {SIZE_MAX}")
    return data


def _checked_utf8(data: bytes, encoding: str) -> bytes:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise not_well_formed(f"byte {data[err.start]:#04x} is not valid in {encoding}", line) from None
    return data


class _Limits:
    """Counts the nodes that a streaming parser reports, and stops the parser at a limit."""

    def __init__(self, parser: expat.XMLParserType) -> None:
        self.parser = parser
        self.depth = 0
        self.nodes = 0
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.StartDoctypeDeclHandler = self.doctype

    def refuse(self, message: str) -> XMLError:
        return XMLError(message, line=self.parser.CurrentLineNumber)

    def start(self, _name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        self.nodes += 1 + len(attributes)
        if self.depth > DEPTH_MAX:
            raise self.refuse(f"XML is nested deeper than {DEPTH_MAX} elements")
        if len(attributes) > ATTRIBUTES_MAX:
            raise self.refuse(f"An XML element has more than {ATTRIBUTES_MAX} attributes")
        if self.nodes > NODES_MAX:
            raise self.refuse(f"XML has more than {NODES_MAX} elements and attributes")

    def end(self, _name: str) -> None:
        self.depth -= 1

    def doctype(self, *_declaration: object) -> None:
        raise self.refuse("XML with a DOCTYPE is not accepted")


def check_limits(data: bytes, *, counting: bool) -> None:
    """
    Read the document once as a stream, without building a tree.

    Args:
        counting: False only checks that it is well-formed, which is several times as fast.

    Raises:
        XMLError: a limit is exceeded, there is a DOCTYPE, or the document is not well-formed.
    """
    parser = expat.ParserCreate("utf-8")
    if counting:
        _Limits(parser)
    _parse(parser, data)


def _parse(parser: expat.XMLParserType, data: bytes) -> None:
    try:
        parser.Parse(data, True)
    except expat.ExpatError as err:
        why = expat.ErrorString(err.code) or "unknown reason"
        raise not_well_formed(why, err.lineno) from None


class _ChildText:
    """Collects the text in the first child element of a name, of a root of a name."""

    def __init__(self, parser: expat.XMLParserType, root: str, child: str) -> None:
        self.wanted = [root, child]
        self.path: list[str] = []
        self.is_open = False
        self.texts: list[str] | None = None
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.text

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self.path.append(name)
        if self.texts is None and self.path == self.wanted:
            self.is_open, self.texts = True, []

    def end(self, _name: str) -> None:
        self.is_open = self.is_open and self.path != self.wanted
        self.path.pop()

    def text(self, data: str) -> None:
        if self.is_open and self.texts is not None:
            self.texts.append(data)


def read_child_text(source: str | bytes, root: str, child: str) -> str | None:
    """
    Return the text of the first child element with a name; None without such a child, or if the root has another name.

    Text in elements below it counts, comments do not. Both elements are in no namespace.

    Raises:
        XMLError: as ``virxml.parse_document``.
    """
    data = as_utf8(source)
    check_limits(data, counting=True)
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    found = _ChildText(parser, root, child)
    _parse(parser, data)
    return None if found.texts is None else "".join(found.texts)
