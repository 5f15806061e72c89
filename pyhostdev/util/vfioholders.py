# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who has a device or a group of VFIO open: found among the open descriptors of all processes.

A descriptor counts by the number of its device, or by the function that the kernel names in its fdinfo; the text of
its path proves nothing, as anybody can name a file ``/dev/vfio/14``. Below a directory that takes the place of ``/``
nodes are ordinary files without such numbers: there the path counts, and where fdinfo is shown, the node's inode.

Opening a node to see whether it is free proves nothing either, and an open node keeps an unbind waiting.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.iommugroup import MEMBERS_MAX
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.procfs import Process, read_process
from pyhostdev.util.vfionodes import read_device_node_names, read_node_number
from pyhostdev.util.virfile import bounds_of, list_names, read_lines, read_link, read_status

_DELETED = " (deleted)"  # appended to the path of what has gone
_VFIO_DEVICE = "anon_inode:[vfio-device]"
_SYSPATH, _INODE = "vfio-device-syspath:", "ino:"  # fdinfo, since Linux 6.18 and 5.14
_FDINFO_MAX = 64  # lines; those looked for are among the first
_NOT_OURS = (errno.ESRCH, errno.EACCES, errno.EPERM)  # it has ended, or is not ours to look into
_PID = re.compile(r"[0-9]{1,10}")


class _Descriptor(NamedTuple):
    """One open descriptor of a process: where /proc shows it, and what it says it is open on."""

    root: HostRoot
    directory: str  # of the process or of one of its threads
    number: str
    text: str

    def read_info(self) -> dict[str, str]:
        """
        Return what fdinfo says; nothing when it was closed meanwhile or is not ours to read.

        Raises:
            SysfsError: it cannot be read.
        """
        path = os.path.join(self.directory, "fdinfo", self.number)
        try:
            lines = list(islice(read_lines(self.root, path), _FDINFO_MAX))
        except SysfsError as err:
            if err.errno in _NOT_OURS:
                return {}
            raise SysfsError(err.errno or 0, path, "see what a process has open") from err
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def read_device_number(self) -> int | None:
        """
        Return the number of the device it is open on; None when it is not a character device.

        A file of a strange file system may answer with any error, and is not waited for: it is not a device of ours.
        """
        from pyhostdev.util.statx import read_device_number

        try:
            return read_device_number(os.path.join(self.directory, "fd", self.number))
        except OSError as err:
            if err.errno == errno.ENOMEM:
                raise SysfsError(err.errno, self.directory, "see what a process has open") from err
            return None


class _Signs:
    """What tells of a descriptor that it holds one of some groups."""

    def __init__(self, root: HostRoot, groups: Iterable[int]) -> None:
        self.root = root
        self.numbers: dict[int, int] = {}  # of nodes' devices, on the live host
        self.paths: dict[str, tuple[int, int]] = {}  # of nodes, elsewhere: group and inode
        self.functions: dict[str, int] = {}
        for group in groups:
            self._add_group(group)

    def __bool__(self) -> bool:
        """False when nothing is there that somebody could have open."""
        return bool(self.numbers or self.paths)

    def _add_group(self, group: int) -> None:
        self._add_node(str(group), None, group)
        for member in list_names(self.root, self.root.iommu_group_devices(group), MEMBERS_MAX):
            self.functions[member] = group
            if member.count(":") == 2:
                address = PCIDeviceAddress.parse(member)
                for name in read_device_node_names(self.root, address):
                    self._add_node(f"devices/{name}", address, group)

    def _add_node(self, name: str, address: PCIDeviceAddress | None, group: int) -> None:
        path = os.path.join(self.root.dev_vfio, name)
        if not self.root.is_live:
            facts = _status(self.root, path)
            if facts is not None:
                shown = os.path.join("/", os.path.relpath(path, self.root.path))
                self.paths[shown] = (group, facts.st_ino)
            return
        number = read_node_number(self.root, name, address)
        if number is None:
            facts = _status(self.root, path)
            number = facts.st_rdev if facts is not None and stat.S_ISCHR(facts.st_mode) else None
        if number is not None:
            self.numbers[number] = group

    def group_of(self, descriptor: _Descriptor) -> int | None:
        """Return which of the groups a descriptor holds."""
        if descriptor.text == _VFIO_DEVICE:
            return self._named_group(descriptor.read_info())
        if not descriptor.text.startswith("/"):
            return None
        return self._live_group(descriptor) if self.root.is_live else self._shown_group(descriptor)

    def _live_group(self, descriptor: _Descriptor) -> int | None:
        number = descriptor.read_device_number()
        if number is None:
            return None
        if number not in self.numbers and descriptor.text.endswith(_DELETED):
            return self._named_group(descriptor.read_info())
        return self.numbers.get(number)

    def _shown_group(self, descriptor: _Descriptor) -> int | None:
        text = descriptor.text.removesuffix(_DELETED)
        if not text.startswith(self.root.DEV):
            return None
        info = descriptor.read_info()
        group, inode = self.paths.get(text, (None, 0))
        if group is None or info.get(_INODE[:-1], str(inode)) != str(inode):
            return self._named_group(info)
        return group

    def _named_group(self, info: dict[str, str]) -> int | None:
        """Return the group of the function that the kernel itself names."""
        return self.functions.get(os.path.basename(info.get(_SYSPATH[:-1], "")))


