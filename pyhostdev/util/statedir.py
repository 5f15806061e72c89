# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A directory of state that survives its writer: opened once, never through a link, files whole or not at all.

It must be ours (or root's) and nobody else's to write into.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from pyhostdev.errors import OperationError, SysfsError

FILE_MAX = 16384  # bytes; a record has a few hundred

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class StateDir:
    """
    One state directory; reading creates nothing, the first write makes it, mode 0700.

    ``step`` is called around each operation that changes the directory; tests make faults there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = None
        self._pid = 0

    def step(self, operation: str, name: str) -> None:
        """Called before and after each change; does nothing."""

    def open(self, *, create: bool = False) -> int | None:
        """
        Return the directory's descriptor, None when there is no directory and none is to be made.

        Raises:
            OperationError: others could write into it.
            SysfsError: it cannot be made or opened, or a link stands in its place.
        """
        if self._fd is not None and self._pid == os.getpid():
            return self._fd
        try:
            if create:
                self._make()
            fd = os.open(self.path, _DIRECTORY)
        except FileNotFoundError:
            if create:
                raise
            return None
        except OSError as err:
            raise SysfsError(err.errno or 0, self.path, "open the state directory") from err
        self._check(fd)
        self._fd, self._pid = fd, os.getpid()
        return fd

    def _make(self) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self.step("mkdir", self.path)
        with tolerated(FileExistsError):
            os.mkdir(self.path, 0o700)

    def _check(self, fd: int) -> None:
        facts = os.fstat(fd)
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
            os.close(fd)
            raise OperationError(f"State directory '{self.path}' can be written by others")

    def _descriptor(self) -> int:
        fd = self.open(create=True)
        assert fd is not None
        return fd

    def names(self) -> list[str]:
        """Return the names of all entries, sorted; none when there is no directory."""
        fd = self.open()
        return [] if fd is None else sorted(os.listdir(fd))

    def read(self, name: str) -> bytes:
        """
        Return a file's bytes.

        Raises:
            ValueError: it is no ordinary file of ours; the text says what it is.
        """
        try:
            fd = os.open(name, _OLD, dir_fd=self._descriptor())
        except OSError as err:
            raise ValueError(f"it cannot be opened ({err.strerror})") from None
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
                raise ValueError("it is no ordinary file")
            if facts.st_uid not in (0, os.geteuid()):
                raise ValueError("it belongs to somebody else")
            return os.read(fd, FILE_MAX)
        finally:
            os.close(fd)

    def replace(self, name: str, data: bytes) -> None:
        """
        Put a file in the place of an earlier one, durably and as a whole.

        Raises:
            SysfsError: the directory or the disk refuses; the earlier file stands.
        """
        top = self._descriptor()
        temporary = f".{name}.{os.urandom(8).hex()}"
        try:
            self._write_new(top, temporary, data)
            self.step("rename", name)
            os.rename(temporary, name, src_dir_fd=top, dst_dir_fd=top)
            self.step("fsync", ".")
            os.fsync(top)
            self.step("done", name)
        except OSError as err:
            with tolerated(FileNotFoundError):
                os.unlink(temporary, dir_fd=top)
            raise SysfsError(err.errno or 0, os.path.join(self.path, name), "write a record") from err

    def _write_new(self, top: int, name: str, data: bytes) -> None:
        self.step("create", name)
        fd = os.open(name, _NEW, 0o600, dir_fd=top)
        try:
            self.step("write", name)
            if os.write(fd, data) != len(data):
                raise OSError(28, "short write")
            self.step("fsync", name)
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """
        Remove a file, durably; nothing happens when it is not there.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self.open()
        if top is None:
            return
        try:
            self.step("unlink", name)
            with tolerated(FileNotFoundError):
                os.unlink(name, dir_fd=top)
            self.step("fsync", ".")
            os.fsync(top)
            self.step("done", name)
        except OSError as err:
            raise SysfsError(err.errno or 0, os.path.join(self.path, name), "remove a record") from err

    def rename(self, name: str, other: str) -> None:
        """
        Rename a file.

        Raises:
            SysfsError: the directory refuses.
        """
        top = self._descriptor()
        try:
            self.step("rename", name)
            os.rename(name, other, src_dir_fd=top, dst_dir_fd=top)
        except OSError as err:
            raise SysfsError(err.errno or 0, os.path.join(self.path, name), "set a record aside") from err


@contextmanager
def tolerated(error: type[OSError]) -> Iterator[None]:
    """Let one kind of OSError pass as "nothing to do"."""
    try:
        yield
    except error:
        return
