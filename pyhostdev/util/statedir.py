# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A directory of state that survives its writer: opened once, never through a link, files whole or not at all.

It must be ours (or root's) and nobody else's to write into.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from pyhostdev.errors import OperationError, SysfsError

FILE_MAX = 16384  # bytes; a record has a few hundred

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENOTDIR)  # what a link, a pipe or a socket in its place answers


class StateDir:
    """
    One state directory; reading creates nothing, the first write makes it, mode 0700.

    ``step`` is called before each operation on the directory; tests make faults there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = None
        self._pid = 0

    def __del__(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def step(self, operation: str, name: str) -> None:
        """Called before each operation and after each change; does nothing."""

    @contextmanager
    def _doing(self, doing: str, name: str = "") -> Iterator[None]:
        """Turn what the system refuses into an error that says what was tried."""
        try:
            yield
        except SysfsError:
            raise
        except OSError as err:
            path = os.path.join(self.path, name) if name else self.path
            raise SysfsError(err.errno or errno.EIO, path, doing) from err

    def open(self, *, create: bool = False) -> int | None:
        """
        Return the directory's descriptor, None when there is no directory and none is to be made.

        Raises:
            OperationError: others could write into it.
            SysfsError: it cannot be made or opened, or a link stands in its place.
        """
        with self._doing("open the state directory"):
            if self._fd is not None and self._pid == os.getpid() and os.fstat(self._fd).st_nlink:
                return self._fd
            if create:
                self._make()
            return self._open()

    def _open(self) -> int | None:
        self.step("opendir", self.path)
        try:
            fd = os.open(self.path, _DIRECTORY)
        except FileNotFoundError:
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
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with tolerated(FileExistsError):
            os.mkdir(self.path, 0o700)

    def _check(self, fd: int) -> None:
        facts = os.fstat(fd)
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
            raise OperationError(f"State directory '{self.path}' can be written by others")

    def _descriptor(self) -> int:
        fd = self.open(create=True)
        if fd is None:
            raise SysfsError(errno.ENOENT, self.path, "make the state directory")
        return fd

    def names(self) -> list[str]:
        """
        Return the names of all entries, sorted; none when there is no directory.

        Raises:
            OperationError, SysfsError: as ``open``, or it cannot be read.
        """
        fd = self.open()
        if fd is None:
            return []
        with self._doing("list the state directory"):
            self.step("list", self.path)
            return sorted(os.listdir(fd))

    def read(self, name: str) -> bytes | None:
        """
        Return a file's bytes, None when it has gone.

        Raises:
            SysfsError: it is there and cannot be read now.
            ValueError: it is no ordinary file of ours; the text says what it is.
        """
        top = self.open()
        if top is None:
            return None
        with self._doing("read a record", name):
            self.step("open", name)
            try:
                fd = os.open(name, _OLD, dir_fd=top)
            except FileNotFoundError:
                return None
            except OSError as err:
                if err.errno in _NO_FILE:
                    raise ValueError(f"it is no ordinary file ({err.strerror})") from None
                raise
            try:
                return self._read_whole(fd, name)
            finally:
                os.close(fd)

    def _read_whole(self, fd: int, name: str) -> bytes:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:  # 0: replaced since we opened it
            raise ValueError("it is no ordinary file")
        if facts.st_uid not in (0, os.geteuid()):
            raise ValueError("it belongs to somebody else")
        self.step("read", name)
        return os.read(fd, FILE_MAX)

    def replace(self, name: str, data: bytes) -> None:
        """
        Put a file in the place of an earlier one, durably and as a whole.

        Raises:
            SysfsError: the directory or the disk refuses; the earlier file stands, or, where only making the
                new one durable failed, the new one.
        """
        top = self._descriptor()
        temporary = f".{name}.{os.urandom(8).hex()}"
        with self._doing("write a record", name):
            try:
                self._write_new(top, temporary, data)
                self.step("rename", name)
                os.rename(temporary, name, src_dir_fd=top, dst_dir_fd=top)
            except OSError:
                with tolerated(OSError):
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
        Remove a file; nothing happens when it is not there.

        It need not be durable: a file that comes back after a power loss is of an earlier boot.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self.open()
        if top is None:
            return
        with self._doing("remove a record", name):
            self.step("unlink", name)
            with tolerated(FileNotFoundError):
                os.unlink(name, dir_fd=top)
            self.step("done", name)

    def sweep(self, name: str) -> None:
        """
        Remove what writers that died left of a file; who calls this keeps others from writing it.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self.open()
        for left in self.names() if top is not None else ():
            if left.startswith(f".{name}."):
                with self._doing("remove what is left of a record", left):
                    self.step("unlink", left)
                    with tolerated(FileNotFoundError):
                        os.unlink(left, dir_fd=top)

    def rename(self, name: str, other: str) -> None:
        """
        Rename a file; nothing happens when it is not there.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self._descriptor()
        with self._doing("set a record aside", name), tolerated(FileNotFoundError):
            self.step("rename", name)
            os.rename(name, other, src_dir_fd=top, dst_dir_fd=top)

    def open_lock(self, name: str) -> int:
        """
        Return a descriptor of a lock's file, made where it is not there yet.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self._descriptor()
        with self._doing("open a lock", name):
            self.step("open", name)
            return os.open(name, _LOCK, 0o600, dir_fd=top)


@contextmanager
def tolerated(error: type[OSError]) -> Iterator[None]:
    """Let one kind of OSError pass as "nothing to do"."""
    try:
        yield
    except error:
        return