def read_group_holders(root: HostRoot, groups: Iterable[int]) -> dict[int, list[Process]]:
    """
    Return which processes have one of these IOMMU groups open, through its node or through one of its functions.

    Groups that nobody holds are not in the table; processes we may not look into are left out.

    Raises:
        SysfsError: /proc or a group cannot be read.

    Host: reads ``proc/*/fd`` and ``proc/*/fdinfo`` once, when one of the nodes is there
    """
    signs, left = _Signs(root, groups), bounds_of(root).names
    found: dict[int, list[Process]] = {}
    if signs:
        for pid in sorted(int(name) for name in list_names(root, root.proc) if _PID.fullmatch(name)):
            descriptors = list(islice(_descriptors(root, pid), left + 1))
            left -= len(descriptors)
            if left < 0:
                doing = f"see what processes have open, which is more than {bounds_of(root).names} descriptors"
                raise SysfsError(errno.EFBIG, root.proc, doing)
            held = {signs.group_of(descriptor) for descriptor in descriptors} - {None}
            for group in sorted(group for group in held if group is not None):
                found.setdefault(group, []).append(read_process(root, pid))
    return found


def _status(root: HostRoot, path: str) -> os.stat_result | None:
    """
    Return what is at a node's path; nothing where we may not look, as we could not use it either.

    Raises:
        SysfsError: it cannot be told, for root also for want of rights: root could use it.
    """
    try:
        return read_status(root, path)
    except SysfsError as err:
        if err.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
            return None
        raise


def _descriptors(root: HostRoot, pid: int) -> Iterator[_Descriptor]:
    """Yield what a process has open; where its first thread has ended, what the others have."""
    top = os.path.join(root.proc, str(pid))
    found = False
    for descriptor in _descriptors_in(root, top):
        found = True
        yield descriptor
    if not found:
        for thread in _names(root, os.path.join(top, "task")):
            if thread != str(pid):
                yield from _descriptors_in(root, os.path.join(top, "task", thread))


def _descriptors_in(root: HostRoot, top: str) -> Iterator[_Descriptor]:
    for number in _names(root, os.path.join(top, "fd")):
        text = _target(root, os.path.join(top, "fd", number))
        if text:
            yield _Descriptor(root, top, number, text)


def _names(root: HostRoot, directory: str) -> list[str]:
    """Return the names in a process's directory; none when it has ended or is not ours to look into."""
    try:
        return list_names(root, directory)
    except SysfsError as err:
        if err.errno in _NOT_OURS:
            return []
        raise SysfsError(err.errno or 0, directory, "see what a process has open") from err


def _target(root: HostRoot, link: str) -> str:
    """Return where a descriptor's link leads; nothing when it was closed meanwhile."""
    try:
        return read_link(root, link) or ""
    except SysfsError as err:
        if err.errno in _NOT_OURS:
            return ""
        raise SysfsError(err.errno or 0, link, "see what a process has open") from err
