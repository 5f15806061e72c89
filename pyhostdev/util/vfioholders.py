# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The holders of a VFIO device or group, found among the open descriptors of all processes.

A descriptor is recognized by its device number, or by the function that the kernel names in its fdinfo. The text of its
path proves nothing: any user can name a file ``/dev/vfio/14``. Below a root other than ``/``, nodes are regular files
without such numbers: the path is used there and, if fdinfo is available, the node's inode.

Opening a node to see whether it is free proves nothing either, and an open node blocks an unbind.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.iommugroup import MEMBERS_MAX, GroupMember
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.procfs import Process, read_process
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.vfionodes import read_all_device_node_names, read_node_numbers
from pyhostdev.util.virfile import (
    Status,
    bounds_of,
    is_directory,
    list_all_names,
    list_names,
    read_lines,
    read_link,
    read_statuses,
)

_DELETED = " (deleted)"  # appended to the path of a removed file
_VFIO_DEVICE = "anon_inode:[vfio-device]"
_SYSPATH, _INODE = "vfio-device-syspath:", "ino:"  # fdinfo, since Linux 6.18 and 5.14
_FDINFO_MAX = 64  # lines; the relevant ones are among the first
_NOT_OURS = (errno.ESRCH, errno.EACCES, errno.EPERM)  # the process has ended, or this user may not examine it
_PID = r"[0-9]{1,10}"

# A node's name below dev/vfio, the function that it is of (None: the whole group), and the group
_Node = tuple[str, "PCIDeviceAddress | None", int]
Members = Mapping[int, Sequence[GroupMember]]


class _Descriptor(NamedTuple):
    """One open descriptor of a process: its place in /proc, and the target that it shows."""

    root: HostRoot
    directory: str  # of the process or of one of its threads
    number: str
    text: str

    def read_info(self) -> dict[str, str]:
        """
        Return the fields of fdinfo; empty if the descriptor was closed or may not be examined.

        Raises:
            SysfsError: it cannot be read.
        """
        path = os.path.join(self.directory, "fdinfo", self.number)
        try:
            lines = list(islice(read_lines(self.root, path), _FDINFO_MAX))
        except SysfsError as err:
            if err.errno in _NOT_OURS:
                return {}
            raise SysfsError(err.errno or 0, path, "list the open files of a process") from err
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def read_device_number(self) -> int | None:
        """
        Return the number of the open device; None if the file is not a character device.

        A file on an untrusted file system may fail with any error; it is not a VFIO device. It is never waited for.
        """
        from pyhostdev.util.statx import read_device_number

        try:
            return read_device_number(os.path.join(self.directory, "fd", self.number))
        except OSError as err:
            if err.errno == errno.ENOMEM:
                raise SysfsError(err.errno, self.directory, "list the open files of a process") from err
            return None


