# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Open files below a root whose contents may come from an untrusted source.

Below a root other than "/", no link leads out of the root: an absolute link starts at the root. Only regular files and
directories are opened for reading, so no FIFO can block and no device is triggered by an open.

Source: openat2(2), RESOLVE_IN_ROOT; csrc/pciroot.c walks the path itself when the kernel lacks it
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence

from pyhostdev.errors import InternalError
from pyhostdev.util import _pciscan as _c  # type: ignore[attr-defined]
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import Any

NOT_A_FILE = errno.EMEDIUMTYPE  # reported for devices, FIFOs and sockets; a directory gives EISDIR


# memory that is not cleared: the C code fills it, and only what it filled is read
uncleared = _c.ffi.new_allocator(should_clear_after_alloc=False)
_FACT = struct.Struct("=QQIIi4x")  # struct phd_answer of csrc/pciscan.cdef.h
_ROOM = 1 << 18  # bytes of answers at once
STATUS, FILE, LINK, NAMES = "sfld"  # kinds of questions: enum phd_ask of csrc/pciscan.cdef.h

Fact = tuple[int, int, int, int, int]


def root_and_path(root: HostRoot, path: str) -> tuple[bytes, bytes]:
    """
    Return the root and the path below it as the C code expects them; the live root is empty.

    Raises:
        InternalError: the path is not below the root.
    """
    if root.is_live:
        return b"", os.fsencode(path)
    if path != root.path and not path.startswith(f"{root.path}/"):
        raise InternalError(f"'{path}' is not below '{root.path}'")
    return os.fsencode(root.path), os.fsencode(path[len(root.path) + 1 :])


def open_path(root: HostRoot, path: str, flags: int = 0) -> int:
    """
    Return an O_PATH descriptor: it refers to the file but does not open it.

    Args:
        flags: O_NOFOLLOW not to follow a final link, O_DIRECTORY to require a directory.

    Raises:
        OSError: the kernel's error.
    """
    return _result(_c.lib.phd_open_below(*_arguments(root, path), os.O_PATH | flags), path)


def open_directory(root: HostRoot, path: str) -> int:
    """
    Return a descriptor for listing a directory.

    Raises:
        OSError: the kernel's error.
    """
    return _result(_c.lib.phd_open_below(*_arguments(root, path), os.O_RDONLY | os.O_DIRECTORY), path)


def open_file(root: HostRoot, path: str) -> int:
    """
    Return a descriptor for reading a regular file.

    Raises:
        OSError: the kernel's error; EISDIR for a directory, NOT_A_FILE for any other non-regular file.
    """
    return _result(_c.lib.phd_open_file(*_arguments(root, path)), path)


def ask(
    root: HostRoot, kind: str, paths: Sequence[str], *, size_max: int, names_max: int
) -> tuple[list[Fact], list[bytes]]:
    """
    Ask one question about many paths at once; neighbours in the list that share a directory cost least.

    Args:
        kind: STATUS, FILE, LINK or NAMES.
        size_max: bytes of a file, more is EFBIG.
        names_max: names in a directory, more is EFBIG.

    Returns:
        A fact for each path: inode, number of a device node, mode, size of the text, and 0 or a negative errno; and
        the texts: contents of files, targets of links, or the names in a directory, each followed by a NUL.

    Raises:
        OSError: a path has a NUL.
    """
    facts: list[Fact] = []
    texts: list[bytes] = []
    bounds = _c.ffi.new("struct phd_bounds *", (size_max, names_max))
    room = max(_ROOM, 2 * size_max)
    top, joined = _all_below(root, paths)
    while len(facts) < len(paths):
        left = len(paths) - len(facts)
        answers, out = uncleared("struct phd_answer[]", left), uncleared("char[]", room)
        rest = joined if not facts else joined.split(b"\0", len(facts))[-1]
        count = _c.lib.phd_ask(top, kind.encode(), rest, left, bounds, answers, out, room)
        new = list(_FACT.iter_unpack(_c.ffi.buffer(answers, _FACT.size * count)))
        if not count:  # one answer that fills the room
            room *= 2
            continue
        facts += new
        if kind != STATUS:
            texts += _texts(new, _c.ffi.buffer(out))
    return facts, texts


def _all_below(root: HostRoot, paths: Sequence[str]) -> tuple[bytes, bytes]:
    """Return the root and the paths below it, each followed by a NUL, as the C code expects them."""
    joined = "\0".join(("", *paths, ""))
    if joined.count("\0") > len(paths) + 1:
        path = next(path for path in paths if "\0" in path)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if root.is_live:
        return b"", os.fsencode(joined[1:])
    top = f"\0{root.path}/"
    if joined.count(top) < len(paths):
        path = next(path for path in paths if not path.startswith(top[1:]))
        raise InternalError(f"'{path}' is not below '{root.path}'")
    return os.fsencode(root.path), os.fsencode(joined.replace(top, "\0")[1:])


def _texts(facts: list[Fact], texts: Any) -> Iterator[bytes]:
    at = 0
    for _, _, _, size, _ in facts:
        yield texts[at : at + size]
        at += size


class opened:  # noqa: N801 - read as a verb; loading contextlib costs more than the rest of this module
    """Close a descriptor at the end of the block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _arguments(root: HostRoot, path: str) -> tuple[bytes, bytes]:
    found = root_and_path(root, path)
    if b"\0" in found[1]:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return found


def _result(ret: int, path: str) -> int:
    if ret < 0:
        raise OSError(-ret, os.strerror(-ret), path)
    return ret


def is_sysfs(fd: int) -> bool:
    """Tell whether an open file belongs to sysfs."""
    return bool(_c.lib.phd_is_sysfs(fd) == 1)
