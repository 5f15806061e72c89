# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's output: pyhostdev copies it from a pipe to a file that rolls over, and keeps the last lines for errors.

A guest can make its QEMU write endlessly (a warning for each access to a register), so the file has a limit, and older
output moves to ``FILE.0``, ``FILE.1`` and so on. If pyhostdev is killed, the guest continues: QEMU ignores SIGPIPE.

Mirrors: virRotatingFileWriter (src/util/virrotatingfile.c), virLogHandler (src/logging/log_handler.c)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError
from pyhostdev.util.securedir import open_directory

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import TracebackType

MAX_BYTES = 2 << 20  # this and BACKUPS: like virtlogd's max_size and max_backups
BACKUPS = 3
LAST_WORDS_BYTES = 4096
LAST_WORDS_LINES = 10

_CHUNK = 1 << 16  # the capacity of a pipe
_CHUNKS_AT_THE_END = 16  # at most: a child that outlives QEMU can write endlessly
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

_log = logging.getLogger(__name__)


class RollingLog:
    """
    A log file with a limited size; when it is full, it is renamed and a new one starts.

    If the path is a device or a pipe, it does not roll over, and gets only what it accepts without waiting.

    Raises:
        OperationError: the file cannot be opened, or is a link that another user could have put there.
    """

    def __init__(self, path: str, *, max_bytes: int = MAX_BYTES, backups: int = BACKUPS) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.backups = backups
        self._failed = False
        try:
            self._fd = _open(path)
        except OSError as err:
            raise OperationError(f"Cannot open the log {path!r}: {err.strerror}") from err

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def write(self, data: bytes) -> None:
        """Append to the file; data that cannot be written is dropped, because a full disk must not stop the guest."""
        try:
            self._roll_before(len(data))
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as err:
            if not self._failed and err.errno != errno.EAGAIN:
                _log.warning("Cannot write to the log %a: %s", self.path, err.strerror)
            self._failed = err.errno != errno.EAGAIN
        else:
            self._failed = False

    def _roll_before(self, size: int) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size + size <= self.max_bytes:
            return
        for number in range(self.backups - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number - 1}", f"{self.path}.{number}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, f"{self.path}.0")
        fresh = os.open(self.path, _FLAGS | os.O_EXCL, stat.S_IMODE(status.st_mode))
        os.close(self._fd)
        self._fd = fresh


def _open(path: str) -> int:
    """
    Open a log; a link is followed only if no other user could have put it there.

    The guest decides what its QEMU writes, and QEMU's user may own the directory: through a link there, a guest could
    append to any file of the host.
    """
    try:
        return os.open(path, _FLAGS | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        if err.errno != errno.ELOOP:
            raise
    directory, name = os.path.split(os.path.abspath(path))
    top = open_directory(directory)
    if top is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        if _is_strangers(os.stat(name, dir_fd=top, follow_symlinks=False), os.fstat(top)):
            raise OperationError(f"The log {path!r} is a link that another user could have put there")
        return os.open(name, _FLAGS, 0o600, dir_fd=top)
    finally:
        os.close(top)


def _is_strangers(link: os.stat_result, directory: os.stat_result) -> bool:
    """Tell whether another user owns a link or its directory, or may replace the link."""
    is_shared = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not directory.st_mode & stat.S_ISVTX
    return bool(is_shared) or not {link.st_uid, directory.st_uid} <= {0, os.geteuid()}


def rolled_names(name: str, backups: int = BACKUPS) -> list[str]:
    """Return the names of all files that belong to a log of this name."""
    return [name, *(f"{name}.{number}" for number in range(backups))]


class OutputPipe:
    """
    The pipe for QEMU's output, and the log that the output is copied to.

    An event loop reads the pipe while the guest runs; the exit reads the rest.
    """

    def __init__(self, log: RollingLog) -> None:
        self.log = log
        self._tail = b""
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._loop: AbstractEventLoop | None = None

    def __enter__(self) -> OutputPipe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.handed_over()
        self.drain()
        self.unfollow()
        os.close(self._read_fd)
        self.log.close()

    def handed_over(self) -> None:
        """Close our copy of the write end, which QEMU has inherited: then the stream ends when QEMU ends."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def follow(self, loop: AbstractEventLoop) -> None:
        """Let an event loop read the pipe whenever it has data."""
        self._loop = loop
        loop.add_reader(self._read_fd, self._read)

    def unfollow(self) -> None:
        """Stop reading."""
        if self._loop is not None:
            self._loop.remove_reader(self._read_fd)
            self._loop = None

    def drain(self) -> None:
        """Read the data that the pipe has now."""
        for _ in range(_CHUNKS_AT_THE_END):
            if not self._read():
                break

    def _read(self) -> bool:
        """Read once; return True if there may be more data."""
        try:
            data = os.read(self._read_fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self.unfollow()  # at its end, a stream always counts as readable
            return False
        self._tail = (self._tail + data)[-LAST_WORDS_BYTES:]
        self.log.write(data)
        return True

    def last_output(self) -> str:
        """Return the last lines that QEMU wrote, joined by "; "; empty without output."""
        self.drain()
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        return "; ".join(lines[-LAST_WORDS_LINES:])
