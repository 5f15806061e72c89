# SPDX-License-Identifier: LGPL-2.1-or-later
"""Locks of a change: prepare is refused at once, release waits for a moment."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhostdev import DeviceInUseError, PCIDeviceAddress
from pyhostdev.hypervisor import hostdev_lock
from pyhostdev.hypervisor.hostdev_lock import lock_set, locked
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.statedir import StateDir

DEVICE = [PCIDeviceAddress(1, 9, 0, 0)]


def test_second_process_gets_the_holder_at_once(bcm5719: FakeHost, tmp_path: Path) -> None:
    """Without a wait, the second process is refused, and its error names the holder of the lock."""
    state = str(tmp_path / "state")
    second = locked(StateDir(state), bcm5719.root, DEVICE, "bert")
    with locked(StateDir(state), bcm5719.root, DEVICE, "anna"), pytest.raises(DeviceInUseError, match="held by 'anna'"):
        second.__enter__()


def test_a_waiting_process_gets_the_released_lock(bcm5719: FakeHost, tmp_path: Path) -> None:
    """If the holder releases the lock within the wait, the waiting process gets it."""
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
    """A holder that does not release is named after the wait."""
    state = str(tmp_path / "state")
    with locked(StateDir(state), bcm5719.root, DEVICE, "anna"):
        began = time.monotonic()
        with pytest.raises(DeviceInUseError, match="held by 'anna'"):
            locked(StateDir(state), bcm5719.root, DEVICE, "bert", wait_s=0.1).__enter__()
        assert 0.1 <= time.monotonic() - began


class Unnamed:
    """A process that holds a lock without its name in the file, and the error of a second process."""

    def __init__(self, fake: FakeHost, top: str) -> None:
        self.root, self.state = fake.root, StateDir(top)
        self.fd = self.state.open_lock(lock_set(self.root, DEVICE, None)[0].name)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        Path(self.root.proc, "locks").write_bytes(Path("/proc/locks").read_bytes())

    def write(self, name: str) -> None:
        os.pwrite(self.fd, name.encode(), 0)

    def told(self) -> str:
        with pytest.raises(DeviceInUseError) as error:
            locked(self.state, self.root, DEVICE, "bert").__enter__()
        return str(error.value).rpartition("is held by ")[2]


@pytest.fixture
def unnamed(bcm5719: FakeHost) -> Iterator[Unnamed]:
    """This process as such a holder, on a host that shows the real list of locks."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no /dev/shm: elsewhere a file's device may not be its locks'")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        holder = Unnamed(bcm5719, top)
        yield holder
        os.close(holder.fd)


ME = f"process {os.getpid()}"


def test_holder_without_a_name_is_reported_by_number(unnamed: Unnamed) -> None:
    """A holder that has not written its name yet is identified by the kernel's list, after a short wait."""
    began = time.monotonic()
    assert ME == unnamed.told()
    assert time.monotonic() - began < 1


def test_holder_that_the_kernel_confirms_is_reported_by_name(unnamed: Unnamed) -> None:
    """The name in the file is used if the kernel confirms the process number in it."""
    for name in (ME, f"'anna' ({ME})"):
        os.ftruncate(unnamed.fd, 0)
        unnamed.write(name)
        assert name == unnamed.told()


@pytest.mark.parametrize("left", ["process 1", "'anna' (process 1)"])
def test_name_that_a_killed_holder_left_is_not_the_next_ones(unnamed: Unnamed, left: str) -> None:
    """A name that the kernel does not confirm is reported as unconfirmed."""
    unnamed.write(left)
    assert f"{ME} (its file says {left})" == unnamed.told()


def test_holder_is_given_a_moment_to_write_its_name(unnamed: Unnamed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder writes its name shortly after it takes the lock; the second process waits for it."""
    monkeypatch.setattr(hostdev_lock, "_NAME_WAIT_S", 5)
    threading.Timer(0.05, unnamed.write, [f"'anna' ({ME})"]).start()
    assert f"'anna' ({ME})" == unnamed.told()


def test_the_file_is_believed_where_the_kernel_has_no_list(unnamed: Unnamed) -> None:
    """In a container, or without a list of locks, the name in the file is used, and no holder is guessed."""
    Path(unnamed.root.proc, "locks").unlink()
    assert "another process" == unnamed.told()
    unnamed.write("'anna' (process 1)")
    assert "'anna' (process 1)" == unnamed.told()


def test_lock_that_is_released_in_between_is_taken(unnamed: Unnamed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is released during the search for its holder is taken."""

    def let_go(root: HostRoot, fd: int) -> None:
        fcntl.flock(unnamed.fd, fcntl.LOCK_UN)

    monkeypatch.setattr(hostdev_lock, "_read_holder", let_go)
    with locked(unnamed.state, unnamed.root, DEVICE, "bert"), pytest.raises(BlockingIOError):
        fcntl.flock(unnamed.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
