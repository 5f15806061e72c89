# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The descriptors for host devices with iommufd, which QEMU inherits.

So QEMU's user needs no access to the nodes. An open node of a function makes its unbind wait until the last copy of
the descriptor is closed. So the nodes are opened right before QEMU starts, after all devices were moved; our copies
are closed as soon as QEMU has its own, and in any case before a device is given back.

Mirrors: qemuProcessOpenVfioFds, qemuProcessOpenIommuFd (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigUnsupportedError, OperationError, SysfsError
from pyhostdev.util.nodewriter import NodeOpener, opens_nodes
from pyhostdev.util.undo import UndoOnExit
from pyhostdev.util.vfionodes import read_device_node_names, read_node_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.pciaddress import PCIDeviceAddress


class VFIODescriptors(UndoOnExit):
    """
    The open nodes of one guest: those of its functions, then ``/dev/iommu``; on exit our copies are closed.

    Args:
        addresses: the assigned functions that use iommufd.
        iommufd: an open ``/dev/iommu`` of the caller; None opens one if ``needed``.
        needed: True gives QEMU an iommufd, with or without functions.
        opens_iommufd: False for a QEMU that has its iommufd already.

    Raises:
        ConfigUnsupportedError: the writer of the host opens no nodes.
        OperationError, SysfsError: a node is missing, was replaced or cannot be opened; none stays open.
    """

    def __init__(
        self,
        host: Host,
        addresses: Sequence[PCIDeviceAddress],
        *,
        iommufd: int | None = None,
        needed: bool = True,
        opens_iommufd: bool = True,
    ) -> None:
        super().__init__()
        self.host = host
        self.addresses = addresses
        self.iommufd = iommufd
        self.needed = needed
        self.opens_iommufd = opens_iommufd
        self._fds: dict[PCIDeviceAddress | None, int] = {}

    def _begin(self, undo: contextlib.ExitStack) -> None:
        if not self.needed:
            return
        for address in self.addresses:
            self._keep(undo, address, self._open_node(address))
        if self.opens_iommufd:
            self._keep(undo, None, self._open_iommufd())

    def close(self) -> None:
        """Close our copies; those that QEMU has inherited stay."""
        self._undo.close()

    def fd(self, address: PCIDeviceAddress | None) -> int:
        """Return the descriptor of a function's node, of ``/dev/iommu`` for None."""
        return self._fds[address]

    @property
    def fds(self) -> list[int]:
        """All of them."""
        return list(self._fds.values())

    def _keep(self, opened: contextlib.ExitStack, address: PCIDeviceAddress | None, fd: int) -> None:
        opened.callback(os.close, fd)
        self._fds[address] = fd

    def _opener(self) -> NodeOpener:
        writer = self.host.writer
        if not opens_nodes(writer):
            raise ConfigUnsupportedError("The writer of this host cannot open device nodes")
        return writer

    def _open_node(self, address: PCIDeviceAddress) -> int:
        root = self.host.root
        names = read_device_node_names(root, address)
        if not names:
            raise OperationError(
                f"Device {address} has no node for iommufd: it is not bound to a VFIO driver", address=address
            )
        name = f"devices/{names[0]}"
        path = os.path.join(root.dev_vfio, name)
        number = read_node_number(root, name, address)
        try:
            return self._opener().open_node(path, number, device=address)
        except SysfsError as err:
            if err.errno != errno.ENOENT:
                raise
            text = f"Device {address} has no node '{path}': the kernel was built without VFIO device nodes"
            raise OperationError(text, reason="iommufd-missing", address=address) from err

    def _open_iommufd(self) -> int:
        """Return a copy of the caller's descriptor, or open one and charge locked memory per process, not per user."""
        if self.iommufd is not None:
            return os.dup(self.iommufd)
        path, opener = self.host.root.dev_iommu, self._opener()
        fd = opener.open_iommufd(path)
        try:
            opener.charge_to_process(fd, path)
        except SysfsError as err:
            if err.errno != errno.EPERM:
                os.close(fd)
                raise
            logging.getLogger(__name__).warning("%s: all guests of one user share its limit", err)
        except BaseException:
            os.close(fd)
            raise
        return fd
