# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The device nodes of a simulated host: regular files whose contents name their owner.

An empty file belongs to root with mode 0600, as the kernel creates it. So simulating another owner needs no
privileges, and a snapshot of the tree shows the owner.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError, SysfsError
from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.tree import Tree
from pyhostdev.util.devnode import DeviceNode, replaced

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_MODE = 0o600
_OWNER = re.compile(rb"([0-9]{1,10}):([0-9]{1,10})\n?")


class SimulatedNodes:
    """The NodeWriter half of a simulated kernel; the kernel provides ``_answer``."""

    root: HostRoot

    def _answer(self, path: str, value: bytes, device: str) -> str:
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

    def set_node_owner(self, path: str, node: DeviceNode, *, device: PCIDeviceAddress) -> None:
        """
        Give the node at path to the user and the group in ``node``, if it is that node.

        Raises:
            OperationError: the path is another node or something else; nothing was changed.
            SysfsError: the node is gone, or the kernel refuses.
        """
        now = self.read_node(path)
        if now is not None and not now.is_same(node):
            raise replaced(path, device)
        value = f"{node.uid}:{node.gid}"
        result = self._answer(os.path.relpath(path, self.root.path), value.encode(), str(device))
        if result != "ok":
            errnum = getattr(errno, result, errno.EIO)
            raise SysfsError(errnum, path, f"give a node to {value}", address=device)


def _owner(tree: Tree, path: str) -> tuple[int, int]:
    """Return the owner of a node; a node with invalid contents belongs to root."""
    found = _OWNER.fullmatch(tree.read_file(path) or b"")
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


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
