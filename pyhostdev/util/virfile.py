# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Reading small files, links and directories of a host, with "it is not there" apart from "nobody can tell".

Mirrors: src/util/virfile.c
"""

from __future__ import annotations

import errno
import os
import stat

from pyhostdev.errors import SysfsError

_ATTRIBUTE_MAX = 4096  # a sysfs attribute is at most one page
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)  # ENODEV: the device went away after the open


def _raise_unless_absent(err: OSError, path: str, doing: str) -> None:
    """Raise what the system answered, unless it says that there is no such thing: nobody knows, and "no" is a guess."""
    if err.errno not in _ABSENT:
        raise SysfsError(err.errno or errno.EIO, path, doing) from err


def read_attribute(path: str) -> str | None:
    """
    Return a sysfs attribute without its newline; None when the host does not have it.

    Raises:
        SysfsError: it is there and cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _ATTRIBUTE_MAX).decode("utf-8", "surrogateescape").rstrip("\n")
        finally:
            os.close(fd)
    except OSError as err:
        _raise_unless_absent(err, path, "read an attribute")
        return None


def read_text(path: str) -> str | None:
    """
    Return a file's text; None when the host does not have it.

    Raises:
        SysfsError: it is there and cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError as err:
        _raise_unless_absent(err, path, "read a file")
        return None


def read_status(path: str) -> os.stat_result | None:
    """
    Return what stat(2) says of a file; None when there is none.

    Raises:
        SysfsError: nobody can say.
    """
    try:
        return os.stat(path)
    except OSError as err:
        _raise_unless_absent(err, path, "look at a file")
        return None


def is_directory(path: str) -> bool:
    """
    Tell whether there is a directory; ``os.path.isdir`` says no to an error, too.

    Raises:
        SysfsError: nobody can say.
    """
    status = read_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def list_names(path: str) -> list[str]:
    """
    Return the names in a directory, in no order; none when there is no directory.

    Raises:
        SysfsError: it is there and cannot be read.
    """
    try:
        return os.listdir(path)
    except OSError as err:
        _raise_unless_absent(err, path, "list a directory")
        return []


def read_number(path: str) -> int | None:
    """
    Return a sysfs attribute that holds one number, in C notation; None when it is absent.

    Raises:
        SysfsError: it is there and cannot be read, or holds no number (EINVAL).
    """
    text = read_attribute(path)
    if text is None:
        return None
    try:
        return int(text, 0)
    except ValueError:
        raise SysfsError(errno.EINVAL, path, f"read a number from '{text!a}'") from None


def read_link(path: str) -> str | None:
    """
    Return a link's target; None when there is no link.

    Raises:
        SysfsError: the entry is there and is no link (EINVAL), or cannot be read.
    """
    try:
        return os.readlink(path)
    except OSError as err:
        _raise_unless_absent(err, path, "follow a link")
        return None


def read_link_name(path: str) -> str | None:
    """
    Return the last component of a link's target, None when there is no link.

    Raises:
        SysfsError: as ``read_link``.
    """
    target = read_link(path)
    return None if target is None else os.path.basename(target)
