# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Reading small files, links and directories of a host; an absent file is distinguished from an unreadable one.

Every path comes from a HostRoot and never leads out of the root; every read is bounded.

Mirrors: src/util/virfile.c
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from pyhostdev.errors import SysfsError
from pyhostdev.util import confined
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import NoReturn

ATTRIBUTE_MAX = 1 << 16  # bytes; a sysfs attribute is at most one page, and Linux has pages of up to 64 KiB
_PIECE = 1 << 16  # bytes of one read: /proc/sys answers ENOMEM from 4 MiB on (proc_sys_call_handler)
LINE_MAX = 1 << 16  # bytes; a mount with all its options takes up to a page
_SHOWN_MAX = 64  # characters of a text shown in a message
_SCSI_CDROM_MAJOR = 11  # kernel include/uapi/linux/major.h
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)  # ENODEV: the device went away after the open


class Bounds(NamedTuple):
    """The limits of a read: bytes and lines of a table, names of a directory."""

    size: int
    lines: int
    names: int


# The kernel's own tables: a full Internet routing table is 1,000,000 lines of 128 bytes; PID_MAX_LIMIT is 4,194,304
LIVE = Bounds(256 << 20, 1 << 22, 1 << 22)
# A root other than /: a distribution's modules.alias has 2 MiB, and a PCI segment has up to 65,536 functions
FOREIGN = Bounds(16 << 20, 1 << 17, 1 << 17)


def bounds_of(root: HostRoot) -> Bounds:
    """Return the limits for a host's files."""
    return LIVE if root.is_live else FOREIGN


def _raise_unless_absent(err: OSError, path: str, doing: str) -> None:
    """Raise the system error, unless it means that the file is absent."""
    if err.errno == confined.NOT_A_FILE:
        raise SysfsError(errno.EINVAL, path, f"{doing} that is not a regular file") from err
    if err.errno not in _ABSENT:
        raise SysfsError(err.errno or errno.EIO, path, doing) from err


def _raise_too_large(path: str, doing: str, limit: int, unit: str) -> NoReturn:
    raise SysfsError(errno.EFBIG, path, f"{doing} of more than {limit} {unit}")


def read_attribute(root: HostRoot, path: str) -> str | None:
    """
    Return a sysfs attribute without its newline; None if the host does not have it.

    Raises:
        SysfsError: it exists but cannot be read, or is larger than a page (EFBIG).
    """
    doing = "read an attribute"
    try:
        with confined.opened(confined.open_file(root, path)) as fd:
            data = os.read(fd, ATTRIBUTE_MAX + 1)  # sysfs returns it in one piece
    except OSError as err:
        _raise_unless_absent(err, path, doing)
        return None
    if len(data) > ATTRIBUTE_MAX:
        _raise_too_large(path, doing, ATTRIBUTE_MAX, "bytes")
    return data.decode("utf-8", "surrogateescape").rstrip("\n")


def read_bytes(root: HostRoot, path: str, limit: int) -> bytes | None:
    """
    Return the contents of a file; None if the host does not have it.

    Raises:
        SysfsError: it exists but cannot be read, or is larger than the limit (EFBIG).
    """
    doing, data = "read a file", bytearray()
    try:
        with confined.opened(confined.open_file(root, path)) as fd:
            while len(data) <= limit and (piece := os.read(fd, min(_PIECE, limit + 1 - len(data)))):
                data += piece
    except OSError as err:
        _raise_unless_absent(err, path, doing)
        return None
    if len(data) > limit:
        _raise_too_large(path, doing, limit, "bytes")
    return bytes(data)


def read_lines(root: HostRoot, path: str) -> Iterator[str]:
    """
    Yield a table's lines without their newlines, one at a time; yield none if the host does not have the table.

    Raises:
        SysfsError: it exists but cannot be read, or is too large (EFBIG).
    """
    bounds, doing, size = bounds_of(root), "read a file", 0
    try:
        with open(confined.open_file(root, path), "rb") as stream:
            for number in range(bounds.lines + 1):
                line = stream.readline(LINE_MAX + 1)
                size += len(line)
                if not line:
                    return
                if number == bounds.lines:
                    _raise_too_large(path, doing, bounds.lines, "lines")
                if size > bounds.size or len(line) > LINE_MAX:
                    what, limit = ("file", bounds.size) if size > bounds.size else ("line", LINE_MAX)
                    _raise_too_large(path, f"read a {what}", limit, "bytes")
                yield line.decode("utf-8", "surrogateescape").rstrip("\n")
    except SysfsError:
        raise
    except OSError as err:
        _raise_unless_absent(err, path, doing)


def read_status(root: HostRoot, path: str) -> os.stat_result | None:
    """
    Return the result of stat(2) for a file; None if the file does not exist.

    Raises:
        SysfsError: the status cannot be read.
    """
    try:
        if root.is_live:
            return os.stat(path)
        with confined.opened(confined.open_path(root, path)) as fd:
            return os.fstat(fd)
    except OSError as err:
        _raise_unless_absent(err, path, "look at a file")
        return None


def is_cdrom(root: HostRoot, path: str) -> bool:
    """
    Tell whether a path is a CD-ROM drive; False also for a path that this user cannot examine, as in libvirt.

    Mirrors: virFileIsCDROM (src/util/virfile.c), by the number of the node instead of a question to the drive
    """
    try:
        status = read_status(root, path)
    except SysfsError:
        return False
    return status is not None and stat.S_ISBLK(status.st_mode) and os.major(status.st_rdev) == _SCSI_CDROM_MAJOR


