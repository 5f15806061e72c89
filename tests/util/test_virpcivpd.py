# SPDX-License-Identifier: LGPL-2.1-or-later
"""Vital Product Data: each rule of the format has a case that breaks it, and no bytes crash the parser."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virpcivpd import PCIVPDResource, parse_vpd, read_vpd

END = b"\x78"
NAME = b"\x82\x05\x00 Card"


def field(keyword: str, value: bytes) -> bytes:
    return keyword.encode() + bytes((len(value),)) + value


def section(tag: int, *fields: bytes) -> bytes:
    body = b"".join(fields)
    return bytes((tag,)) + len(body).to_bytes(2, "little") + body


def read_only(*fields: bytes, before: bytes = b"", spare: int = 2) -> bytes:
    """Return a VPD-R whose checksum is right after the bytes ``before``."""
    size = sum(map(len, fields)) + 3 + 1 + spare
    start = b"\x90" + size.to_bytes(2, "little") + b"".join(fields) + b"RV" + bytes((1 + spare,))
    return start + bytes((-sum(before + start) & 0xFF,)) + bytes(spare)


GOOD = read_only(field("PN", b"1234 "), field("V0", b"one"), field("V0", b"two"), before=NAME)
WRITABLE = section(0x91, field("YA", b"tag"), field("Y1", b"sys"), field("RW", bytes(9)))


def test_good() -> None:
    """Name and fields, without blanks around them; a repeated field has its last value at its first place."""
    expected = PCIVPDResource("Card", {"PN": "1234", "V0": "two"}, {"YA": "tag", "Y1": "sys"})
    assert expected == parse_vpd(NAME + GOOD + WRITABLE + END)


@pytest.mark.parametrize(
    ("data", "readonly"),
    [
        (read_only() + END, None),
        (read_only(field("CP", b"\x01\x02")) + END, {}),
        (read_only(field("ZZ", b"unknown"), field("SN", b"\xff\xff")) + END, None),
        (read_only(field("SN", b"S1\x00\x00")) + END, {"SN": "S1"}),
        (read_only(field("va", b"lower"), field("Vx", b"lower"), field("VX", b"upper")) + END, {"VX": "upper"}),
        (b"\x0b123" + read_only(before=b"\x0b123") + END, None),
    ],
    ids=["checksum only", "binary", "unknown and unprintable", "padded", "case of keywords", "small resource first"],
)
def test_fields_that_are_skipped(data: bytes, readonly: dict[str, str] | None) -> None:
    """Unknown keywords and values that are not text do not make the data malformed."""
    assert PCIVPDResource(None, readonly, None) == parse_vpd(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        NAME + END,
        NAME + GOOD,
        NAME + GOOD[:-1],
        (NAME + GOOD + END).replace(b"1234", b"1235"),
        section(0x90, field("PN", b"x")) + END,
        read_only() + section(0x91, field("RV", b"\x00")) + END,
        section(0x90, field("RW", b"")) + END,
        read_only() + section(0x91, b"YA\xffx") + END,
        read_only() + section(0x91, field("RW", b""), field("YA", b"x")) + END,
        b"\x82\x02\x00\x01\x02" + read_only(before=b"\x82\x02\x00\x01\x02") + END,
        b"\x82\xff\xffx",
        b"\x90\x00",
    ],
    ids=[
        "empty",
        "no VPD-R",
        "no end tag",
        "cut",
        "checksum",
        "no checksum",
        "checksum in VPD-W",
        "RW in VPD-R",
        "field too long",
        "RW not last",
        "name not text",
        "resource too long",
        "header cut",
    ],
)
def test_malformed(data: bytes) -> None:
    """Malformed data is None as a whole: nothing of it can be trusted."""
    assert parse_vpd(data) is None


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Whatever a device returns, the parser ends without an error."""
    parse_vpd(data)
    parse_vpd(NAME + GOOD[: len(data)] + data)


def test_reads_up_to_the_end_tag(tmp_path: Path) -> None:
    """Bytes behind the end tag are not read; an absent file is None."""
    path = tmp_path / "vpd"
    path.write_bytes(NAME + GOOD + WRITABLE + END + b"never read")
    assert NAME + GOOD + WRITABLE + END == read_vpd(HostRoot(tmp_path), str(path))
    assert read_vpd(HostRoot(tmp_path), str(tmp_path / "absent")) is None


@pytest.mark.parametrize("data", [b"", b"\x82", b"\x82\xff\xff", b"\x01" * 100, b"\x00" * 0x9000, b"\x82\xff\x7f" * 9])
def test_reading_is_bounded(tmp_path: Path, data: bytes) -> None:
    """A file without an end tag is read to its end, or to the end of the address space and one resource."""
    path = tmp_path / "vpd"
    path.write_bytes(data)
    found = read_vpd(HostRoot(tmp_path), str(path))
    assert found is not None
    assert data.startswith(found)
    assert len(found) <= 0x8000 + 0x10002
