# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Standard output and standard error, which can be closed, full, or a pipe without a reader.
"""

from __future__ import annotations

import errno
import os
import sys

from pyhostdev.errors import HostdevError

TYPE_CHECKING = False  # typing costs more than this module
if TYPE_CHECKING:
    from typing import TextIO


class OutputError(Exception):
    """The output of a verb could not be written; ``text`` holds that output, as far as it is known."""

    def __init__(self, err: OSError, text: str = "") -> None:
        super().__init__(f"Cannot write to standard output: {err.strerror}")
        self.text = text
        self.code: int | None = None  # the exit code of the verb, if that is worse


def open_closed() -> None:
    """
    Occupy closed standard streams, so that no other file gets their numbers.

    Writing to a closed output fails as before; messages to a closed standard error are dropped.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError as err:
            if err.errno != errno.EBADF:
                raise
            os.open(os.devnull, flags)  # gets the lowest free number
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


class writing:  # noqa: N801 - read as a verb; contextlib would double what the version costs
    """
    Write and flush everything printed inside the block.

    Args:
        text: the output, as an OutputError holds it.

    Raises:
        OutputError: the output cannot be written.
        BrokenPipeError: the pipe has no reader.
    """

    def __init__(self, text: str = "") -> None:
        self.text = text

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if err is not None:
            self._failed(err)
            return
        try:
            sys.stdout.flush()
        except OSError as flushed:
            self._failed(flushed)
            raise

    def _failed(self, err: BaseException) -> None:
        """Silence the stream; errors about a file of the host, some of which are also an OSError, pass."""
        if not isinstance(err, OSError) or isinstance(err, HostdevError):
            return
        silence(sys.stdout)
        if not isinstance(err, BrokenPipeError):
            raise OutputError(err, self.text) from err


def write(text: str) -> None:
    """
    Print a text and flush it.

    Raises:
        OutputError, BrokenPipeError: as ``writing``.
    """
    with writing(text):
        sys.stdout.write(text)


def write_bytes(data: bytes) -> None:
    """
    Write bytes to standard output and flush it.

    Raises:
        OutputError, BrokenPipeError: as ``writing``.
    """
    with writing():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)


_ERASE = "\r\x1b[K"
_passing: list[str] = []  # the line of progress that a terminal shows now


def show_progress(text: str) -> None:
    """Show a line on standard error in place of the last one, until ``end_progress``; on a terminal only."""
    if sys.stderr.isatty() and _passing != [text]:
        _passing[:] = [text]
        _write_to_terminal(f"\r{text}")


def end_progress() -> None:
    """Erase the line of progress, if one is shown."""
    if _passing:
        _passing.clear()
        _write_to_terminal(_ERASE)


def _write_to_terminal(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def print_error(line: str) -> None:
    """Print a line on standard error, if possible: a change does not fail because its message cannot be printed."""
    end_progress()
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def printable(text: str) -> str:
    """
    Return a text as one line that has no effect on a terminal.

    Control characters of both sets, line ends, marks that change the direction of writing, and undecodable bytes are
    escaped: drivers, processes, domains and files can have any name.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def silence(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that its final flush succeeds."""
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, stream.fileno(), inheritable=True)
        os.close(null)
    except OSError:
        return
