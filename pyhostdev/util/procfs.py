# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who has what open, and who has which lock, from /proc.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import NamedTuple

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virfile import list_names, read_status, read_text

_GONE = (FileNotFoundError, NotADirectoryError, ProcessLookupError)


class Process(NamedTuple):
    """A process by its number and its name."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"'{self.name}' (process {self.pid})"


def read_group_holders(root: HostRoot, groups: Iterable[int]) -> dict[int, list[Process]]:
    """
    Return which processes have a node of these IOMMU groups open: the group's own, or that of one of its functions.

    Groups that nobody holds are not in the table; processes we may not look into are left out. Opening a node to see
    whether it is free would stand in the way of a QEMU that is just starting.

    Raises:
        SysfsError: /proc or a group cannot be read.

    Host: reads ``proc/*/fd`` once, when one of the nodes is there
    """
    nodes = {_shown(root, node): group for group in groups for node in _nodes(root, group)}
    found: dict[int, list[Process]] = {}
    if nodes:
        for pid in sorted(int(name) for name in list_names(root.proc) if name.isdigit()):
            for group in sorted({nodes[target] for target in _targets(root, pid) & nodes.keys()}):
                found.setdefault(group, []).append(Process(pid, _name(root, pid)))
    return found


def read_lock_holders(root: HostRoot, status: os.stat_result) -> list[int]:
    """
    Return the processes that have a lock of flock(2) on a file, as far as the kernel tells.

    It does not tell of processes that are hidden from this one's pid namespace, nor where a file system shows a file
    with another device than its locks have.

    Raises:
        SysfsError: the kernel's list is not there, or cannot be read.

    Host: reads ``proc/locks``

    Source: proc_locks(5)
    """
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    text = read_text(root.locks)
    if text is None:
        raise SysfsError(errno.ENOENT, root.locks, "look for the holder of a lock")
    fields = [line.split() for line in text.splitlines() if f" {file} " in line]
    return [int(words[4]) for words in fields if words[1] == "FLOCK"]


def _nodes(root: HostRoot, group: int) -> list[str]:
    """Return the nodes through which a group is used; those of functions are there since Linux 6.6, for iommufd."""
    nodes = [root.vfio_group(group)]
    if _may_be(root.dev_vfio_devices):
        for member in list_names(root.iommu_group_devices(group)):
            names = list_names(os.path.join(root.iommu_group_devices(group), member, "vfio-dev"))
            nodes += [os.path.join(root.dev_vfio_devices, name) for name in names]
    return [node for node in nodes if _may_be(node)]


def _may_be(path: str) -> bool:
    """Tell whether something is there; where we may not look, it may."""
    try:
        return read_status(path) is not None
    except SysfsError as err:
        if err.errno in (errno.EACCES, errno.EPERM):
            return True
        raise


def _shown(root: HostRoot, node: str) -> str:
    """Return a node as a process that has it open shows it."""
    return node if root.is_live else os.path.join("/", os.path.relpath(node, root.path))


def _targets(root: HostRoot, pid: int) -> set[str]:
    """Return what a process has open; nothing when it has ended or is not ours to look into."""
    directory = os.path.join(root.proc, str(pid), "fd")
    try:
        return {_target(os.path.join(directory, fd)) for fd in os.listdir(directory)}
    except (*_GONE, PermissionError):
        return set()
    except OSError as err:
        raise SysfsError(err.errno or 0, directory, "see what a process has open") from err


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except (*_GONE, PermissionError):
        return ""  # closed meanwhile


def _name(root: HostRoot, pid: int) -> str:
    path = os.path.join(root.proc, str(pid), "comm")
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(64).strip()
    except _GONE:
        return "?"
    except OSError as err:
        raise SysfsError(err.errno or 0, path, "read a process's name") from err
