# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A directory of state that survives its writer: opened once, each file complete or absent.

It must belong to the current user or to root, and no other user may be able to write into it or to exchange it. Only
regular files of a bounded size are read from it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from pyhostdev.errors import SysfsError
from pyhostdev.util.securedir import make_directory, open_directory, refused

__all__ = ["StateDir", "ignoring", "make_directory"]

FILE_MAX = 16384  # bytes; a record has a few hundred
ENTRIES_MAX = 100_000  # records, locks and files of dead writers; a host has some thousand functions

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOCK = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENOTDIR)  # from opening a link, a pipe or a socket


class StateDir:
    """
    One state directory; reading creates nothing, the first write creates it with mode 0711.

    QEMU's user passes through it on the way to its guest's key; no other user can list it, and its files are 0600.

    ``step`` is called before each operation on the directory; tests inject faults there.

    Args:
        below: the root that contains it, below which no component may be a link; None if the caller named the
            directory itself, whose parents may then be links owned by root or by the caller.
    """

    def __init__(self, path: str, *, below: str | None = None) -> None:
        self.path = os.path.abspath(path)
        self.below = below
        self._fd: int | None = None
        self._pid = 0

    def __del__(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def step(self, operation: str, name: str) -> None:
        """Called before each operation and after each change; does nothing here."""

    @contextmanager
    def _doing(self, doing: str, name: str = "") -> Iterator[None]:
        """Turn a system error into an error that names the operation."""
        try:
            yield
        except SysfsError:
            raise
        except OSError as err:
            path = os.path.join(self.path, name) if name else self.path
            raise SysfsError(err.errno or errno.EIO, path, doing) from err

    def open(self, *, create: bool = False) -> int | None:
        """
        Return the directory's descriptor, None if it does not exist and is not to be created.

        Raises:
            OperationError: another user could write into it or exchange it, or its path contains a link.
            SysfsError: it cannot be created or opened.
        """
        with self._doing("open the state directory"):
            if self._fd is not None and self._pid == os.getpid() and os.fstat(self._fd).st_nlink:
                return self._fd
            if create:
                self._make()
            return self._open()

    def _open(self) -> int | None:
        self.step("opendir", self.path)
        fd = open_directory(self.path, below=self.below)
        if fd is None:
            return None
        try:
            self._check(fd)
        except BaseException:
            os.close(fd)
            raise
        stale, self._fd, self._pid = self._fd, fd, os.getpid()
        if stale is not None:
            os.close(stale)
        return fd

    def _make(self) -> None:
        self.step("mkdir", self.path)
        make_directory(self.path, 0o711, below=self.below)

    def _check(self, fd: int) -> None:
        facts = os.fstat(fd)
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
            raise refused(f"State directory '{self.path}' can be written by others")

    def _descriptor(self) -> int:
        fd = self.open(create=True)
        if fd is None:
            raise SysfsError(errno.ENOENT, self.path, "create the state directory")
        return fd

    def names(self) -> list[str]:
        """
        Return the names of all entries, sorted; empty if there is no directory.

        Raises:
            OperationError: as ``open``, or it has too many entries.
            SysfsError: as ``open``, or it cannot be read.
        """
        fd = self.open()
        if fd is None:
            return []
        with self._doing("list the state directory"):
            self.step("list", self.path)
            with os.scandir(fd) as entries:
                names = [entry.name for entry in islice(entries, ENTRIES_MAX + 1)]
        if len(names) > ENTRIES_MAX:
            raise refused(f"State directory '{self.path}' has more than {ENTRIES_MAX} entries")
        return sorted(names)

    def read(self, name: str, *, limit: int = FILE_MAX) -> bytes | None:
        """
        Return a file's bytes, None if the file is gone.

        Args:
            limit: bytes that the file may have.

        Raises:
            SysfsError: it exists but cannot be read now.
            ValueError: it is not a regular file of a trusted user; the text gives the reason.
        """
        top = self.open()
        if top is None:
            return None
        with self._doing("read a record", name):
            self.step("open", name)
            try:
                _check_ordinary(os.stat(name, dir_fd=top, follow_symlinks=False))  # opening a device may have effects
                fd = os.open(name, _OLD, dir_fd=top)
            except FileNotFoundError:
                return None
            except OSError as err:
                if err.errno in _NO_FILE:
                    raise ValueError(f"it is not an ordinary file ({err.strerror})") from None
                raise
            try:
                return self._read_whole(fd, name, limit)
            finally:
                os.close(fd)

    def _read_whole(self, fd: int, name: str, limit: int) -> bytes:
        _check_ordinary(os.fstat(fd))
        self.step("read", name)
        data = os.read(fd, limit + 1)
        if len(data) > limit:
            raise ValueError(f"it has more than {limit} bytes")
        return data

    def replace(self, name: str, data: bytes) -> None:
        """
        Replace a file, durably and as a whole.

        Raises:
            SysfsError: the directory or the disk refuses; the earlier file remains. If only the final flush failed,
                the new file is there, but may not be durable.
        """
        top = self._descriptor()
        temporary = f".{name}.{os.urandom(8).hex()}"
        with self._doing("write a record", name):
            try:
                self._write_new(top, temporary, data)
                self.step("rename", name)
                os.rename(temporary, name, src_dir_fd=top, dst_dir_fd=top)
            except OSError:
                with ignoring(OSError):
                    os.unlink(temporary, dir_fd=top)
                raise
            self._flush(top, name)

    def _write_new(self, top: int, name: str, data: bytes) -> None:
        self.step("create", name)
        fd = os.open(name, _NEW, 0o600, dir_fd=top)
        try:
            self.step("write", name)
            self._put(fd, data)
            self.step("fsync", name)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _put(self, fd: int, data: bytes) -> None:
        """
        Write a file's whole content.

        Raises:
            OSError: ENOSPC when only a part fits.
        """
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, "short write")

    def _flush(self, top: int, name: str) -> None:
        self.step("fsync", ".")
        os.fsync(top)
        self.step("done", name)

    def remove(self, name: str) -> None:
        """
        Remove a file; do nothing if it does not exist.

        The removal need not be durable: a file that reappears after a power loss belongs to an earlier boot.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self.open()
        if top is None:
            return
        with self._doing("remove a record", name):
            self.step("unlink", name)
            with ignoring(FileNotFoundError):
                os.unlink(name, dir_fd=top)
            self.step("done", name)

    def sweep(self, name: str) -> None:
        """
        Remove temporary files that dead writers left for a file; the caller keeps other writers away.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self.open()
        for left in self.names() if top is not None else ():
            if left.startswith(f".{name}."):
                with self._doing("remove what is left of a record", left):
                    self.step("unlink", left)
                    with ignoring(FileNotFoundError):
                        os.unlink(left, dir_fd=top)

    def rename(self, name: str, other: str) -> None:
        """
        Rename a file; do nothing if it does not exist.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self._descriptor()
        with self._doing("set a record aside", name), ignoring(FileNotFoundError):
            self.step("rename", name)
            os.rename(name, other, src_dir_fd=top, dst_dir_fd=top)

    def open_lock(self, name: str, *, is_written: bool = True) -> int:
        """
        Return a descriptor of a lock file, which is created if missing.

        Args:
            is_written: False for a descriptor that a guest inherits: with it, the guest could fill the file system.

        Raises:
            OperationError: the path is not a regular file of a trusted user.
            SysfsError: the directory refuses.
        """
        top = self._descriptor()
        with self._doing("open a lock", name):
            self.step("open", name)
            try:
                return _open_lock(name, top, _LOCK | (os.O_RDWR if is_written else os.O_RDONLY))
            except ValueError as err:
                raise refused(f"'{os.path.join(self.path, name)}' cannot be a lock: {err}") from None


def _open_lock(name: str, top: int, flags: int) -> int:
    with ignoring(FileNotFoundError):
        _check_ordinary(os.stat(name, dir_fd=top, follow_symlinks=False))
    fd = os.open(name, flags, 0o600, dir_fd=top)
    try:
        _check_ordinary(os.fstat(fd))
    except ValueError:
        os.close(fd)
        raise
    return fd


def _check_ordinary(facts: os.stat_result) -> None:
    """
    Accept a regular file of a trusted user that has no other name.

    Raises:
        ValueError: it is something else; the text gives the reason.
    """
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:  # st_nlink 0: replaced since it was opened
        raise ValueError("it is not an ordinary file")
    if facts.st_uid not in (0, os.geteuid()):
        raise ValueError("it belongs to another user")


@contextmanager
def ignoring(error: type[OSError]) -> Iterator[None]:
    """Ignore one kind of OSError: there is nothing to do then."""
    try:
        yield
    except error:
        return
