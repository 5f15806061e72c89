# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The limit of locked memory of a running process.

Source: prlimit(2); proc_pid_limits(5)
"""

from __future__ import annotations

import os
import re
import resource
from typing import Protocol, runtime_checkable

from pyhostdev.errors import OperationError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import read_lines

UNLIMITED = -1
_LINE = re.compile(r"Max locked memory +(unlimited|\d+) +(unlimited|\d+) ")


class MemoryLimit(NamedTuple):
    """The soft and the hard limit, in bytes; -1 means unlimited."""

    soft: int
    hard: int

    def allows(self, limit: int) -> bool:
        """Tell whether a process with these limits may lock that many bytes."""
        return self.soft == UNLIMITED or (limit != UNLIMITED and self.soft >= limit)


@runtime_checkable
class LimitWriter(Protocol):
    """Changes the limit of a process: the live host, or a simulated kernel."""

    def set_memlock(self, pid: int, limit: MemoryLimit) -> None:
        """
        Set both limits.

        Raises:
            OperationError: the process has ended, or the kernel refuses.
        """


def read_memlock(root: HostRoot, pid: int) -> MemoryLimit | None:
    """
    Return the limits of a process, None if it has ended.

    Raises:
        SysfsError: the limits cannot be read.

    Host: reads ``proc/PID/limits``
    """
    lines = read_lines(root, os.path.join(root.proc, str(pid), "limits"))
    found = next((match for line in lines if (match := _LINE.match(line))), None)
    return None if found is None else MemoryLimit(_bytes(found[1]), _bytes(found[2]))


def _bytes(word: str) -> int:
    return UNLIMITED if word == "unlimited" else int(word)


class LiveLimits:
    """The LimitWriter of the live host."""

    def set_memlock(self, pid: int, limit: MemoryLimit) -> None:
        """
        Set both limits of a process.

        Raises:
            OperationError: the process has ended, or the kernel refuses: raising the hard limit needs CAP_SYS_RESOURCE.
        """
        try:
            resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (limit.soft, limit.hard))
        except (OSError, ValueError) as err:
            why = getattr(err, "strerror", None) or err
            raise OperationError(
                f"The memory that process {pid} may lock cannot be set to {limit.soft}: {why}"
            ) from err