def is_directory(root: HostRoot, path: str) -> bool:
    """
    Tell whether a path is a directory; ``os.path.isdir`` would also return False for an error.

    Raises:
        SysfsError: the path cannot be examined.
    """
    status = read_status(root, path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def list_names(root: HostRoot, path: str, limit: int | None = None) -> list[str]:
    """
    Return the names in a directory, in no particular order; empty if the directory does not exist.

    Args:
        limit: how many names to accept, if less than for any directory.

    Raises:
        SysfsError: it exists but cannot be read, or has too many names (EFBIG).
    """
    limit, doing = limit or bounds_of(root).names, "list a directory"
    names: list[str] = []
    try:
        with confined.opened(confined.open_directory(root, path)) as fd, os.scandir(fd) as entries:
            names = [entry.name for entry in islice(entries, limit + 1)]
    except OSError as err:
        _raise_unless_absent(err, path, doing)
    if len(names) > limit:
        _raise_too_large(path, doing, limit, "names")
    return names


class Status(NamedTuple):
    """The type and permissions of a file, its inode, and the number of a device node."""

    mode: int
    inode: int
    device: int


def read_statuses(root: HostRoot, paths: Sequence[str], ignored_errnos: Collection[int] = ()) -> list[Status | None]:
    """
    Return for each path what ``read_status`` returns; neighbours that share a directory cost least.

    Args:
        ignored_errnos: errnos that count as absence.

    Raises:
        SysfsError: a status cannot be read.
    """
    facts, _ = _ask(root, confined.STATUS, paths, "look at a file", ignored_errnos)
    return [None if error else Status(mode, inode, device) for inode, device, mode, _, error in facts]


def read_attributes(root: HostRoot, paths: Sequence[str]) -> list[str | None]:
    """
    Return for each path what ``read_attribute`` returns.

    Raises:
        SysfsError: as ``read_attribute``.
    """
    facts, texts = _ask(root, confined.FILE, paths, "read an attribute")
    pairs = zip(facts, texts, strict=True)
    return [None if fact[-1] else text.decode("utf-8", "surrogateescape").rstrip("\n") for fact, text in pairs]


def read_link_names(root: HostRoot, paths: Sequence[str]) -> list[str | None]:
    """
    Return for each path what ``read_link_name`` returns.

    Raises:
        SysfsError: as ``read_link``.
    """
    facts, texts = _ask(root, confined.LINK, paths, "follow a link")
    pairs = zip(facts, texts, strict=True)
    return [None if fact[-1] else os.fsdecode(text).rpartition("/")[2] for fact, text in pairs]


def list_all_names(root: HostRoot, paths: Sequence[str], limit: int | None = None) -> list[list[str]]:
    """
    Return for each directory what ``list_names`` returns; names that start with a dot are left out.

    Raises:
        SysfsError: as ``list_names``.
    """
    limit = limit or bounds_of(root).names
    facts, texts = _ask(root, confined.NAMES, paths, "list a directory", limit=limit)
    pairs = zip(facts, texts, strict=True)
    return [[] if fact[-1] else os.fsdecode(text).split("\0")[:-1] for fact, text in pairs]


def _ask(
    root: HostRoot, kind: str, paths: Sequence[str], doing: str, ignored_errnos: Collection[int] = (), limit: int = 1
) -> tuple[list[confined.Fact], list[bytes]]:
    """Return the answers for the paths; a failure other than absence and ``ignored_errnos`` is raised."""
    facts, texts = confined.ask(root, kind, paths, size_max=ATTRIBUTE_MAX, names_max=limit)
    failed = [(path, -fact[-1]) for path, fact in zip(paths, facts, strict=True) if fact[-1]]
    for path, error in failed:
        if error == errno.EFBIG:
            most = (limit, "names") if kind == confined.NAMES else (ATTRIBUTE_MAX, "bytes")
            _raise_too_large(path, doing, *most)
        if error not in ignored_errnos:
            _raise_unless_absent(OSError(error, os.strerror(error)), path, doing)
    return facts, texts


def read_number(root: HostRoot, path: str) -> int | None:
    """
    Return a sysfs attribute that holds one number, in C notation; None if it is absent.

    Raises:
        SysfsError: it exists but cannot be read, or does not hold a number (EINVAL).
    """
    text = read_attribute(root, path)
    return None if text is None else parse_number(text, path)


def parse_number(text: str, path: str) -> int:
    """
    Return the number in a sysfs attribute.

    Raises:
        SysfsError: it does not hold a number (EINVAL).
    """
    try:
        return int(text, 0)
    except ValueError:
        shown = text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."
        raise SysfsError(errno.EINVAL, path, f"read a number from {shown!a}") from None


def read_link(root: HostRoot, path: str) -> str | None:
    """
    Return a link's target; None if the path does not exist.

    Raises:
        SysfsError: the path is not a link (EINVAL), or cannot be read.
    """
    try:
        if root.is_live:
            return os.readlink(path)
        with confined.opened(confined.open_path(root, path, os.O_NOFOLLOW)) as fd:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            return os.readlink("", dir_fd=fd)
    except OSError as err:
        _raise_unless_absent(err, path, "follow a link")
        return None


def read_link_name(root: HostRoot, path: str) -> str | None:
    """
    Return the last component of a link's target, None if the path does not exist.

    Raises:
        SysfsError: as ``read_link``.
    """
    target = read_link(root, path)
    return None if target is None else os.path.basename(target)
