# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile documents are refused before a tree is built, and numbers are read as C reads them."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from pyhostdev.errors import VIR_ERR_XML_DETAIL, XMLError
from pyhostdev.util import virxml, xmlstream
from pyhostdev.util.virxml import parse_document, parse_integer, parse_unsigned, shown, text_of, unsigned_parser
from pyhostdev.util.xmlstream import read_child_text

BOMB = """<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<domain>&b;</domain>"""
EXTERNAL = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain>&x;</domain>'
PUBLIC = '<!DOCTYPE domain PUBLIC "a" "http://localhost/x.dtd"><domain/>'


@pytest.mark.parametrize("document", [BOMB, EXTERNAL, PUBLIC, "<!DOCTYPE d><d/>"])
def test_a_doctype_is_refused_whatever_it_declares(document: str) -> None:
    """No entity can be declared, so no entity can be expanded or fetched."""
    with pytest.raises(XMLError, match="DOCTYPE") as error:
        parse_document(document)
    assert 1 == error.value.line


@pytest.mark.parametrize(
    ("depth", "accepted"), [(255, True), (256, True), (257, False), (40_000, False), (100_000, False)]
)
def test_nesting_is_limited(depth: int, accepted: bool) -> None:
    """256 levels are read, one more is refused; a hundred thousand do not reach the C stack."""
    document = "<a>" * depth + "</a>" * depth
    if accepted:
        assert "a" == parse_document(document).tag
    else:
        with pytest.raises(XMLError, match="nested deeper"):
            parse_document(document)


def test_the_size_is_limited_before_anything_is_read() -> None:
    """A document larger than the limit is refused without looking into it."""
    with pytest.raises(XMLError, match="larger than the limit"):
        parse_document(b"\xff" * (xmlstream.SIZE_MAX + 1))


def test_the_size_counts_in_bytes() -> None:
    """Characters that take several bytes cannot slip under the limit."""
    with pytest.raises(XMLError, match="larger than the limit"):
        parse_document("<a>" + "\u20ac" * (xmlstream.SIZE_MAX // 2) + "</a>")


def test_attributes_of_one_element_are_limited() -> None:
    """An element with a thousand attributes is refused."""
    with pytest.raises(XMLError, match="attributes"):
        parse_document("<a " + " ".join(f"a{n}=''" for n in range(1000)) + "/>")


def test_elements_are_limited() -> None:
    """A flat document of many empty elements is refused in little memory and time."""
    document = "<a>" + "<b/>" * (xmlstream.NODES_MAX + 1) + "</a>"
    tracemalloc.start()
    begin = time.monotonic()
    with pytest.raises(XMLError, match="elements and attributes"):
        parse_document(document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (True, True) == (peak < 64 << 20, time.monotonic() - begin < 5)


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (b"<a>\n<b>\xff</b></a>", 2),
        (b"<a>\n\n\xc3</a>", 3),
        (b"<a>\0</a>", 1),
        ("<a>\n\ud800</a>", 2),
        (b"<?xml version='1.0' encoding='us-ascii'?>\n<a>\xc3\xa4</a>", 2),
        (b"<a>\n<b></a>", 2),
        (b"", 1),
        (b"<a xmlns='relative' unknown:b='c'/>\n</d>", 2),  # lxml takes namespaces for the only error
    ],
)
def test_bytes_that_are_no_document_are_refused_with_their_line(document: bytes | str, line: int) -> None:
    """A source that is not text or not XML is an error with its line."""
    with pytest.raises(XMLError) as error:
        parse_document(document)
    assert (VIR_ERR_XML_DETAIL, line) == (error.value.libvirt_code, error.value.line)


@pytest.mark.parametrize("document", ["<a>&b;</a>", "<a>]]></a>", "<a>\x01</a>", "<a b='1' b='2'/>", "<a b='<'/>"])
def test_a_small_wrong_document_is_refused(document: str) -> None:
    """Documents that only one parser reads are refused like all others that are not well-formed."""
    with pytest.raises(XMLError, match="not well-formed"):
        parse_document(document)


def test_a_plain_document_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's parser is only asked about documents that the two parsers might read differently."""
    asked: list[bytes] = []
    monkeypatch.setattr(virxml, "check_limits", lambda data, *, counting: asked.append(data))
    for document in ("<a b='c'>&lt;</a>", "<a>\u00e4</a>", "<?xml version='1.0'?><a/>", "<a xmlns='b'/>"):
        parse_document(document)
    assert ["<a>\u00e4</a>".encode(), b"<?xml version='1.0'?><a/>", b"<a xmlns='b'/>"] == asked


@pytest.mark.parametrize("encoding", ["utf-16", "utf-7", "ebcdic-cp-us", "x-unknown"])
def test_encodings_that_hide_things_are_refused(encoding: str) -> None:
    """Only encodings in which ASCII is ASCII are read."""
    with pytest.raises(XMLError, match="encoding"):
        parse_document(f"<?xml version='1.0' encoding='{encoding}'?><a/>".encode())


@pytest.mark.parametrize(
    "document",
    [
        "<a>\u00e4</a>",
        "<?xml version='1.0' encoding='iso-8859-1'?><a>\u00e4</a>",
        "<a>\u00e4</a>".encode(),
        b"\xef\xbb\xbf<a>\xc3\xa4</a>",
        b"<?xml version='1.0' encoding='ISO-8859-1'?><a>\xe4</a>",
    ],
)
def test_text_is_text_whatever_bytes_it_came_in(document: str) -> None:
    """UTF-8, with or without a mark, Latin-1 and str give the same characters."""
    assert "\u00e4" == parse_document(document).text


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        ("12", 10, 12),
        (" 12", 10, 12),
        ("+12", 10, 12),
        ("012", 10, 12),
        ("012", 0, 10),
        ("0x1F", 0, 31),
        ("0X1f", 0, 31),
        ("0", 0, 0),
        ("1f", 16, 31),
        ("0x1f", 16, 31),
        ("4294967295", 0, 0xFFFFFFFF),
    ],
)
def test_numbers_are_read_as_strtoul_reads_them(text: str, base: int, value: int) -> None:
    """Leading blanks, a plus sign and C's prefixes are accepted."""
    assert value == parse_unsigned(text, base)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "-0", "5 ", "0x", "0a", "08", "1_0", "\u0665", "0x100000005", "4294967296", "1e3", "++1", "- 1"],
)
def test_what_strtoul_does_not_read_to_its_end_is_no_number(text: str) -> None:
    """Signs, separators, digits of other scripts and overflow are refused."""
    with pytest.raises(ValueError):
        parse_unsigned(text, 0)


