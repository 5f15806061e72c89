# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The listening sockets of a guest's channels and ports: pyhostdev creates them, QEMU inherits them.

QEMU's user needs no permission to create files, and the permission to connect does not depend on the umask: a socket
belongs to the user that started the guest, with mode 0600.

Mirrors: qemuOpenChrChardevUNIXSocket (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError
from pyhostdev.hypervisor.guest_journal import GuestJournal, is_alive
from pyhostdev.qemu.qemu_process.launch import make_directories
from pyhostdev.util.undo import UndoOnExit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.hypervisor.host import Host


class GuestFiles(UndoOnExit):
    """
    The record of one guest's files, while they may exist; with it ``recover`` removes them after a crash.

    Args:
        owner: the name of the domain.
        sockets: paths of sockets that are created for the guest.
        directories: the guest's own, which need not exist yet.

    Raises:
        OperationError, SysfsError: the record cannot be written.
    """

    def __init__(self, host: Host, owner: str, sockets: Sequence[str], directories: Sequence[str]) -> None:
        super().__init__()
        self._journal = GuestJournal(host)
        self._facts = (owner, sockets, directories)
        self.lock_fds: list[int] = []  # of the record; QEMU inherits the lock, which shows that it runs

    def _begin(self, undo: contextlib.ExitStack) -> None:
        name, lock = self._journal.start(*self._facts)
        undo.callback(self._journal.end, name, lock)
        self.lock_fds.append(lock)


class ListeningSockets(UndoOnExit):
    """
    The sockets of one guest; on exit they are removed.

    A dead socket of an earlier guest is replaced; any other file, and a socket in use, is left alone.

    Args:
        paths: absolute and unique.
        directory: created if a path is below it.

    Raises:
        OperationError: a socket cannot be created; the others are removed again.
    """

    def __init__(self, paths: Sequence[str], directory: str) -> None:
        super().__init__()
        self.paths = paths
        self.directory = directory
        self._fds: dict[str, int] = {}

    def _begin(self, undo: contextlib.ExitStack) -> None:
        if any(os.path.dirname(path) == self.directory for path in self.paths):
            make_directories(self.directory)
            undo.callback(_remove_directory, self.directory)
        for path in self.paths:
            self._make(path, undo)

    def fd(self, path: str) -> int:
        """Return the descriptor of the socket at a path."""
        return self._fds[path]

    @property
    def fds(self) -> list[int]:
        """All descriptors, in the order of the paths."""
        return list(self._fds.values())

    def _make(self, path: str, undo: contextlib.ExitStack) -> None:
        if path in self._fds:
            raise OperationError(f"Two devices of the guest have the socket '{path}'")
        try:
            self._fds[path] = listen(path, undo).fileno()
        except OSError as err:
            raise OperationError(f"Cannot make the socket '{path}': {err.strerror or err}") from err


def listen(path: str, undo: contextlib.ExitStack) -> socket.socket:
    """
    Create a listening socket; add its removal to ``undo``.

    Raises:
        OSError: it cannot be created.
        OperationError: the path exists.
    """
    directory, name = os.path.split(path)
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, directory_fd)
    # Through its directory: an address has at most 107 bytes, and the directory is the one that was checked
    place = f"/proc/self/fd/{directory_fd}/{name}"
    _make_room(place, name, directory_fd, path)
    listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    os.fchmod(listener.fileno(), 0o600)  # bind creates the file with this mode
    listener.bind(place)
    made = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    undo.callback(_remove, name, directory_fd, made)
    listener.listen(1)
    return listener


def _make_room(place: str, name: str, directory_fd: int, path: str) -> None:
    """
    Remove a dead socket.

    Raises:
        OperationError: the path is a socket in use, or another file.
    """
    try:
        found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OperationError(f"Cannot make the socket '{path}': the path exists and is not a socket")
    if is_alive(place):
        raise OperationError(f"Cannot make the socket '{path}': another program listens at it")
    os.unlink(name, dir_fd=directory_fd)


def _remove(name: str, directory_fd: int, made: os.stat_result) -> None:
    """Remove a socket that we created, unless another one has replaced it."""
    with contextlib.suppress(OSError):
        if os.path.samestat(made, os.stat(name, dir_fd=directory_fd, follow_symlinks=False)):
            os.unlink(name, dir_fd=directory_fd)


def _remove_directory(path: str) -> None:
    with contextlib.suppress(OSError):  # files of other programs stay
        os.rmdir(path)
