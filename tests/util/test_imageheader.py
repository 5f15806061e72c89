# SPDX-License-Identifier: LGPL-2.1-or-later
"""The formats of disk images, from their first bytes."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from pyhostdev.util.imageheader import HEADER_BYTES, Backing, backing_of, format_error, is_locked, read_header


def qcow2(backing: bytes = b"", kind: bytes = b"", version: int = 3) -> bytes:
    """Return the header of a qcow2 image, as QEMU's docs/interop/qcow2.rst describes it."""
    length = 104 if version > 2 else 72
    extension = struct.pack(">II", 0xE2792ACA, len(kind)) + kind + bytes(-len(kind) % 8) if kind else b""
    other = struct.pack(">II", 0x6803F857, 5) + b"names" + bytes(3)
    end = length + len(other) + len(extension) + 8
    head = struct.pack(">4sIQI", b"QFI\xfb", version, end if backing else 0, len(backing)).ljust(100, b"\0")
    head += struct.pack(">I", length)
    return head[:length] + other + extension + bytes(8) + backing


@pytest.mark.parametrize("version", [2, 3])
def test_the_name_and_the_format_of_the_file_below(version: int) -> None:
    """The extension with the format stands behind others; an image need not give it."""
    assert Backing("base", "raw") == backing_of(qcow2(b"base", b"raw", version))
    assert Backing("base", None) == backing_of(qcow2(b"base", version=version))
    assert backing_of(qcow2(version=version)) is None


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"QFI\xfb",
        b"QFI\xfb\0\0\0\3",
        qcow2(b"base")[:-1],
        qcow2(b"ba\0se"),
        qcow2(b"x" * 1024),
        b"\0" * 200,
    ],
)
def test_a_damaged_header_names_nothing(header: bytes) -> None:
    """A name that is cut, too long or not there is unknown."""
    assert backing_of(header) is None


def test_every_size_of_an_extension_ends() -> None:
    """An extension that claims more than the file has ends the search."""
    damaged = qcow2(b"base", b"raw").replace(struct.pack(">II", 0x6803F857, 5), b"\xff" * 8)
    assert Backing("base", None) == backing_of(damaged)


@pytest.mark.parametrize(
    ("kind", "header", "error"),
    [
        ("qcow2", qcow2(), None),
        ("qcow2", qcow2(version=2), None),
        ("qcow2", b"", "is not a qcow2 image"),
        ("qcow2", b"QFI\xfb", "is an image of version 0, which QEMU's qcow2 does not read"),
        ("qcow2", qcow2(version=4), "is an image of version 4, which QEMU's qcow2 does not read"),
        ("qcow", qcow2(), "is an image of version 3, which QEMU's qcow does not read"),
        ("qcow", qcow2(version=1), None),
        ("qed", b"QED\0", None),
        ("qed", b"QEMU", "is not a qed image"),
        ("vdi", bytes(64) + b"\x7f\x10\xda\xbe", None),
        ("vdi", b"\x7f\x10\xda\xbe", "is not a vdi image"),
        ("raw", qcow2(), None),
        ("vmdk", b"", None),
    ],
)
def test_a_format_by_its_magic_number(kind: str, header: bytes, error: str | None) -> None:
    """A format without one magic number may be anything, and raw is."""
    assert error == format_error(header, kind)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    """A FIFO would wait for its other end, and a device can act when it is opened."""
    (tmp_path / "image").write_bytes(b"x" * (HEADER_BYTES + 1))
    (tmp_path / "link").symlink_to("image")
    os.mkfifo(tmp_path / "fifo")
    assert b"x" * HEADER_BYTES == read_header(str(tmp_path / "link"))
    assert [None] * 4 == [read_header(path) for path in (f"{tmp_path}/fifo", "/dev/zero", f"{tmp_path}/no", "/")]


@pytest.mark.parametrize(
    ("locked", "writes", "shares", "expected"),
    [
        ((100, 101, 201), True, False, True),  # a guest that writes alone
        ((100, 101, 201), True, True, True),
        ((100, 101, 201), False, False, True),
        ((100, 101, 201), False, True, False),
        ((100, 201), True, False, True),  # one that reads, and lets no other write
        ((100, 201), False, False, False),
        ((100, 101), True, False, True),  # one that writes and shares
        ((100, 101), True, True, False),
        ((), True, False, False),
    ],
)
def test_locks_of_qemu(locked: tuple[int, ...], writes: bool, shares: bool, expected: bool, tmp_path: Path) -> None:
    """What a QEMU locks was measured; the test takes no lock."""
    path = tmp_path / "image"
    path.touch()
    with path.open("rb") as other:
        for at in locked:
            lock = struct.pack("=hhxxxxqqixxxx", fcntl.F_RDLCK, os.SEEK_SET, at, 1, 0)
            fcntl.fcntl(other, 37, lock)  # F_OFD_SETLK
        assert expected == is_locked(str(path), writes=writes, shares=shares)
    assert not is_locked(str(path), writes=True, shares=False)
    assert not is_locked(str(tmp_path / "gone"), writes=True, shares=False)
