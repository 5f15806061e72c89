# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Programs that run beside a QEMU and could outlive a crash: swtpm and virtiofsd wait at a socket, and would wait for ever
if QEMU never connected to them.

A record is written before its program starts, and is removed after its end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import stat
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import OperationError
from pyhostdev.hypervisor.netdev_journal import NetdevJournal
from pyhostdev.util.procfs import read_command_line, read_pids, read_start_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

END_TIMEOUT_S = 5.0  # after each signal
SOCKET_DIRECTORY_END = ".d"  # of a directory that has a program's own socket; the link to the socket has no such end


class ProgramJournal(NetdevJournal):
    """
    The programs beside the guests of a host.

    ``pid`` and ``started`` (in ticks since the boot) identify a process, even after it has executed another program.
    They are None until the process exists; until then, ``argv`` identifies it.
    """

    suffix = ".program"
    fields = frozenset({"argv", "pid", "started", "socket"})
    directory = "programs"
    subject = "program beside a guest"
    is_name_unique = True

    def start(self, owner: str, argv: Sequence[str], socket: str) -> tuple[str, int]:
        """
        Record that a program is about to be started; return the record's name and its lock.

        Raises:
            OperationError, SysfsError: the record cannot be written.
        """
        name = f"{os.path.basename(argv[0])}-{secrets.token_hex(4)}"
        return name, self.begin(name, owner, argv=list(argv), socket=socket)

    def started(self, name: str, owner: str, argv: Sequence[str], socket: str, pid: int) -> None:
        """
        Record which process it is.

        Raises:
            SysfsError: the record cannot be written.
        """
        started = read_start_time(self.host.root, pid)
        self.note(name, owner, argv=list(argv), socket=socket, pid=pid, started=started)

    def undo(self, name: str, facts: dict[str, Any]) -> str:
        """End a program that still runs, and remove its socket."""
        if not isinstance(facts["socket"], str):
            raise TypeError("socket has another type")
        found = list(self._processes(facts))
        for pidfd in found:
            end_process(pidfd, name)
        remove_socket(facts["socket"])
        remove_own_directory(facts["socket"])
        return "the program is ended" if found else "the program has ended"

    def _processes(self, facts: dict[str, Any]) -> Iterator[int]:
        """Yield a descriptor of each process that a record is about; the caller closes it."""
        root = self.host.root
        argv, known, started = facts["argv"], facts["pid"], facts["started"]
        numbers = () if known is None else (known, started)
        if not isinstance(argv, list) or any(type(number) is not int for number in numbers):
            raise TypeError("argv, pid or started has another type")
        for pid in read_pids(root) if known is None else [known]:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            # asked with the descriptor open: the number cannot become another process's in between
            if argv == read_command_line(root, pid) if known is None else read_start_time(root, pid) == started:
                yield pidfd
            else:
                os.close(pidfd)


def end_process(pidfd: int, name: str, *, first: signal.Signals = signal.SIGTERM) -> None:
    """
    End a process that is not our child, and close its descriptor.

    Raises:
        OperationError: it does not end.
    """
    ready = select.poll()
    ready.register(pidfd, select.POLLIN)
    try:
        for number in (first, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                return
            if ready.poll(END_TIMEOUT_S * 1000):
                return
        raise OperationError(f"Program '{name}' was killed and does not end")
    finally:
        os.close(pidfd)


def remove_socket(path: str) -> None:
    """Remove the socket of a program that has ended, if it is one."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass


def remove_own_directory(socket: str) -> None:
    """Remove the directory and the link that were made for a program that makes its socket itself."""
    directory = os.path.dirname(socket)
    link = directory.removesuffix(SOCKET_DIRECTORY_END)
    if link == directory:
        return
    with contextlib.suppress(OSError):
        if os.readlink(link) == socket:
            os.unlink(link)
    with contextlib.suppress(OSError):
        os.rmdir(directory)
