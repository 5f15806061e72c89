# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Standard output and standard error, which can be closed, full, or a pipe that nobody reads.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from pyhostdev.errors import HostdevError


class OutputError(Exception):
    """What a verb had to say could not be written; ``text`` is that, as far as it is known."""

    def __init__(self, err: OSError, text: str = "") -> None:
        super().__init__(f"Cannot write to standard output: {err.strerror}")
        self.text = text
        self.code: int | None = None  # what the verb would have ended with, where that is worse


def open_closed() -> None:
    """
    Put something in the place of standard streams that are closed, so that no file of ours gets their number.

    Writing to an output that was closed fails as it would have; what is told on a closed standard error is dropped.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError as err:
            if err.errno != errno.EBADF:
                raise
            os.open(os.devnull, flags)  # gets the lowest number that is free
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


@contextmanager
def writing(text: str = "") -> Iterator[None]:
    """
    Print something within, all of it.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: nobody reads it.
    """
    try:
        yield
        sys.stdout.flush()
    except HostdevError:
        raise  # some are an OSError too, about a file of the host
    except BrokenPipeError:
        silence(sys.stdout)
        raise
    except OSError as err:
        silence(sys.stdout)
        raise OutputError(err, text) from err


def write(text: str) -> None:
    """
    Print a text and nothing after it.

    Raises:
        OutputError, BrokenPipeError: as ``writing``.
    """
    with writing(text):
        sys.stdout.write(text)


def tell(line: str) -> None:
    """Print a line on standard error, where that is possible: a change does not fail because nobody hears of it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Let what is left in a stream go nowhere, when it is flushed at the end."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, stream.fileno(), inheritable=True)
        os.close(null)
