# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Device nodes of VFIO: which one a node is, whose it is, and giving it to another user.

A node is opened by its path once, never through a link, and compared with what is expected of it; what is changed is
the node that was compared, whatever has happened to the path since.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from pyhostdev.errors import OperationError, SysfsError

if TYPE_CHECKING:
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_CANNOT_ASK = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENODEV, errno.ENXIO)  # a container's cgroup, say
_AT_EMPTY_PATH = 0x1000  # linux/fcntl.h


class DeviceNode(NamedTuple):
    """
    What stat(2) says of a node.

    ``number`` is its device's (st_rdev), ``inode`` its own: a node that was made again has another one.
    """

    number: int
    inode: int
    uid: int
    gid: int
    mode: int

    def is_same(self, other: DeviceNode) -> bool:
        """Tell whether both are one node, whoever owns it."""
        return (self.number, self.inode) == (other.number, other.inode)


@runtime_checkable
class NodeWriter(Protocol):
    """What changes the owner of nodes: the live host, or the simulated kernel, whose nodes are ordinary files."""

    def read_node(self, path: str) -> DeviceNode | None:
        """
        Return which node is there and whose it is, None when there is none.

        Raises:
            OperationError: something else is in its place.
            SysfsError: it cannot be looked at.
        """

    def set_node_owner(self, path: str, node: DeviceNode, *, device: PCIDeviceAddress) -> None:
        """
        Give the node at path to the user and the group that ``node`` names, if it is that node.

        Raises:
            OperationError: another node or something else is in its place; nothing was changed.
            SysfsError: it has gone, or the kernel refuses.
        """

    def is_group_open(self, path: str) -> bool:
        """
        Tell whether the kernel says that the node of a group is open; a function's own node is never to be asked.

        False proves nothing: a function may be open by its own node, or the kernel may not be asked from here.

        Raises:
            OperationError: something else is in its place.
            SysfsError: it cannot be asked.
        """


class LiveNodes:
    """The nodes of the host that we run on; a NodeWriter."""

    def read_node(self, path: str) -> DeviceNode | None:
        """
        Return which node is there and whose it is, None when there is none.

        Raises:
            OperationError: something else is in its place.
            SysfsError: it cannot be looked at.
        """
        try:
            with _opened(path) as (_, node):
                return node
        except SysfsError as err:
            if err.errno == errno.ENOENT:
                return None
            raise

    def set_node_owner(self, path: str, node: DeviceNode, *, device: PCIDeviceAddress) -> None:
        """
        Give the node at path to the user and the group that ``node`` names, if it is that node.

        Raises:
            OperationError: another node or something else is in its place; nothing was changed.
            SysfsError: it has gone, or the kernel refuses.
        """
        with _opened(path) as (fd, now):
            if not now.is_same(node):
                raise replaced(path, device)
            _chown(fd, path, node, device)

    def is_group_open(self, path: str) -> bool:
        """
        Tell whether the kernel says that the node of a group is open; a function's own node is never to be asked.

        False proves nothing: a function may be open by its own node, or the kernel may not be asked from here.

        Raises:
            OperationError: something else is in its place.
            SysfsError: it cannot be asked.

        Source: vfio_group_fops_open (drivers/vfio/group.c)
        """
        try:
            with _opened(path) as (_, node):
                return _answers_busy(path, node)
        except SysfsError as err:
            if err.errno == errno.ENOENT:
                return False
            raise


def replaced(path: str, device: PCIDeviceAddress) -> OperationError:
    """Return the error for a node that is another one than expected."""
    return OperationError(f"Node '{path}' of device {device} is another one now, and was left alone", address=device)


@contextmanager
def _opened(path: str) -> Iterator[tuple[int, DeviceNode]]:
    """Open a node without opening its device, which would hold it, and say which one it is."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as err:
        raise SysfsError(err.errno or errno.EIO, path, "look at a device node") from err
    try:
        facts = os.fstat(fd)
        if not stat.S_ISCHR(facts.st_mode):
            raise OperationError(f"'{path}' is not a device node")
        mode = stat.S_IMODE(facts.st_mode)
        yield fd, DeviceNode(facts.st_rdev, facts.st_ino, facts.st_uid, facts.st_gid, mode)
    finally:
        os.close(fd)


def _answers_busy(path: str, node: DeviceNode) -> bool:
    """Open a node for a moment, if it is still the one that was looked at."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in (errno.EBUSY, *_CANNOT_ASK):
            return err.errno == errno.EBUSY
        raise SysfsError(err.errno or errno.EIO, path, "ask whether a group is open") from err
    try:
        facts = os.fstat(fd)
        if (facts.st_rdev, facts.st_ino) != (node.number, node.inode):
            raise OperationError(f"'{path}' is another node now")
    finally:
        os.close(fd)
    return False


def _chown(fd: int, path: str, node: DeviceNode, device: PCIDeviceAddress) -> None:
    """
    Change the owner of what a descriptor of O_PATH stands for; ``os.chown`` has no AT_EMPTY_PATH.

    Source: fchownat(2)
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    owner = (ctypes.c_uint(node.uid), ctypes.c_uint(node.gid))
    if libc.fchownat(fd, b"", *owner, _AT_EMPTY_PATH) != 0:
        doing = f"give a node to {node.uid}:{node.gid}"
        raise SysfsError(ctypes.get_errno(), path, doing, address=device)
