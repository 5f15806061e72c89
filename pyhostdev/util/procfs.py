# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Processes and the holders of locks, from /proc.
"""

from __future__ import annotations

import errno
import os
import re

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import list_names, read_attribute, read_lines, read_status

_NUMBER = r"[0-9]{1,10}"
_FLAGS, _PF_EXITING = 6, 0x4  # index after the name, and the flag
_STARTED = 19  # index after the name


class Process(NamedTuple):
    """A process by its number and its name; an exiting process closes its open files by itself."""

    pid: int
    name: str
    is_ending: bool = False

    def __str__(self) -> str:
        return f"'{self.name}' (process {self.pid})"


def read_lock_holders(root: HostRoot, status: os.stat_result) -> list[int]:
    """
    Return the processes that hold a flock(2) lock on a file, as far as the kernel shows them.

    The kernel does not show processes outside this PID namespace. It also shows none if a file system reports another
    device number for the file than for its locks.

    Raises:
        SysfsError: the kernel's list does not exist, or cannot be read.

    Host: reads ``proc/locks``

    Source: proc_locks(5)
    """
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    if read_status(root, root.locks) is None:
        raise SysfsError(errno.ENOENT, root.locks, "look for the holder of a lock")
    fields = [line.split() for line in read_lines(root, root.locks) if f" {file} " in line]
    return [int(words[4]) for words in fields if words[1] == "FLOCK" and re.fullmatch(_NUMBER, words[4])]


def read_process(root: HostRoot, pid: int) -> Process:
    """
    Return a process by its number.

    Raises:
        SysfsError: its name or its state cannot be read.
    """
    return Process(pid, _read(root, pid, "comm") or "?", _is_ending(_read(root, pid, "stat")))


def _is_ending(text: str) -> bool:
    """
    Tell from the text of ``stat`` whether a process is gone, dead or exiting.

    Source: proc_pid_stat(5); PF_EXITING (include/linux/sched.h)
    """
    words = text.rpartition(")")[2].split()  # the name before it may contain any character
    if not words:
        return True
    flags = words[_FLAGS] if len(words) > _FLAGS and re.fullmatch(_NUMBER, words[_FLAGS]) else "0"
    return words[0] in "ZXx" or bool(int(flags) & _PF_EXITING)


def _read(root: HostRoot, pid: int, name: str) -> str:
    """Return one of a process's files, empty if the process has ended."""
    path = os.path.join(root.proc, str(pid), name)
    try:
        return (read_attribute(root, path) or "").strip()
    except SysfsError as err:
        if err.errno == errno.ESRCH:
            return ""
        raise SysfsError(err.errno or 0, path, "read about a process") from err


def read_pids(root: HostRoot) -> list[int]:
    """
    Return the numbers of all processes, sorted.

    Host: the names in ``proc``
    """
    return sorted(int(name) for name in list_names(root, root.proc) if re.fullmatch(_NUMBER, name))


def read_start_time(root: HostRoot, pid: int) -> int | None:
    """
    Return when a process was created, in ticks since the boot; None for one that has ended.

    With its number this names a process, whatever it executes.

    Raises:
        SysfsError: its state cannot be read.

    Source: proc_pid_stat(5)
    """
    text = _read(root, pid, "stat")
    words = text.rpartition(")")[2].split()
    return int(words[_STARTED]) if len(words) > _STARTED and not _is_ending(text) else None


def read_command_line(root: HostRoot, pid: int) -> list[str]:
    """
    Return the words that a process was started with; empty for one that has ended or that the kernel made.

    Raises:
        SysfsError: they cannot be read.
    """
    text = _read(root, pid, "cmdline")
    return text.removesuffix("\0").split("\0") if text else []
