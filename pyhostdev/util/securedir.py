# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Directories that no other user can exchange: every component of the path is checked, starting at the root.

Below a root given by the caller of a tree, no component may be a link: a link could lead to the state of another host.
A path that the caller named may pass through links owned by root or by the caller, but its last component is not a
link.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from pyhostdev.errors import OperationError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import NamedTuple

_LINKS_MAX = 40  # Source: MAXSYMLINKS (include/linux/namei.h)
_PARENT_MODE = 0o755  # at most; the umask may remove bits
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ON_THE_WAY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def refused(message: str) -> OperationError:
    """Return the error for a directory that cannot be used."""
    return OperationError(message, reason="state-directory")


def open_directory(path: str, *, below: str | None = None, mode: int | None = None) -> int | None:
    """
    Open a directory that no other user can replace by another one.

    Args:
        path: an absolute path.
        below: the root that the path begins with; None if the path is the caller's own.
        mode: create a missing directory with exactly this mode, and missing parents with 0755 at most.

    Returns:
        A descriptor, None if the directory is missing and not to be created.

    Raises:
        OperationError: a component is a link, or another user could exchange a directory of the path.
        OSError: the system call failed.
    """
    with _CheckedPath(path, below, mode) as way:
        return way.open()


def make_directory(path: str, mode: int = 0o755, *, below: str | None = None) -> None:
    """
    Create a directory with this mode if it is missing, and missing parents with 0755 at most, whatever the umask.

    Raises:
        OperationError: a component is a link, or another user could exchange a directory of the path.
        OSError: the system call failed.
    """
    fd = open_directory(os.path.abspath(path), below=below, mode=mode)
    assert fd is not None
    os.close(fd)


def is_trusted_file(path: str) -> bool:
    """Tell whether a file is regular and only root or the current user could have put it there or can write to it."""
    try:
        real = os.path.realpath(path, strict=True)
        top = open_directory(os.path.dirname(real))
    except (OperationError, OSError):
        return False
    if top is None:
        return False
    try:
        above, own = os.fstat(top), os.stat(os.path.basename(real), dir_fd=top, follow_symlinks=False)
    finally:
        os.close(top)
    trust = _Trust.of(os.stat(HostRoot("/").path))
    ours = own.st_uid in trust.users and not own.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    return ours and stat.S_ISREG(own.st_mode) and trust.objection(above) is None


class _Trust(NamedTuple):
    """The users and groups whose directories and links are trusted; a user's private group has the user's number."""

    users: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def of(cls, top: os.stat_result) -> _Trust:
        """Trust root, the current user, and the owner of the tree; in a user namespace root may have another number."""
        root = os.stat(HostRoot("/").path)
        user = os.geteuid()
        return cls(frozenset((0, user, root.st_uid, top.st_uid)), frozenset((0, user)))

    def objection(self, status: os.stat_result) -> str | None:
        """Return why another user could exchange the contents of a directory, None if no user could."""
        if status.st_uid not in self.users:
            return f"belongs to another user (uid {status.st_uid})"
        writable = status.st_mode & (stat.S_IWOTH if status.st_gid in self.groups else stat.S_IWOTH | stat.S_IWGRP)
        return "can be written by others" if writable and not status.st_mode & stat.S_ISVTX else None


class _CheckedPath:
    """The path from a root to one directory; ``shown`` is the part walked so far."""

    def __init__(self, path: str, below: str | None, mode: int | None) -> None:
        self.path = path
        self.follows = below is None
        self.mode = mode
        self.shown = os.path.join(below or HostRoot("/").path, "")
        self.todo = [name for name in os.path.relpath(path, self.shown).split("/") if name != "."][::-1]
        if ".." in self.todo:
            raise refused(f"'{path}' is not below '{below}', and cannot keep state")
        self.links = 0
        self.fd = os.open(self.shown, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.trust = _Trust.of(os.fstat(self.fd))
        self.objection: str | None = None

    def __enter__(self) -> _CheckedPath:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def open(self) -> int | None:
        """Walk the whole path; a missing directory that is not to be created may be below any kind of directory."""
        while len(self.todo) > 1:
            self._check_current()
            if not self._enter(self.todo.pop()):
                return None
        self._check_current()
        fd = self._open_last(self.todo.pop() if self.todo else ".")
        if fd is not None and self.objection is not None:
            os.close(fd)
            raise refused(self.objection)
        return fd

    def _check_current(self) -> None:
        """Note what is wrong with the current directory; refuse to create anything in such a directory."""
        objection = self.trust.objection(os.fstat(self.fd))
        if objection is not None and self.objection is None:
            self.objection = f"Directory '{self.shown}' {objection}, so '{self.path}' cannot keep state"
        if self.objection is not None and self.mode is not None:
            raise refused(self.objection)

    def _enter(self, name: str) -> bool:
        """Enter one component; return False if it is missing and not to be created."""
        try:
            fd = self._open(name, _ON_THE_WAY, _PARENT_MODE)
        except NotADirectoryError:
            self._follow(name)
            return True
        if fd is None:
            return False
        self._go(fd, os.path.join(self.shown, name))
        return True

    def _go(self, fd: int, shown: str) -> None:
        os.close(self.fd)
        self.fd, self.shown = fd, os.path.normpath(shown)

    def _open(self, name: str, flags: int, mode: int) -> int | None:
        try:
            return os.open(name, flags, dir_fd=self.fd)
        except FileNotFoundError:
            if self.mode is None:
                return None
        with suppress(FileExistsError):  # another process created it meanwhile
            os.mkdir(name, mode, dir_fd=self.fd)
            if not self.todo:
                os.chmod(name, mode, dir_fd=self.fd)  # the umask may have removed bits
        return os.open(name, flags, dir_fd=self.fd)

    def _open_last(self, name: str) -> int | None:
        try:
            return self._open(name, _DIRECTORY, self.mode or 0)
        except NotADirectoryError:
            self._read_link(name)
            raise refused(f"'{self.path}' is a link, and cannot keep state") from None

    def _read_link(self, name: str) -> str:
        """
        Return a link's target.

        Raises:
            NotADirectoryError: it is not a link.
        """
        try:
            return os.readlink(name, dir_fd=self.fd)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path) from None

    def _follow(self, name: str) -> None:
        target, shown = self._read_link(name), os.path.join(self.shown, name)
        if not self.follows:
            raise refused(f"'{shown}' is a link, so '{self.path}' cannot keep state")
        owner = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_uid
        if owner not in self.trust.users:
            raise refused(f"'{shown}' is a link of another user (uid {owner}), so '{self.path}' cannot keep state")
        self.links += 1
        if self.links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.path)
        if target.startswith("/"):
            top = HostRoot("/").path
            self._go(os.open(top, _ON_THE_WAY), top)
        self.todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
