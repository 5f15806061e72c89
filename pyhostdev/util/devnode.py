# SPDX-License-Identifier: LGPL-2.1-or-later
"""
VFIO device nodes: identify a node, read its owner, give it to another user.

A node is opened by its path once, never through a link, and compared with the expected node. Changes apply to the
node that was compared, even if the path has changed since.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pyhostdev.errors import OperationError, SysfsError
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_CANNOT_ASK = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENODEV, errno.ENXIO)  # e.g. a container's cgroup
_IOMMU_OPTION_REQUEST = ord(";") << 8 | 0x87  # linux/iommufd.h: _IO(IOMMUFD_TYPE, IOMMUFD_CMD_OPTION)
_IOMMU_OPTION = struct.Struct("=IIHHIQ")  # size, option, operation, reserved, object, value
_RLIMIT_MODE, _OPTION_SET, _PER_PROCESS = 0, 0, 1
_AT_EMPTY_PATH = 0x1000  # linux/fcntl.h


class DeviceNode(NamedTuple):
    """
    What stat(2) reports for a node.

    ``number`` is the device number (st_rdev), ``inode`` the node's own number: a recreated node has another inode.
    """

    number: int
    inode: int
    uid: int
    gid: int
    mode: int

    def is_same(self, other: DeviceNode) -> bool:
        """Tell whether both are the same node, whatever its owner."""
        return (self.number, self.inode) == (other.number, other.inode)


class LiveNodes:
    """The nodes of the live host; a NodeWriter and a NodeOpener."""

    def read_node(self, path: str) -> DeviceNode | None:
        """
        Return the node at a path with its owner, None if the path does not exist.

        Raises:
            OperationError: the path is not a device node.
            SysfsError: the path cannot be examined.
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
        Give the node at path to the user and the group in ``node``, if it is that node.

        Raises:
            OperationError: the path is another node or something else; nothing was changed.
            SysfsError: the node is gone, or the kernel refuses.
        """
        with _opened(path) as (fd, now):
            if not now.is_same(node):
                raise replaced(path, device)
            _chown(fd, path, node, device)

    def is_group_open(self, path: str) -> bool:
        """
        Tell whether the kernel reports the node of a group as open; never call it for a function's own node.

        False proves nothing: a function may be open through its own node, or the group's node may be inaccessible.

        Raises:
            OperationError: the path is not a device node, or has become another one.
            SysfsError: the kernel gives no answer.

        Source: vfio_group_fops_open (drivers/vfio/group.c)
        """
        try:
            with _opened(path) as (_, node):
                return _is_busy(path, node)
        except SysfsError as err:
            if err.errno == errno.ENOENT:
                return False
            raise

    def open_node(self, path: str, number: int | None, *, device: PCIDeviceAddress) -> int:
        """
        Open a function's own node, and return the descriptor, which holds the function.

        Args:
            number: the node's device number; None if the host does not show it.

        Raises:
            OperationError: the path is another node, or no device node.
            SysfsError: there is no such node, or the kernel refuses.
        """
        with _opened(path) as (fd, node):
            if node.number != number:
                raise replaced(path, device)
            return _reopened(fd, path, "open the node of a function", device)

    def open_iommufd(self, path: str) -> int:
        """
        Open ``dev/iommu``, and return the descriptor, which holds nothing.

        Raises:
            OperationError: the path is not a device node.
            SysfsError: there is no such node, or the kernel refuses.
        """
        with _opened(path) as (fd, _):
            return _reopened(fd, path, "open iommufd", None)

    def charge_to_process(self, fd: int, path: str) -> None:
        """
        Let an iommufd charge locked memory to each process instead of each user; nothing may use it yet.

        Raises:
            SysfsError: EPERM without CAP_SYS_RESOURCE.

        Source: struct iommu_option (include/uapi/linux/iommufd.h), Linux 6.2
        """
        import fcntl

        request = _IOMMU_OPTION.pack(_IOMMU_OPTION.size, _RLIMIT_MODE, _OPTION_SET, 0, 0, _PER_PROCESS)
        try:
            fcntl.ioctl(fd, _IOMMU_OPTION_REQUEST, request)
        except OSError as err:
            doing = "charge locked memory to each process"
            raise SysfsError(err.errno or errno.EIO, path, doing) from err


def replaced(path: str, device: PCIDeviceAddress) -> OperationError:
    """Return the error for a node that is not the expected one."""
    return OperationError(f"Node '{path}' of device {device} was replaced, and was left alone", address=device)


@contextmanager
def _opened(path: str) -> Iterator[tuple[int, DeviceNode]]:
    """Open a node with O_PATH, which does not hold its device, and yield the descriptor and the node."""
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


def _reopened(fd: int, path: str, doing: str, device: PCIDeviceAddress | None) -> int:
    """Open the very node that an O_PATH descriptor names; the path may lead elsewhere by now."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise SysfsError(err.errno or errno.EIO, path, doing, address=device) from err


def _is_busy(path: str, node: DeviceNode) -> bool:
    """Open a node briefly, if it is still the node that was examined, and tell whether it is busy."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in (errno.EBUSY, *_CANNOT_ASK):
            return err.errno == errno.EBUSY
        raise SysfsError(err.errno or errno.EIO, path, "ask whether a group is open") from err
    try:
        facts = os.fstat(fd)
        if (facts.st_rdev, facts.st_ino) != (node.number, node.inode):
            raise OperationError(f"'{path}' was replaced by another node")
    finally:
        os.close(fd)
    return False


def _chown(fd: int, path: str, node: DeviceNode, device: PCIDeviceAddress) -> None:
    """
    Change the owner of the file of an O_PATH descriptor; ``os.chown`` does not support AT_EMPTY_PATH.

    Source: fchownat(2)
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    owner = (ctypes.c_uint(node.uid), ctypes.c_uint(node.gid))
    if libc.fchownat(fd, b"", *owner, _AT_EMPTY_PATH) != 0:
        doing = f"give a node to {node.uid}:{node.gid}"
        raise SysfsError(ctypes.get_errno(), path, doing, address=device)
