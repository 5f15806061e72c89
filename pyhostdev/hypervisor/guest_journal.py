# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The files of a guest that would outlive a crash: the sockets of its channels, and its runtime directory with the key,
the log and the monitors' sockets.

A record is written before the first file is created, and removed after the last one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from typing import TYPE_CHECKING, Any

from pyhostdev.hypervisor.hostdev_result import KEPT
from pyhostdev.hypervisor.netdev_journal import NetdevJournal
from pyhostdev.util.journal import DETACHED, Journal

if TYPE_CHECKING:
    from collections.abc import Sequence


class GuestJournal(NetdevJournal):
    """
    The guests of a host, by their files.

    ``sockets`` are paths; ``directories`` belong to the guest, with every file and socket in them.
    """

    suffix = ".guest"
    fields = frozenset({"sockets", "directories"})
    directory = "guests"
    subject = "guest"
    is_name_unique = True

    def start(self, owner: str, sockets: Sequence[str], directories: Sequence[str]) -> tuple[str, int]:
        """
        Record that the files of a guest are about to be created; return the record's name and its lock.

        Raises:
            OperationError, SysfsError: the record cannot be written.
        """
        name = f"guest-{os.getpid()}-{secrets.token_hex(4)}"
        return name, self.begin(name, owner, sockets=list(sockets), directories=list(directories))

    def undo(self, name: str, facts: dict[str, Any]) -> str:
        """Remove the files of a guest that has ended."""
        for paths in (facts["sockets"], facts["directories"]):
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise TypeError("sockets or directories has another type")
        if not all(self._is_below_ours(path) for path in facts["directories"]):
            raise ValueError("a directory is not below the state directory")
        for path in facts["sockets"]:
            _remove_dead_socket(path)
        for path in facts["directories"]:
            _remove_directory(path)
        return "its files are removed"

    def _is_below_ours(self, path: str) -> bool:
        own = os.path.abspath(self.host.state_dir)
        return path == os.path.normpath(path) and path.startswith(f"{own}/")

    def _finish_one(self, name: str, facts: dict[str, Any]) -> tuple[str, str]:
        """Keep the files while devices of a dead guest are recorded as plugged: recover needs them to finish."""
        records, _ = Journal(self.host.state()).read()
        owned = (record for record in records.values() if record.owner == facts["owner"])
        if any(record.state != DETACHED and record.plug is not None for record in owned):
            return KEPT, "its devices are not given back"
        return super()._finish_one(name, facts)


def _remove_dead_socket(path: str) -> None:
    """Remove a socket at which no program listens; anything else stays."""
    directory, name = os.path.split(path)
    try:
        directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if stat.S_ISSOCK(found.st_mode) and not is_alive(f"/proc/self/fd/{directory_fd}/{name}"):
                os.unlink(name, dir_fd=directory_fd)
    finally:
        os.close(directory_fd)


def is_alive(place: str) -> bool:
    """
    Return True if a program listens at a socket; tested with another socket type, so the listener sees no connection.

    Args:
        place: at most 107 bytes, as an address has.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        error = probe.connect_ex(place)
    return error != errno.ECONNREFUSED


def _remove_directory(path: str) -> None:
    """Remove a directory with its files and sockets; one that has another directory in it stays."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for name in os.listdir(fd):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):
        os.rmdir(path)