def test_parser_remembers_few_short_numbers() -> None:
    """A hostile document cannot make it remember much, and a number that is not valid is refused each time."""
    parse = unsigned_parser(0, 0xFFFF)
    assert [parse(text) for text in ("0x10", "0x10", "0" * 40 + "7")] == [16, 16, 7]
    assert [parse(str(number)) for number in range(5000)] == list(range(5000))
    assert len(parse.__self__) <= 1024  # type: ignore[attr-defined]  # the dictionary
    assert max(map(len, parse.__self__)) <= 16  # type: ignore[attr-defined]
    for text in ("x", "x", "65536", "65536"):
        with pytest.raises(ValueError, match=text):
            parse(text)


def test_a_number_of_a_million_digits_is_refused_at_once() -> None:
    """Reading it would take quadratic time."""
    with pytest.raises(ValueError):
        parse_integer("9" * 1_000_000)


@pytest.mark.parametrize(("text", "value"), [("-1", -1), ("+7", 7), ("-0x10", -16)])
def test_signed_numbers_have_a_sign(text: str, value: int) -> None:
    """What may be negative is read with its sign."""
    assert value == parse_integer(text, 0)


@pytest.mark.parametrize(
    ("value", "printed"),
    [("x", "x"), ("\u00e4", "\u00e4"), ("a\nb", "a\\nb"), ("\x9b31m", "\\x9b31m"), ("n" * 100, "n" * 64 + "...")],
)
def test_refused_values_are_safe_to_print(value: str, printed: str) -> None:
    """A message shows no more than a line of what a user wrote, and nothing a terminal would obey."""
    assert printed == shown(value)


NAMED = [
    ("<domain><name>a</name></domain>", "a"),
    (
        "<domain>\n <!-- <name>b</name> --><uuid/><name>a<!-- c --> b&lt;&#10;<b>c</b><![CDATA[<d>]]></name></domain>",
        "a b<\nc<d>",
    ),
    ("<domain><devices><name>no</name></devices><name/><name>second</name></domain>", ""),
    ("<domain><name><name>inner</name> outer</name></domain>", "inner outer"),
    ("<domain xmlns='urn:a'><name>a</name></domain>", None),
    ("<domain xmlns:q='urn:a'><q:name>no</q:name><name>a</name></domain>", "a"),
    ("<network><name>a</name></network>", None),
    ("<domain/>", None),
    ("<?xml version='1.0' encoding='iso-8859-1'?><domain><name>\u00e9</name></domain>", "\u00e9"),
]
REFUSED = [
    *(BOMB, EXTERNAL, "", "<domain><name>a</domain>", "<domain><name>a</name>", "<domain><name>&none;</name></domain>"),
    *("<a>" * 257 + "</a>" * 257, "<domain>\0</domain>", "<domain><q:name>a</q:name></domain>", "<domain/><domain/>"),
    *("<a " + " ".join(f"a{n}=''" for n in range(300)) + "/>", "<domain a='1' a='2'/>"),
    "<a xmlns:p='urn:a' xmlns:q='urn:a' p:b='1' q:b='2'/>",
]


@pytest.mark.parametrize(("document", "text"), NAMED)
def test_a_text_is_read_without_a_tree(document: str, text: str | None) -> None:
    """The text is the one that the tree has."""
    data = document.encode("latin-1")
    root = parse_document(data)
    element = root.find("name") if root.tag == "domain" else None
    assert text == (None if element is None else text_of(element)) == read_child_text(data, "domain", "name")


@pytest.mark.parametrize("document", REFUSED)
def test_both_readers_refuse_the_same(document: str) -> None:
    """What no tree is made of gives no text either."""
    for read in (parse_document, lambda source: read_child_text(source, "domain", "name")):
        with pytest.raises(XMLError):
            read(document)
