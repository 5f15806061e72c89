# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Opening below a root whose links, files and devices may have been made by a stranger.

Below a root that is not "/" no link leads out: an absolute one starts at the root. Nothing is opened for reading but
a regular file or a directory, so no FIFO lets us wait and no device does what it does when it is opened.

Source: openat2(2), RESOLVE_IN_ROOT; csrc/pciroot.c walks by itself where the kernel does not have it
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyhostdev.errors import InternalError
from pyhostdev.util import _pciscan as _c  # type: ignore[attr-defined]
from pyhostdev.util.hostroot import HostRoot

NOT_A_FILE = errno.EMEDIUMTYPE  # the answer for devices, FIFOs and sockets; a directory is EISDIR


def root_and_path(root: HostRoot, path: str) -> tuple[bytes, bytes]:
    """
    Return the root and a path below it as the C side wants them; the live root is empty.

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
    Return a descriptor that stands for what is there, and has not opened it.

    Args:
        flags: O_NOFOLLOW to stop at a link at the end, O_DIRECTORY to want a directory.

    Raises:
        OSError: the kernel's answer.
    """
    return _result(_c.lib.phd_open_below(*_arguments(root, path), os.O_PATH | flags), path)


def open_directory(root: HostRoot, path: str) -> int:
    """
    Return a descriptor to list a directory with.

    Raises:
        OSError: the kernel's answer.
    """
    return _result(_c.lib.phd_open_below(*_arguments(root, path), os.O_RDONLY | os.O_DIRECTORY), path)


def open_file(root: HostRoot, path: str) -> int:
    """
    Return a descriptor to read a regular file with.

    Raises:
        OSError: the kernel's answer; EISDIR for a directory, NOT_A_FILE for anything else than a file.
    """
    return _result(_c.lib.phd_open_file(*_arguments(root, path)), path)


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close a descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def _arguments(root: HostRoot, path: str) -> tuple[bytes, bytes]:
    found = root_and_path(root, path)
    if b"\0" in found[1]:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return found


def _result(ret: int, path: str) -> int:
    if ret < 0:
        raise OSError(-ret, os.strerror(-ret), path)
    return ret
