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
from collections.abc import Iterator
from contextlib import contextmanager

from pyhostdev.errors import InternalError
from pyhostdev.util import _pciscan as _c  # type: ignore[attr-defined]
from pyhostdev.util.hostroot import HostRoot

NOT_A_FILE = errno.EMEDIUMTYPE  # reported for devices, FIFOs and sockets; a directory gives EISDIR


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


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
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


def is_sysfs(fd: int) -> bool:
    """Tell whether an open file belongs to sysfs."""
    return bool(_c.lib.phd_is_sysfs(fd) == 1)
