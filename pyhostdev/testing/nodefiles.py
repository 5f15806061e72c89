# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Device nodes of a simulated host: ordinary files, whose content says whose they would be.

An empty one is root's with mode 0600, as the kernel makes it. Nobody needs rights to simulate another owner, and a
snapshot of the tree shows him.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError, SysfsError
from pyhostdev.testing.faults import Refusal
from pyhostdev.testing.simdevice import put_file, read_file
from pyhostdev.util.devnode import DeviceNode, replaced

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_MODE = 0o600


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
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(facts.st_mode):
            raise OperationError(f"'{path}' is not a device node")
        uid, gid = _owner(path)
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


def _owner(path: str) -> tuple[int, int]:
    words = (read_file(path) or b"").partition(b"\n")[0].decode().split(":")
    return (int(words[0]), int(words[1])) if len(words) == 2 else (0, 0)


def put_owner(path: str, value: bytes) -> None:
    """
    Let the kernel change the owner of a node.

    Raises:
        Refusal: ENOENT when there is no such node.
    """
    if not os.path.isfile(path) or os.path.islink(path):
        raise Refusal(errno.ENOENT)
    put_file(path, b"" if value == b"0:0" else value + b"\n")