class _Signs:
    """The marks by which a descriptor of one of these groups is recognized."""

    def __init__(self, root: HostRoot, groups: Iterable[int], known: Members = MappingProxyType({})) -> None:
        self.root = root
        self.known = known
        self.numbers: dict[int, int] = {}  # device number of a node to its group, on the live host
        self.paths: dict[str, tuple[int, int]] = {}  # path of a node to its group and inode, elsewhere
        self.functions: dict[str, int] = {}
        asked = list(groups)
        nodes: list[_Node] = [(str(group), None, group) for group in asked]
        nodes += self._functions_nodes(asked)
        if self.root.is_live:
            self._add_live(nodes)
        else:
            self._add_shown(nodes)

    def __bool__(self) -> bool:
        """False if none of the groups has a node that could be open."""
        return bool(self.numbers or self.paths)

    def _functions_nodes(self, groups: Sequence[int]) -> list[_Node]:
        """Note the functions of the groups, and return the nodes of those that may have one."""
        unread = [group for group in groups if group not in self.known]
        listed = list_all_names(self.root, [self.root.iommu_group_devices(group) for group in unread], MEMBERS_MAX)
        members = dict(self.known)
        for group, names in zip(unread, listed, strict=True):
            members[group] = [GroupMember(name, None, None, False) for name in names]
        owners: list[tuple[PCIDeviceAddress, int]] = []
        has_nodes = self.root.is_live or is_directory(self.root, self.root.dev_vfio_devices)
        for group in groups:
            for name, address, _, is_vfio in members[group]:
                self.functions[name] = group
                if has_nodes and (is_vfio or address is None) and name.count(":") == 2:
                    owners.append((PCIDeviceAddress.parse(name), group))
        names_of = read_all_device_node_names(self.root, [address for address, _ in owners])
        return [
            (f"devices/{name}", address, group)
            for (address, group), names in zip(owners, names_of, strict=True)
            for name in names
        ]

    def _add_shown(self, nodes: Sequence[_Node]) -> None:
        """Learn the nodes below a root other than /: by their paths."""
        for (name, _, group), status in zip(nodes, self._statuses([name for name, _, _ in nodes]), strict=True):
            if status is not None:
                self.paths[f"{self.root.DEV}vfio/{name}"] = (group, status.inode)

    def _add_live(self, nodes: Sequence[_Node]) -> None:
        """Learn the nodes of the live host: by their numbers."""
        numbers = read_node_numbers(self.root, [(name, address) for name, address, _ in nodes])
        unknown = [name for (name, _, _), number in zip(nodes, numbers, strict=True) if number is None]
        seen = dict(zip(unknown, self._statuses(unknown), strict=True))
        for (name, _, group), number in zip(nodes, numbers, strict=True):
            status = seen.get(name)
            if number is not None:
                self.numbers[number] = group
            elif status is not None and stat.S_ISCHR(status.mode):
                self.numbers[status.device] = group

    def _statuses(self, names: Sequence[str]) -> list[Status | None]:
        """
        Return the status of each node; None if this user may not see it and so could not use it.

        Raises:
            SysfsError: a status cannot be read; for root also if permission is denied, as root could use the node.
        """
        ignored_errnos = (errno.EACCES, errno.EPERM) if os.geteuid() != 0 else ()
        top = self.root.dev_vfio
        return read_statuses(self.root, [f"{top}/{name}" for name in names], ignored_errnos)

    def group_of(self, descriptor: _Descriptor) -> int | None:
        """Return the group that a descriptor holds, None for any other descriptor."""
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
        """Return the group of the function that the kernel names in fdinfo."""
        return self.functions.get(os.path.basename(info.get(_SYSPATH[:-1], "")))


def read_group_holders(
    root: HostRoot, groups: Iterable[int], known: Members = MappingProxyType({})
) -> dict[int, list[Process]]:
    """
    Return the processes that have one of these IOMMU groups open, through its node or one of its functions.

    Groups without holders are left out, and so are processes that this user may not examine.

    Args:
        known: the members of groups that were read before; at least one member of each may be bound to a VFIO driver.

    Raises:
        SysfsError: /proc or a group cannot be read.

    Host: reads ``proc/*/fd`` and ``proc/*/fdinfo`` once, if one of the nodes exists
    """
    signs, left = _Signs(root, groups, known), bounds_of(root).names
    most = (0, 0)
    found: dict[int, list[Process]] = {}
    if signs:
        for pid in sorted(int(name) for name in list_names(root, root.proc) if re.fullmatch(_PID, name)):
            descriptors = list(islice(_descriptors(root, pid), left + 1))
            left -= len(descriptors)
            most = max(most, (len(descriptors), pid))
            if left < 0:
                raise _too_many(root, most[1])
            held = {signs.group_of(descriptor) for descriptor in descriptors} - {None}
            for group in sorted(group for group in held if group is not None):
                found.setdefault(group, []).append(read_process(root, pid))
    return found


def _too_many(root: HostRoot, pid: int) -> SysfsError:
    """Return the error for more descriptors than are searched; any user can open so many, so it names a process."""
    many = f"more than {bounds_of(root).names} descriptors, the most of them of {read_process(root, pid)}"
    return SysfsError(errno.EFBIG, root.proc, f"list the open files of all processes, {many}")


def _descriptors(root: HostRoot, pid: int) -> Iterator[_Descriptor]:
    """Yield the open descriptors of a process; if its first thread has ended, those of its other threads."""
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
    """Return the names in a process's directory; empty if the process has ended or may not be examined."""
    try:
        return list_names(root, directory)
    except SysfsError as err:
        if err.errno in _NOT_OURS:
            return []
        raise SysfsError(err.errno or 0, directory, "list the open files of a process") from err


def _target(root: HostRoot, link: str) -> str:
    """Return the target of a descriptor's link; empty if the descriptor was closed."""
    try:
        return read_link(root, link) or ""
    except SysfsError as err:
        if err.errno in _NOT_OURS:
            return ""
        raise SysfsError(err.errno or 0, link, "list the open files of a process") from err
