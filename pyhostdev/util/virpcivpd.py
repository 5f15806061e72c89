# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Vital Product Data of a PCI function: the name, part number and serial number that the manufacturer stored in it.

Mirrors: src/util/virpcivpd.c

Source: PCI30 appendix I; PCIE50 6.28
"""

from __future__ import annotations

import errno
import os
import string
from collections.abc import Callable

from pyhostdev.errors import SysfsError
from pyhostdev.util import confined
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import NamedTuple

ADDRESS_END = 0x8000  # PCI30 appendix I: addresses have 15 bits
LARGE = 0x80  # a resource with two bytes of length
TAG_END = 0x0F
TAG_STRING = 0x82
TAG_READ_ONLY = 0x90
TAG_READ_WRITE = 0x91

TEXT_FIELDS = ("EC", "MN", "PN", "SN", "YA")
BINARY_FIELD = "CP"
_KEYWORD = frozenset(string.ascii_uppercase + string.digits)
_PRINTABLE = frozenset(map(chr, range(0x20, 0x7F)))

Fields = dict[str, str]


class PCIVPDResource(NamedTuple):
    """
    The decoded data; the fields of a section are in the order in which they first appear.

    Mirrors: virPCIVPDResource
    """

    name: str | None
    readonly: Fields | None
    readwrite: Fields | None


_KIND_FIELDS = ("PN", "EC", "MN", BINARY_FIELD, "RV", "RW")  # the others can identify the device or its owner


class _MalformedError(Exception):
    """The data breaks a rule of the specification."""


def read_vpd(root: HostRoot, path: str) -> bytes | None:
    """
    Return a function's VPD up to its end tag; None if it has no VPD.

    Only the resources are read: each dword is a slow transaction with the device, and the rest may hang it.

    Raises:
        SysfsError: it exists but this user or the device does not allow it to be read.

    Source: drivers/pci/vpd.c
    """
    data = bytearray()
    try:
        with confined.opened(confined.open_file(root, path)) as fd:
            while len(data) < ADDRESS_END and (piece := _read_resource(fd, len(data))):
                data += piece
                if _tag(piece) == TAG_END:
                    break
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, confined.NOT_A_FILE):
            return None
        raise SysfsError(err.errno or errno.EIO, path, "read the VPD") from err
    return bytes(data)


def _read_resource(fd: int, position: int) -> bytes:
    """Return the resource at a position, header included; less at the end of the file."""
    header = os.pread(fd, 1, position)
    if header and header[0] & LARGE:
        header += os.pread(fd, 2, position + 1)
    return header + os.pread(fd, _length(header), position + len(header)) if header else b""


def _tag(resource: bytes) -> int:
    return resource[0] if resource[0] & LARGE else resource[0] >> 3


def _length(header: bytes) -> int:
    """Return how many bytes follow a header; 0 if the header itself is cut."""
    if not header[0] & LARGE:
        return header[0] & 7
    return int.from_bytes(header[1:3], "little") if len(header) >= 3 else 0


def parse_vpd(data: bytes) -> PCIVPDResource | None:
    """
    Decode the data; None if it is malformed: then libvirt shows nothing of it, either.

    Mirrors: virPCIVPDParse
    """
    try:
        return _parse(data)
    except _MalformedError:
        return None


def _parse(data: bytes) -> PCIVPDResource:
    name: str | None = None
    sections: dict[int, Fields | None] = {}
    position = 0
    while position < ADDRESS_END:
        size = 3 if data[position : position + 1] >= bytes((LARGE,)) else 1
        header = data[position : position + size]
        if len(header) < size:
            raise _MalformedError("no end tag")
        tag, start = _tag(header), position + size
        if tag == TAG_END:
            break
        position = start + _length(header)
        if position > min(len(data), ADDRESS_END):
            raise _MalformedError("a resource is longer than the data")
        if tag == TAG_STRING:
            name = _text(data[start:position])
            if name is None:
                raise _MalformedError("the name is not text")
        elif tag in (TAG_READ_ONLY, TAG_READ_WRITE):
            parse = _read_only if tag == TAG_READ_ONLY else _read_write
            sections[tag] = _merged(sections.get(tag), parse(data, start, position))
    if TAG_READ_ONLY not in sections or position >= ADDRESS_END:
        raise _MalformedError("no read-only section, or no end tag")
    return PCIVPDResource(name, sections[TAG_READ_ONLY], sections.get(TAG_READ_WRITE))


def _merged(before: Fields | None, after: Fields | None) -> Fields | None:
    return after if before is None else before if after is None else {**before, **after}


def _text(value: bytes) -> str | None:
    """Return a value as text without blanks around it and without what follows a zero byte; None if not printable."""
    text = value.partition(b"\0")[0].decode("latin-1").strip(" \t\n\v\f\r")
    return text if _PRINTABLE.issuperset(text) else None


def _read_only(data: bytes, start: int, end: int) -> Fields | None:
    """Return the fields of VPD-R, whose last field RV makes the sum of all bytes up to it zero."""
    fields, keyword, value_at, after = _walk(data, start, end, stop="RV", foreign="RW")
    if keyword != "RV" or after != end or sum(data[: value_at + 1]) & 0xFF:
        raise _MalformedError("the checksum is absent, not last, or wrong")
    return fields


def _read_write(data: bytes, start: int, end: int) -> Fields | None:
    """Return the fields of VPD-W, which may end with RW, the remaining space."""
    fields, _keyword, _value_at, after = _walk(data, start, end, stop="RW", foreign="RV")
    if after != end:
        raise _MalformedError("bytes follow the last field")
    return fields


def _walk(data: bytes, start: int, end: int, *, stop: str, foreign: str) -> tuple[Fields | None, str, int, int]:
    """
    Return the fields of a section, the last keyword, where its value starts, and where the walk ended.

    Args:
        stop: the keyword that ends the section.
        foreign: the keyword that only the other section may have.
    """
    fields: Fields | None = None
    keyword, value_at, position = "", start, start
    while position + 3 <= end and keyword != stop:
        keyword = data[position : position + 2].decode("latin-1")
        value_at = position + 3
        position = value_at + data[position + 2]
        if position > end or keyword == foreign:
            raise _MalformedError("a field is longer than its section, or in the wrong section")
        if keyword == BINARY_FIELD:
            fields = fields or {}
        elif is_text_field(keyword) and (text := _text(data[value_at:position])) is not None:
            fields = {**(fields or {}), keyword: text}
    return fields, keyword, value_at, position


def is_text_field(keyword: str) -> bool:
    """Tell whether a keyword stands for text: a known one, or one of a vendor (Vx) or of the system (Yx)."""
    return keyword in TEXT_FIELDS or (keyword[0] in "VY" and keyword[1] in _KEYWORD)


def without_identity(data: bytes, replacement: Callable[[str], str]) -> bytes:
    """
    Return the data with its serial number and the fields of vendor and system replaced; empty if it is malformed.

    Args:
        replacement: returns a text for a value; as much of its end is used as the field has room for.
    """
    if parse_vpd(data) is None:
        return b""
    out, position = bytearray(data), 0
    while _tag(data[position : position + 1]) != TAG_END:
        start = position + (3 if data[position] & LARGE else 1)
        end = start + _length(data[position:start])
        if data[position] in (TAG_READ_ONLY, TAG_READ_WRITE):
            _replace_fields(out, start, end, replacement)
        position = end
    return bytes(out)


def _replace_fields(out: bytearray, start: int, end: int, replacement: Callable[[str], str]) -> None:
    """Replace the fields of a section in place, and correct its checksum."""
    while start + 3 <= end:
        keyword, value_at = out[start : start + 2].decode("latin-1"), start + 3
        after = value_at + out[start + 2]
        if keyword == "RV":
            out[value_at] = -sum(out[:value_at]) & 0xFF
        elif keyword not in _KIND_FIELDS:
            size = after - value_at
            text = replacement(out[value_at:after].decode("latin-1")).rjust(size, "0")
            out[value_at:after] = text[len(text) - size :].encode("ascii")
        start = after
