# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The formats of disk images, as the first bytes of a file show them, and the locks by which QEMU protects an image.

Source: QEMU docs/interop/qcow2.rst, qed_spec.rst; block/vdi.c (the magic number), block/file-posix.c (the locks)
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from contextlib import contextmanager

from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES = 4096  # of a file; a backing file named further behind counts as unknown

_QCOW = b"QFI\xfb"
_MAGIC = {"qcow2": (0, _QCOW), "qcow": (0, _QCOW), "qed": (0, b"QED\0"), "vdi": (0x40, b"\x7f\x10\xda\xbe")}
_VERSIONS = {"qcow2": (2, 3), "qcow": (1,)}
_VERSION = struct.Struct(">4xI")
_QCOW2 = struct.Struct(">8xQI")  # place and size of the backing file's name
_V2_LENGTH, _LENGTH_AT = 72, 100  # where the extensions of version 2 begin; where version 3 says so
_EXTENSION = struct.Struct(">II")  # type and size
_BACKING_FORMAT = 0xE2792ACA
_NAME_MAX = 1023

_F_OFD_GETLK = 36  # linux/fcntl.h; the C library need not have it
_FLOCK = struct.Struct("=hhxxxxqqixxxx")  # of 64-bit machines
_WRITES, _WRITES_ALONE = 101, 201  # bytes that a user of an image locks, from RAW_LOCK_PERM_BASE and _SHARED_BASE


class Backing(NamedTuple):
    """The name of the file below an image, and its format; None if the image does not give the format."""

    name: str
    format: str | None


def read_header(path: str) -> bytes | None:
    """
    Return the first bytes of a regular file, through links; None for any other file or one that cannot be read.

    Nothing but a regular file is opened, because opening a device or a FIFO can act or wait.
    """
    try:
        with _regular(path) as fd:
            return None if fd is None else os.pread(fd, HEADER_BYTES, 0)
    except OSError:
        return None


def is_locked(path: str, *, writes: bool, shares: bool) -> bool:
    """
    Return True if another process uses an image in a way that excludes this one; False if that is not known.

    Args:
        writes: the image will be written.
        shares: others may write it at the same time.
    """
    try:
        with _regular(path) as fd:
            return fd is not None and (
                (writes and _has_lock(fd, _WRITES_ALONE)) or (not shares and _has_lock(fd, _WRITES))
            )
    except OSError:
        return False


@contextmanager
def _regular(path: str) -> Iterator[int | None]:
    """Open a regular file for reading, through links; yield None for another file."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            yield None
            return
        fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)
    try:
        yield fd
    finally:
        os.close(fd)


def _has_lock(fd: int, at: int) -> bool:
    """Return True if another open file has locked a byte; no lock is taken."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, wanted))[0]
    return kind != fcntl.F_UNLCK


def format_error(header: bytes, kind: str) -> str | None:
    """Return why a file with this header is not an image of the format, to follow its name; None if it may be one."""
    at, magic = _MAGIC.get(kind, (0, b""))
    if header[at : at + len(magic)] != magic:
        return f"is not a {kind} image"
    (version,) = _VERSION.unpack_from(header.ljust(_VERSION.size, b"\0"))
    if version not in _VERSIONS.get(kind, (version,)):
        return f"is an image of version {version}, which QEMU's {kind} does not read"
    return None


def backing_of(header: bytes) -> Backing | None:
    """Return the file below a qcow2 image; None if it has no such file, or if it is another image."""
    if format_error(header, "qcow2") is not None or len(header) < _QCOW2.size:
        return None
    offset, size = _QCOW2.unpack_from(header)
    name = header[offset : offset + size]
    if offset == 0 or not 0 < size <= _NAME_MAX or len(name) < size or b"\0" in name:
        return None
    return Backing(os.fsdecode(name), _backing_format(header[:offset]))


def _backing_format(header: bytes) -> str | None:
    """Return the format that an extension of a qcow2 header gives; a type of 0 ends the extensions."""
    at = _V2_LENGTH
    if _VERSION.unpack_from(header)[0] > 2 and len(header) >= _LENGTH_AT + 4:
        at = int.from_bytes(header[_LENGTH_AT : _LENGTH_AT + 4], "big")
    while at + _EXTENSION.size <= len(header):
        kind, size = _EXTENSION.unpack_from(header, at)
        at += _EXTENSION.size
        if kind == 0:
            return None
        if kind == _BACKING_FORMAT:
            return header[at : at + size].decode("ascii", "replace")
        at += -(-size // 8) * 8
    return None
