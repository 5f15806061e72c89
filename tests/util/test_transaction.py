# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signals during a change: they wait until it ends, whichever thread they reach."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pyhostdev.errors import OperationError
from pyhostdev.util.transaction import deferred_signals


def test_signal_that_another_thread_takes_waits_too() -> None:
    """A signal to the process reaches a thread that does not block it; the handler still runs only at the end."""
    handled: list[int] = []
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    old = signal.signal(signal.SIGTERM, lambda number, _frame: handled.append(number))
    try:
        other.start()
        with deferred_signals() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(OperationError, match="SIGTERM"):
                for _ in range(1000):
                    time.sleep(0.01)
                    interrupted()
            assert [] == handled
        assert [signal.SIGTERM] == handled
    finally:
        end.set()
        other.join()
        signal.signal(signal.SIGTERM, old)


def test_ignored_signal_stays_ignored() -> None:
    """A program that ignores a signal is not interrupted by it."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_signals() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupted()
        assert signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, old)
