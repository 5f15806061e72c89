# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Device nodes of a simulated host: ordinary files, whose content says whose they would be.

An empty one is root's with mode 0600, as the kernel makes it. Nobody needs rights to simulate another owner, and a
snapshot of the tree shows him.
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
    """What a simulated kernel answers as a NodeWriter; ``_answer`` is the kernel's."""

    root: HostRoot

    def _answer(self, path: str, value: bytes, device: str) -> str:
        raise NotImplementedError

    def read_node(self, path: str) -> DeviceNode | None:
        """
        Return which node is there and whose it is, None when there is none.

        Raises:
            OperationError: something else is in its place.
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
        Give the node at path to the user and the group that ``node`` names, if it is that node.

        Raises:
            OperationError: another node or something else is in its place; nothing was changed.
            SysfsError: it has gone, or the kernel refuses.
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
    """Return whose a node is; one that says something else is root's."""
    found = _OWNER.fullmatch(tree.read_file(path) or b"")
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


def put_owner(tree: Tree, path: str, value: bytes) -> None:
    """
    Let the kernel change the owner of a node.

    Raises:
        Refusal: ENOENT when there is no such node.
    """
    facts = tree.status(path)
    if facts is None or not stat.S_ISREG(facts.st_mode):
        raise Refusal(errno.ENOENT)
    tree.put_file(path, b"" if value == b"0:0" else value + b"\n")
