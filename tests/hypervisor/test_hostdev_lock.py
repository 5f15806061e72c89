# SPDX-License-Identifier: LGPL-2.1-or-later
"""Locks of a change: who wants is refused at once, who gives back waits a moment."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pyhostdev import DeviceInUseError, PCIDeviceAddress
from pyhostdev.hypervisor.hostdev_lock import locked
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.statedir import StateDir

DEVICE = [PCIDeviceAddress(1, 9, 0, 0)]


def test_second_is_told_the_holder_at_once(bcm5719: FakeHost, tmp_path: Path) -> None:
    """Without a wait the second is refused and told who has the lock."""
    state = str(tmp_path / "state")
    second = locked(StateDir(state), bcm5719.root, DEVICE, "bert")
    with locked(StateDir(state), bcm5719.root, DEVICE, "anna"), pytest.raises(DeviceInUseError, match="held by 'anna'"):
        second.__enter__()


def test_who_waits_gets_what_is_let_go(bcm5719: FakeHost, tmp_path: Path) -> None:
    """A holder that lets go within the wait is no reason to fail."""
    state = str(tmp_path / "state")
    has_it, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(StateDir(state), bcm5719.root, DEVICE, "anna"):
            has_it.set()
            let_go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert has_it.wait(10)
    threading.Timer(0.05, let_go.set).start()
    began = time.monotonic()
    with locked(StateDir(state), bcm5719.root, DEVICE, "bert", wait_s=10):
        waited = time.monotonic() - began
    holder.join()
    assert 0.03 < waited < 5


def test_wait_has_an_end(bcm5719: FakeHost, tmp_path: Path) -> None:
    """A holder that does not let go is told after the wait."""
    state = str(tmp_path / "state")
    with locked(StateDir(state), bcm5719.root, DEVICE, "anna"):
        began = time.monotonic()
        with pytest.raises(DeviceInUseError, match="held by 'anna'"):
            locked(StateDir(state), bcm5719.root, DEVICE, "bert", wait_s=0.1).__enter__()
        assert 0.1 <= time.monotonic() - began
