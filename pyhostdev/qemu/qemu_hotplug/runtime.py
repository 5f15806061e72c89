# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The runtime directory of a running guest, which other processes use: files, locks and the control socket.

The directory itself is locked while QEMU or its owner runs, ``owner.lock`` while the owner runs, and ``control.lock``
while a process uses the control socket: QEMU never greets a second client.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from pyhostdev.errors import DeviceInUseError, OperationError
from pyhostdev.hypervisor.guest_facts import GuestFacts, read_facts, runtime_directories
from pyhostdev.qemu.qemu_hotplug.connection import MonitorLost
from pyhostdev.qemu.qemu_hotplug.livestate import DirectoryState
from pyhostdev.qemu.qemu_process.launch import CONTROL_SOCKET
from pyhostdev.util.securedir import open_directory
from pyhostdev.util.statedir import StateDir

CONTROL_LOCK, OWNER_LOCK = "control.lock", "owner.lock"
_POLL_S = 0.05


class GuestDirectory:
    """One guest's runtime directory."""

    def __init__(self, path: str, facts: GuestFacts, *, below: str | None = None) -> None:
        self.path = path
        self.facts = facts
        self.files = StateDir(path, below=below)
        self.state = DirectoryState(self.files)

    @property
    def is_running(self) -> bool:
        """True while QEMU or its owner runs."""
        fd = open_directory(os.path.abspath(self.path), below=self.files.below)
        if fd is None:  # it has ended since it was found
            return False
        try:
            return not _try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    @property
    def has_owner(self) -> bool:
        """True while the process that started the guest runs; it reattaches the devices at the end."""
        fd = self.files.open_lock(OWNER_LOCK)
        try:
            return not _try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def owning(self) -> Iterator[None]:
        """
        Hold the owner lock during the block.

        Raises:
            OperationError: another process holds it.
        """
        fd = self.files.open_lock(OWNER_LOCK)
        try:
            if not _try_lock(fd, fcntl.LOCK_EX):
                raise OperationError(f"The guest '{self.facts.name}' already has an owner")
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def controlling(self, wait_s: float = 0.0) -> Iterator[None]:
        """
        Hold the control lock during the block: only its holder uses the control socket and changes devices.

        Raises:
            DeviceInUseError: another process holds it.
        """
        deadline = time.monotonic() + wait_s
        fd = self.files.open_lock(CONTROL_LOCK)
        try:
            while not _try_lock(fd, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    text = f"Another process is changing the devices of the running guest '{self.facts.name}'"
                    raise DeviceInUseError(text, reason="in-use")
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(fd)

    def try_control(self) -> int | None:
        """Return a descriptor that holds the control lock until it is closed; None if another process does."""
        fd = self.files.open_lock(CONTROL_LOCK)
        if _try_lock(fd, fcntl.LOCK_EX):
            return fd
        os.close(fd)
        return None

    @contextlib.contextmanager
    def socket_path(self) -> Iterator[str]:
        """
        Provide a path of the control socket that is short enough for a socket address, and leads nowhere else.

        Raises:
            MonitorLost: the guest has no control socket.
        """
        top = self.files.open()
        if top is None:
            raise MonitorLost("The guest has ended")
        try:
            fd = os.open(CONTROL_SOCKET, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        except OSError as err:
            raise MonitorLost(f"The guest has no control socket: {err.strerror}") from err
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise MonitorLost(f"'{os.path.join(self.path, CONTROL_SOCKET)}' is not a socket")
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)


def _try_lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_guests(state_dir: str, *, below: str | None = None) -> list[GuestDirectory]:
    """
    Return all guests with a runtime directory, also those that ended without an owner.

    Args:
        below: as for ``StateDir``: the guests of another root are not reached through a link.

    Raises:
        OperationError: a directory cannot be trusted.
        SysfsError: one cannot be read.
    """
    found = (_read_guest(path, below) for path in runtime_directories(state_dir, below=below))
    return [guest for guest in found if guest is not None]


def _read_guest(path: str, below: str | None) -> GuestDirectory | None:
    """Return a guest; None if it is being started or removed, or if its file is one of ``unreadable_guests``."""
    try:
        facts = read_facts(path, below=below)
    except ValueError:
        return None
    return None if facts is None else GuestDirectory(path, facts, below=below)


def find_guest(state_dir: str, owner: str, *, below: str | None = None) -> GuestDirectory | None:
    """
    Return the running guest of a domain, or one that ended without an owner; None without either.

    Raises:
        OperationError, SysfsError: as ``read_guests``.
    """
    found = [guest for guest in read_guests(state_dir, below=below) if guest.facts.name == owner]
    return next((guest for guest in found if guest.is_running), found[-1] if found else None)
