# SPDX-License-Identifier: LGPL-2.1-or-later
"""What changes and opens VFIO device nodes: the live host, or a simulated kernel."""

from __future__ import annotations

from pyhostdev.util.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import TypeGuard

    from pyhostdev.util.devnode import DeviceNode
    from pyhostdev.util.pciaddress import PCIDeviceAddress


class NodeWriter(Protocol):
    """Changes the owner of nodes: the live host, or the simulated kernel, whose nodes are regular files."""

    def read_node(self, path: str) -> DeviceNode | None:
        """
        Return the node at a path with its owner, None if the path does not exist.

        Raises:
            OperationError: the path is not a device node.
            SysfsError: the path cannot be examined.
        """

    def set_node_owner(self, path: str, node: DeviceNode, *, device: PCIDeviceAddress) -> None:
        """
        Give the node at path to the user and the group in ``node``, if it is that node.

        Raises:
            OperationError: the path is another node or something else; nothing was changed.
            SysfsError: the node is gone, or the kernel refuses.
        """

    def is_group_open(self, path: str) -> bool:
        """
        Tell whether the kernel reports the node of a group as open; never call it for a function's own node.

        False proves nothing: a function may be open through its own node, or the group's node may be inaccessible.

        Raises:
            OperationError: the path is not a device node, or has become another one.
            SysfsError: the kernel gives no answer.
        """


class NodeOpener(Protocol):
    """
    Opens the nodes that a guest gets as descriptors.

    An open node of a function makes its unbind wait, so it is only opened for a guest that starts now.
    """

    def open_node(self, path: str, number: int | None, *, device: PCIDeviceAddress) -> int:
        """
        Open a function's own node, and return the descriptor, which holds the function.

        Args:
            number: the node's device number; None if the host does not show it.

        Raises:
            OperationError: the path is another node, or no device node.
            SysfsError: there is no such node, or the kernel refuses.
        """

    def open_iommufd(self, path: str) -> int:
        """
        Open ``dev/iommu``, and return the descriptor, which holds nothing.

        Raises:
            OperationError: the path is not a device node.
            SysfsError: there is no such node, or the kernel refuses.
        """

    def charge_to_process(self, fd: int, path: str) -> None:
        """
        Let an iommufd charge locked memory to each process instead of each user; nothing may use it yet.

        Raises:
            SysfsError: EPERM without CAP_SYS_RESOURCE.
        """


def changes_nodes(writer: object) -> TypeGuard[NodeWriter]:
    """Tell whether a writer has all methods of a NodeWriter."""
    return all(hasattr(writer, name) for name in ("read_node", "set_node_owner", "is_group_open"))


def opens_nodes(writer: object) -> TypeGuard[NodeOpener]:
    """Tell whether a writer has all methods of a NodeOpener."""
    return all(hasattr(writer, name) for name in ("open_node", "open_iommufd", "charge_to_process"))
