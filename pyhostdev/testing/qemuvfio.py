# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The host side of a simulated QEMU: groups and functions of a simulated kernel that it opens, and the memory it locks.

Source: hw/vfio/common.c, hw/vfio/pci.c (QEMU 7.2), and measurements with Linux 6.1
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.devicenodes import node_device, nodes_of
from pyhostdev.testing.procfiles import SimulatedProcess
from pyhostdev.testing.qemuslots import QMPRefusal
from pyhostdev.testing.simdevice import find_device

if TYPE_CHECKING:
    from pyhostdev.testing.protocols import GroupKernel

UNLIMITED = -1
_NEWER = (10, 0)


class HostSide:
    """
    The VFIO groups and functions that a QEMU has open on a simulated host.

    Args:
        memory: bytes of guest memory that the first function locks; 0 is not checked.
    """

    def __init__(self, kernel: GroupKernel, memory: int = 0) -> None:
        self.kernel = kernel
        self.memory = memory
        self.process = SimulatedProcess(kernel.root, [])
        self.process.put_limit(UNLIMITED, UNLIMITED)
        self._fds: dict[int, int] = {}
        self._open: dict[int, list[str]] = {}
        self._bound: dict[str, tuple[str, int]] = {}  # id of a device: its function, and the node's descriptor

    @property
    def functions(self) -> list[str]:
        """The functions that are open, sorted."""
        by_group = (name for names in self._open.values() for name in names)
        return sorted([*by_group, *(function for function, _ in self._bound.values())])

    def bind(self, device_id: str, fd: int, iommufd: int) -> str:
        """
        Bind the function whose node a descriptor is to an iommufd, and return its address.

        Raises:
            QMPRefusal: in QEMU's words; the node is closed.
        """
        with self.kernel.entered() as core:
            device = node_device(core.tree, fd)
            name = str(device.address)
            try:
                core.groups.bind_iommufd(device, fd, iommufd)
            except Refusal as refusal:
                os.close(fd)
                words = f"error bind device fd={fd} to iommufd={iommufd}: {os.strerror(refusal.errnum)}"
                raise QMPRefusal(f"vfio {name}: {words}") from None
        self._bound[device_id] = (name, fd)
        self.process.add_node(nodes_of(device)[0], function=name)
        return name

    def unbind(self, device_id: str) -> None:
        """Close a node; writes that waited for it continue."""
        function, fd = self._bound.pop(device_id)
        with self.kernel.entered() as core:
            device = find_device(core.tree, function)
            for node in nodes_of(device) if device is not None else ():
                self.process.drop_node(node)
            os.close(fd)
        with self.kernel.entered():
            pass  # the kernel finishes what waited

    def open(self, function: str, version: tuple[int, int]) -> None:
        """
        Open a function, and its group with the first one.

        Raises:
            QMPRefusal: in QEMU's words.
        """
        with self.kernel.entered() as core:
            device = find_device(core.tree, function)
            if device is None:
                where = f"/sys/bus/pci/devices/{function}"
                raise QMPRefusal(f"vfio {where}: no such host device: No such file or directory")
            if device.group is None:
                raise QMPRefusal(f"vfio {function}: no iommu_group found: No such file or directory")
            self._open_group(core, function, device.group, version)
            names = self._open[device.group]
            if function in names:
                raise QMPRefusal(f"vfio {function}: device is already attached")
            if function not in core.groups.vfio_members(device.group):
                self._close_group(core, device.group)
                raise QMPRefusal(
                    f"vfio {function}: error getting device from group {device.group}: No such device\nVerify all "
                    f"devices in group {device.group} are bound to vfio-<bus> or pci-stub and not already in use"
                )
            names.append(function)
            core.state.held[str(device.group)] = list(names)

    def _open_group(self, core: object, function: str, group: int, version: tuple[int, int]) -> None:
        if group in self._fds:
            return
        self._check_memory(function, group, version)
        try:
            fd = core.groups.open(group)  # type: ignore[attr-defined]
        except Refusal as refusal:
            raise _refused(function, group, refusal.errnum, version) from None
        self._fds[group], self._open[group] = fd, []
        self.process.add_node(self.kernel.root.vfio_group(group))

    def _check_memory(self, function: str, group: int, version: tuple[int, int]) -> None:
        limit = self.process.read_limit()
        if self._fds or not self.memory or limit == UNLIMITED or limit >= self.memory:
            return
        call = "vfio_container_dma_map" if version >= _NEWER else "vfio_dma_map"
        raise QMPRefusal(
            f"vfio {function}: failed to setup container for group {group}: memory listener initialization failed: "
            f"Region pc.ram: {call}(0x0, 0x0, 0x0, 0x0) = -12 (Cannot allocate memory)"
        )

    def close(self, function: str) -> None:
        """Close a function, and its group with the last one; writes that waited for it continue."""
        group = next(group for group, names in self._open.items() if function in names)
        with self.kernel.entered() as core:
            self._open[group].remove(function)
            core.state.held[str(group)] = list(self._open[group])
            self._close_group(core, group)
        with self.kernel.entered():
            pass  # the kernel finishes the waiting writes

    def _close_group(self, core: object, group: int) -> None:
        """Close a group without functions."""
        if not self._open[group]:
            os.close(self._fds.pop(group))
            del self._open[group]
            core.state.held.pop(str(group), None)  # type: ignore[attr-defined]
            self.process.drop_node(self.kernel.root.vfio_group(group))

    def end(self) -> None:
        """End the process: everything is closed, and it disappears."""
        for device_id in list(self._bound):
            self.unbind(device_id)
        for names in list(self._open.values()):
            for function in list(names):
                self.close(function)
        self.process.vanish()


def _refused(function: str, group: int, errnum: int, version: tuple[int, int]) -> QMPRefusal:
    node = f"/dev/vfio/{group}"
    if errnum == errno.EPERM:
        return QMPRefusal(f"vfio {function}: group {group} is not viable")
    if version >= _NEWER:
        return QMPRefusal(f"vfio {function}: Could not open '{node}': {os.strerror(errnum)}")
    return QMPRefusal(f"vfio {function}: failed to open {node}: {os.strerror(errnum)}")
