# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who has what open, from /proc.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pyhostdev.util.hostroot import HostRoot


class Process(NamedTuple):
    """A process by its number and its name."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"'{self.name}' (process {self.pid})"


def read_group_holders(root: HostRoot, group: int) -> list[Process]:
    """
    Return the processes that have an IOMMU group's node open; those we may not look into are left out.

    Opening the node to see whether it is free would stand in the way of a QEMU that is just starting.

    Host: reads ``proc/*/fd`` when ``dev/vfio/GROUP`` is there
    """
    node = root.vfio_group(group)
    if not os.path.exists(node) or not os.path.isdir(root.proc):
        return []
    shown = node if root.is_live else os.path.join("/", os.path.relpath(node, root.path))
    pids = (int(name) for name in os.listdir(root.proc) if name.isdigit())
    return [Process(pid, _name(root, pid)) for pid in sorted(pids) if _has_open(root, pid, shown)]


def _has_open(root: HostRoot, pid: int, target: str) -> bool:
    directory = os.path.join(root.proc, str(pid), "fd")
    try:
        return any(_target(directory, fd) == target for fd in os.listdir(directory))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # it has ended, or is not ours to look into


def _target(directory: str, fd: str) -> str | None:
    try:
        return os.readlink(os.path.join(directory, fd))
    except (FileNotFoundError, PermissionError):
        return None


def _name(root: HostRoot, pid: int) -> str:
    try:
        with open(os.path.join(root.proc, str(pid), "comm"), encoding="utf-8", errors="replace") as stream:
            return stream.read(64).strip()
    except (FileNotFoundError, ProcessLookupError):
        return "?"
