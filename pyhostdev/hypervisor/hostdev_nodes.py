# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Nodes below /dev/vfio for the user of a guest: find the needed nodes, give them to the user, restore their owner.

A node exists only while a device is bound to a VFIO driver. So nodes are given last and restored first. Their original
owner is on disk before the first node is given. A guest gets the nodes of its assigned devices and of their groups, not
those of functions that are only declared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from pyhostdev.errors import ConfigUnsupportedError, OperationError
from pyhostdev.util.devnode import replaced
from pyhostdev.util.iommugroup import read_group
from pyhostdev.util.nodewriter import NodeWriter, changes_nodes
from pyhostdev.util.record import GivenNode, Record
from pyhostdev.util.transaction import log, run_logged
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.vfionodes import read_device_node_names, read_node_number

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_plan import Request
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.sysfs_writer import SysfsWriter

Owner = tuple[int, int]  # uid and gid


class NodeKeeper:
    """Gives the nodes of one host to users and restores them; the caller holds the locks of their devices."""

    def __init__(self, root: HostRoot, writer: SysfsWriter) -> None:
        self.root = root
        self.writer = writer

    def _nodes(self) -> NodeWriter:
        if not changes_nodes(self.writer):
            raise ConfigUnsupportedError("The writer of this host cannot change the owner of device nodes")
        return self.writer

    def path(self, name: str) -> str:
        """Return a node's path from its name below ``dev/vfio``."""
        return os.path.join(self.root.dev_vfio, name)

    def nodes_to_give(
        self, requests: Iterable[Request], owner: Owner, records: Mapping[PCIDeviceAddress, Record]
    ) -> dict[PCIDeviceAddress, tuple[GivenNode, ...]]:
        """
        Return the nodes to record for each device, for the nodes that the guest needs; nothing is changed.

        Raises:
            ConfigUnsupportedError: the writer cannot change the owner of nodes.
            OperationError, SysfsError: a node is missing, or its path is something else.
        """
        from pyhostdev.hypervisor.hostdev_plan import ASSIGNED  # a release needs no plan

        known = {(n.name, n.inode): n for r in records.values() if r.is_active for n in r.nodes}
        found = {}
        for request in requests:
            names = self._names(request.address) if request.role == ASSIGNED else []
            nodes = [self._planned_nodes(name, request.address, owner) for name in names]
            found[request.address] = tuple(_original_owner(node, known.get((node.name, node.inode))) for node in nodes)
        return found

    def _names(self, address: PCIDeviceAddress) -> list[str]:
        """Return the names of the nodes through which a guest can use a device; empty without a VFIO driver."""
        devices = read_device_node_names(self.root, address)
        group = read_group(self.root, address)
        if not devices or group is None:
            return []
        own = [f"devices/{name}" for name in devices if os.path.lexists(self.path(f"devices/{name}"))]
        return [str(group), *own]

    def _planned_nodes(self, name: str, address: PCIDeviceAddress, owner: Owner) -> GivenNode:
        path = self.path(name)
        node = self._nodes().read_node(path)
        if node is None:
            raise OperationError(f"Device {address} has no node '{path}' to give to the user", address=address)
        number = read_node_number(self.root, name, address)
        if self.root.is_live and number != node.number:
            raise OperationError(f"Node '{path}' does not belong to device {address}", address=address)
        return GivenNode(name, *node, *owner)

    def give(self, record: Record) -> None:
        """
        Give a device's nodes to their new owner.

        Raises:
            OperationError, SysfsError: a node was replaced, is gone, or the kernel refuses.
        """
        for node in record.nodes:
            path = self.path(node.name)
            if self._nodes().read_node(path) != node.given:
                self._nodes().set_node_owner(path, node.given, device=record.address)

    def take_back(self, record: Record, others: Iterable[Record]) -> list[str]:
        """
        Restore the owners of a device's nodes, and return messages about nodes that were left alone.

        Nodes that are gone, recreated, or changed by another program are left alone, and so are nodes in one of the
        other records.

        Raises:
            OperationError, SysfsError: the owner of a node could not be restored.
        """
        shared = {(node.name, node.inode) for other in others for node in other.nodes}
        messages: list[str] = []
        for node in record.nodes:
            if (node.name, node.inode) not in shared:
                messages += self._taken_back(record, node)
        return messages

    def _taken_back(self, record: Record, node: GivenNode) -> Iterator[str]:
        path = self.path(node.name)
        now = self._nodes().read_node(path)
        if now is None or now == node.before:
            return
        if not now.is_same(node.before):
            yield str(replaced(path, record.address))
        elif now != node.given:
            yield f"Node '{path}' was given to {now.uid}:{now.gid} by another program, and was left alone"
        else:
            self._nodes().set_node_owner(path, node.before, device=record.address)

    def try_to_restore(self, records: Iterable[Record], all_records: Iterable[Record]) -> None:
        """Restore the nodes of several devices before these change drivers; failures are logged and retried later."""
        meant = list(records)
        others = [other for other in all_records if other.is_active and other not in meant]
        for record in meant:
            if record.nodes:
                run_logged(self.take_back, record, others)


def log_messages(messages: Iterable[str]) -> str:
    """Log messages about nodes left alone, and return them as the end of a sentence."""
    words = list(messages)
    for text in words:
        log().warning("%s", text)
    return "".join(f"; {text}" for text in words)


def _original_owner(node: GivenNode, known: GivenNode | None) -> GivenNode:
    """Return a node with its first owner, if an earlier prepare of this guest has already given it to the user."""
    return node if known is None else node._replace(uid=known.uid, gid=known.gid, mode=known.mode)
