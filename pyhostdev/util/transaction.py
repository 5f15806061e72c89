# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A change of the host that is made as a whole or undone: undo in reverse, past failures, with signals held back.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import HostdevError, OperationError

DEFERRED_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)  # what asks a program to end

if TYPE_CHECKING:
    from logging import Logger


class Transaction:
    """
    Undo actions, run in reverse when the ``with`` block ends with an error.

    An undo action that fails is logged and the rest goes on; the first error is the one that is raised, its
    ``rolled_back`` says whether all of the undoing worked, and its text says what did not.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def on_error(self, action: Callable[..., Any], *args: Any) -> None:
        """Register what undoes the next thing that is done."""
        self._undo.append((action, args))

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        failures = [failure for action, args in reversed(self._undo) for failure in attempt(action, *args)]
        if isinstance(error, HostdevError):
            error.rolled_back = not failures
            if failures:
                error.message = f"{error.message}; and it could not be undone: {failures[0]}"


@contextmanager
def half_done() -> Iterator[None]:
    """Say of an error that it came in the middle of a change that nobody undoes, and that ``recover`` finishes."""
    try:
        yield
    except HostdevError as err:
        err.rolled_back = False
        raise


def attempt(action: Callable[..., Any], *args: Any) -> list[Exception]:
    """Run one action that must not stop the others; return its failure, logged, or nothing."""
    try:
        action(*args)
    except (HostdevError, OSError) as err:
        log().error("%s", err)
        return [err]
    return []


def log() -> Logger:
    """Return the log of changes; loading what logs takes is put off until something goes wrong."""
    import logging

    return logging.getLogger("pyhostdev.change")


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """
    Hold what asks a program to end back from this thread; yield a check that turns a waiting signal into an error.

    So a change stops between two steps, its undo is never interrupted, and the signal arrives afterwards.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED_SIGNALS)

    def check() -> None:
        waiting = signal.sigpending() & set(DEFERRED_SIGNALS)
        if waiting:
            raise OperationError(f"Interrupted by {signal.Signals(min(waiting)).name}")

    try:
        yield check
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
