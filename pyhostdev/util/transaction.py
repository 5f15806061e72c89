# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A change of the host that succeeds as a whole or is rolled back: in reverse, past failures, with signals deferred.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from pyhostdev.errors import HostdevError, OperationError
from pyhostdev.util.typed import TYPE_CHECKING, Any

DEFERRED_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)  # requests to end the program

if TYPE_CHECKING:
    from logging import Logger


class Transaction:
    """
    A list of undo actions; they run in reverse when the ``with`` block ends with an error.

    A failing undo action is logged and the others continue. The first error is raised; its ``rolled_back`` tells
    whether all undo actions succeeded, and its text names the first that failed.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def on_error(self, action: Callable[..., Any], *args: Any) -> None:
        """Register the action that undoes the next step."""
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
        failures = [failure for action, args in reversed(self._undo) for failure in run_logged(action, *args)]
        if isinstance(error, HostdevError):
            error.rolled_back = not failures
            if failures:
                error.message = f"{error.message}; and it could not be undone: {failures[0]}"


@contextmanager
def mark_unfinished() -> Iterator[None]:
    """Mark an error as not rolled back; ``recover`` finishes the change."""
    try:
        yield
    except HostdevError as err:
        err.rolled_back = False
        raise


def run_logged(action: Callable[..., Any], *args: Any) -> list[Exception]:
    """Run an action whose failure must not stop the others; return the failure, which is logged, in a list."""
    try:
        action(*args)
    except (HostdevError, OSError) as err:
        log().error("%s", err)
        return [err]
    return []


def log() -> Logger:
    """Return the logger of changes; the logging module is loaded only if something goes wrong."""
    import logging

    return logging.getLogger("pyhostdev.change")


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """
    Defer requests to end the program; yield a check that turns a signal that has come into an error.

    So a change stops between two steps, its undo is never interrupted, and the signal is delivered afterwards. The
    signals are blocked in this thread. Another thread of the program may still receive one, so in the main thread,
    which runs the handlers, they are also noted and raised again at the end.
    """
    # a blocked signal waits even where the program ignores it, as under nohup
    numbers = {number for number in DEFERRED_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    noted: set[int] = set()
    handlers = _replaced_handlers(numbers, lambda number, _frame: noted.add(number))

    def check() -> None:
        waiting = (signal.sigpending() & numbers) | noted
        if waiting:
            raise OperationError(f"Interrupted by {signal.Signals(min(waiting)).name}")

    try:
        yield check
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        for number in noted:
            signal.raise_signal(number)


def _replaced_handlers(numbers: set[signal.Signals], replacement: Callable[[int, Any], Any]) -> dict[int, Any]:
    """Replace the handlers of signals, which only the main thread may do; return the former ones by signal."""
    former = {number: signal.getsignal(number) for number in numbers}
    # None: a handler that is not Python's cannot be put back
    known: dict[int, Any] = {number: handler for number, handler in former.items() if handler is not None}
    try:
        for number in known:
            signal.signal(number, replacement)
    except ValueError:  # this is not the main thread; nothing was replaced
        return {}
    return known
