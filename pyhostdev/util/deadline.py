# SPDX-License-Identifier: LGPL-2.1-or-later
"""
System calls with a deadline.

The kernel holds one lock for all network interfaces while a driver works, so a call can wait for a driver that hangs.
Such a call is left behind in a separate thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from pyhostdev.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

NETWORK_TIMEOUT_S = 10.0


def within(seconds: float, doing: str, call: Callable[[], T]) -> T:
    """
    Return the result of a call, or raise its exception.

    Args:
        doing: describes the call, as the end of "Could not".

    Raises:
        OperationError: the call does not return in time.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as err:  # for the caller, who raises it
            errors.append(err)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise OperationError(f"Could not {doing} within {seconds:g} s: the kernel does not answer")
    return results[0]
