# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The device nodes of a simulated host: regular files whose contents name their owner.

An empty file belongs to root with mode 0600, as the kernel creates it. So simulating another owner needs no
privileges, and a snapshot of the tree shows the owner.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat

from pyhostdev.errors import OperationError, SysfsError
from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.devicenodes import open_iommufd, open_node
from pyhostdev.testing.simdevice import SimDevice
from pyhostdev.testing.tree import Tree
from pyhostdev.util.devnode import DeviceNode, replaced
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.memlock import MemoryLimit

OPEN, CHARGE = b"open", b"rlimit-mode=1"  # in a kernel's trace: a node was opened, an iommufd's mode was set
_MODE = 0o600
_OWNER = rb"([0-9]{1,10}):([0-9]{1,10})\n?"


class SimulatedNodes:
    """The NodeWriter, NodeOpener and LimitWriter part of a simulated kernel; the kernel provides ``_answer``."""

    root: HostRoot

    def _answer(self, path: str, value: bytes, device: str) -> str:
        raise NotImplementedError

    def entered(self) -> AbstractContextManager[Any]:
        """Hold the lock of the tree and yield its bus."""
        raise NotImplementedError

    def read_node(self, path: str) -> DeviceNode | None:
        """
        Return the node at a path with its owner, None if the path does not exist.

        Raises:
            OperationError: the path is not a device node.
        """
        tree = Tree(self.root)
        facts = tree.status(path)
        if facts is None:
            return None
        if not stat.S_ISREG(facts.st_mode):
            raise OperationError(f"'{path}' is not a device node")
        uid, gid = _owner(tree, path)
        return DeviceNode(0, facts.st_ino, uid, gid, _MODE)

    def set_node_owner(self, path: str, node: DeviceNode, *, device: PCIDeviceAddress | str) -> None:
        """
        Give the node at path to the user and the group in ``node``, if it is that node.

        Raises:
            OperationError: the path is another node or something else; nothing was changed.
            SysfsError: the node is gone, or the kernel refuses.
        """
        device = PCIDeviceAddress.of(device)
        now = self.read_node(path)
        if now is not None and not now.is_same(node):
            raise replaced(path, device)
        value = f"{node.uid}:{node.gid}"
        result = self._answer(os.path.relpath(path, self.root.path), value.encode(), str(device))
        if result != "ok":
            errnum = getattr(errno, result, errno.EIO)
            raise SysfsError(errnum, path, f"give a node to {value}", address=device)

    def open_node(self, path: str, number: int | None, *, device: PCIDeviceAddress | str) -> int:
        """
        Open a function's own node, and return the descriptor, which holds the function.

        Raises:
            SysfsError: there is no such node.
        """
        device = PCIDeviceAddress.of(device)
        return self._open(path, "open a node", device)

    def open_iommufd(self, path: str) -> int:
        """
        Open ``dev/iommu``, and return the descriptor, which holds nothing.

        Raises:
            SysfsError: the host has no iommufd.
        """
        return self._open(path, "open iommufd", None)

    def charge_to_process(self, fd: int, path: str) -> None:
        """
        Let an iommufd charge locked memory to each process instead of each user.

        Raises:
            SysfsError: EPERM without the privilege for it.
        """
        doing = "charge locked memory to each process"
        self._check(self._answer(os.path.relpath(path, self.root.path), CHARGE, ""), path, doing, None)

    def _open(self, path: str, doing: str, device: PCIDeviceAddress | None) -> int:
        self._check(self._answer(os.path.relpath(path, self.root.path), OPEN, str(device or "")), path, doing, device)
        try:
            with self.entered() as core:
                tree = core.tree
                return open_iommufd(tree) if path == tree.root.dev_iommu else open_node(tree, path)
        except Refusal as refusal:
            raise SysfsError(refusal.errnum, path, doing, address=device) from None

    def _check(self, result: str, path: str, doing: str, device: PCIDeviceAddress | None) -> None:
        if result != "ok":
            raise SysfsError(getattr(errno, result, errno.EIO), path, doing, address=device)

    def bind_iommufd(self, device: PCIDeviceAddress | str, fd: int, iommufd: int) -> None:
        """
        Bind an open node to an iommufd, as QEMU does with the descriptors that it inherits.

        Raises:
            SysfsError: EBUSY while the group's node is open, EINVAL if the function is bound already, EPERM if the host
                uses a member of the group or another iommufd has one.
        """
        device = PCIDeviceAddress.of(device)
        try:
            with self.entered() as core:
                core.groups.bind_iommufd(SimDevice(core.tree, device), fd, iommufd)
        except Refusal as refusal:
            doing = "bind a node to an iommufd"
            raise SysfsError(refusal.errnum, self.root.dev_iommu, doing, address=device) from None

    @contextlib.contextmanager
    def open_devices(self, devices: Sequence[PCIDeviceAddress | str], *, bound: bool = True) -> Iterator[list[int]]:
        """
        Hold functions as QEMU does by iommufd: their own nodes, bound to one iommufd; or not bound yet.

        Returns:
            The descriptors: those of the nodes, and that of the iommufd.

        Raises:
            SysfsError: there is no node, or the node cannot be bound.
        """
        from pyhostdev.testing.procfiles import SimulatedProcess  # verbs open no devices

        addresses = [*map(PCIDeviceAddress.of, devices)]
        process = SimulatedProcess(self.root, [])
        with contextlib.ExitStack() as opened:
            opened.callback(process.vanish)
            fds: list[int] = []
            for device in addresses:
                path = self._node_path(device)
                fds.append(self.open_node(path, None, device=device))
                opened.callback(self._close, fds[-1])
                process.add_node(path, function=str(device))
            fds.append(self.open_iommufd(self.root.dev_iommu))
            opened.callback(os.close, fds[-1])
            process.add_descriptor("/dev/iommu", {})
            for device, fd in zip(addresses if bound else (), fds, strict=False):
                self.bind_iommufd(device, fd, fds[-1])
            yield fds

    def _node_path(self, device: PCIDeviceAddress) -> str:
        names = Tree(self.root).list_dir(os.path.join(self.root.pci_device(device), "vfio-dev"))
        return os.path.join(self.root.dev_vfio_devices, next(iter(names), "none"))

    def _close(self, fd: int) -> None:
        """Close a node, and finish the writes that waited for it."""
        os.close(fd)
        with self.entered():
            pass

    def set_memlock(self, pid: int, limit: MemoryLimit) -> None:
        """
        Set both limits of a process's locked memory.

        Raises:
            OperationError: the process has ended.
        """
        from pyhostdev.testing.procfiles import put_memory_limit

        tree = Tree(self.root)
        if not tree.is_directory(os.path.join(self.root.proc, str(pid))):
            raise OperationError(f"Process {pid} has ended")
        put_memory_limit(tree, pid, limit.soft, limit.hard)


def _owner(tree: Tree, path: str) -> tuple[int, int]:
    """Return the owner of a node; a node with invalid contents belongs to root."""
    found = re.fullmatch(_OWNER, tree.read_file(path) or b"")
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


def react_on_node(tree: Tree, path: str, value: bytes) -> None:
    """
    Check that a node can be opened, or change its owner.

    Raises:
        Refusal: ENOENT if the node does not exist.
    """
    if value not in (OPEN, CHARGE):
        put_owner(tree, path, value)
    elif not tree.has_entry(path):
        raise Refusal(errno.ENOENT)


def put_owner(tree: Tree, path: str, value: bytes) -> None:
    """
    Change the owner of a node, as the kernel does.

    Raises:
        Refusal: ENOENT if the node does not exist.
    """
    facts = tree.status(path)
    if facts is None or not stat.S_ISREG(facts.st_mode):
        raise Refusal(errno.ENOENT)
    tree.put_file(path, b"" if value == b"0:0" else value + b"\n")
