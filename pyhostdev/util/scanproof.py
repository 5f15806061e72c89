# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Proof that a scan is still valid: the modification times of a few directories.

All facts of a scan are entries of directories: the functions, the drivers, the functions of each driver, the IOMMU
groups. Once a directory's extended attributes have been listed, sysfs updates its time, to the nanosecond, with each
entry that is added or removed. Before that, the time means nothing.

Source: kernfs_iop_listxattr (fs/kernfs/inode.c), kernfs_add_one and __kernfs_remove (fs/kernfs/dir.c)
"""

from __future__ import annotations

import os
import stat
import time

from pyhostdev.util import confined
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.scantuning import Tuning
from pyhostdev.util.typed import NamedTuple

# Linux series on which the rule was measured. 6.1, 7.2: in the lab, on the PCI bus; 6.18: with network devices.
PROVEN = frozenset({(6, 1), (6, 18), (7, 2)})

# An entry is only the first sign of a change: a VF is listed before it is linked to its PF, a function before it is in
# a group. So a time younger than this proves nothing, nor does any time of a coarse file clock.
SETTLE_NS = 2_000_000_000

Mark = tuple[int, int]  # inode number and time of a directory


class Marks(NamedTuple):
    """The marks of the directories at one moment; ``groups`` is None on a host without groups."""

    taken_ns: int
    filesystem: int
    devices: Mark
    drivers: Mark
    groups: Mark | None
    each: dict[str, Mark]  # of the drivers

    def is_settled(self, mark: Mark | None) -> bool:
        """Tell whether every change after these marks certainly changes the mark of a directory."""
        return mark is None or mark[1] <= self.taken_ns - SETTLE_NS

    def is_due(self, mark: Mark | None, now: Mark | None) -> bool:
        """Tell whether a directory may still change without a change of this mark."""
        return mark != now or not self.is_settled(mark)


class Proof(NamedTuple):
    """
    The facts that a scan passes to the next one.

    ``entries`` and ``groups`` are the sorted listings, two numbers per entry. ``young`` are the functions that may have
    been incomplete; None stands for all. ``ungrouped`` are the functions without a group; None if no group exists.
    """

    tuning: Tuning
    marks: Marks
    entries: bytes
    groups: bytes
    young: frozenset[int] | None
    ungrouped: frozenset[int] | None


def is_proven(release: str) -> bool:
    """Tell whether the rule was measured on a kernel of this release."""
    parts = release.split(".")
    return len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal() and (int(parts[0]), int(parts[1])) in PROVEN


def read_marks(root: HostRoot, tuning: Tuning, before: Marks | None = None) -> Marks | None:
    """
    Return the current marks of a host's directories; None where times prove nothing.

    Args:
        before: earlier marks of this host: the attributes of their directories are not listed again.
    """
    taken = time.time_ns()
    try:
        devices = _mark(root, root.pci_devices, before is None, must_be_sysfs=not tuning.stamped)
        if devices is None:
            return None
        groups = _mark(root, root.iommu_groups, before is None or before.groups is None)
        with confined.opened(confined.open_directory(root, root.pci_drivers)) as fd:
            drivers = _watched(fd) if before is None else os.fstat(fd)
            each = _driver_marks(fd, before, drivers)
    except OSError:
        return None  # without a proof, a scan reads everything and reports what it cannot read
    known = [devices, drivers, *each.values()] + ([] if groups is None else [groups])
    if len({status.st_dev for status in known}) > 1:
        return None
    return Marks(
        taken,
        devices.st_dev,
        _of(devices),
        _of(drivers),
        None if groups is None else _of(groups),
        {name: _of(status) for name, status in each.items()},
    )


def _of(status: os.stat_result) -> Mark:
    return status.st_ino, status.st_mtime_ns


def _mark(root: HostRoot, path: str, is_new: bool, must_be_sysfs: bool = False) -> os.stat_result | None:
    """Return a directory's status, None if it is absent or not in sysfs."""
    try:
        fd = confined.open_directory(root, path)
    except FileNotFoundError:
        return None
    with confined.opened(fd):
        if must_be_sysfs and not (confined.is_sysfs(fd) and is_proven(os.uname().release)):
            return None
        return _watched(fd) if is_new else os.fstat(fd)


def _watched(fd: int) -> os.stat_result:
    """List a directory's extended attributes, then return its status."""
    os.listxattr(fd)
    return os.fstat(fd)


def _driver_marks(fd: int, before: Marks | None, drivers: os.stat_result) -> dict[str, os.stat_result]:
    known = {} if before is None else before.each
    must_list = before is None or before.is_due(before.drivers, _of(drivers))
    names = os.listdir(fd) if must_list else list(known)
    each = {}
    for name in names:
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            mark = known.get(name)
            if mark is None or mark[0] != status.st_ino:
                with confined.opened(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)) as own:
                    status = _watched(own)
        except (FileNotFoundError, NotADirectoryError):  # unloaded in the meantime, or not a driver
            continue
        if stat.S_ISDIR(status.st_mode):
            each[name] = status
    return each
