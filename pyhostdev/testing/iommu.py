# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The IOMMU groups of a simulated host: members, owner of the DMA, the nodes below dev/vfio.

A user such as QEMU holds a group by an flock on its node, so the group is released however the user's process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os

from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.devicenodes import bind_node, bound_iommufd, iommufd_number, is_open
from pyhostdev.testing.simdevice import find_device, list_devices
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.testing.kernelstate import KernelState
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.testing.tree import Tree


class IOMMUGroups:
    """The groups of one host, read from its tree at each call."""

    __slots__ = ("root", "state", "tree")

    def __init__(self, tree: Tree, state: KernelState) -> None:
        self.tree = tree
        self.root = tree.root
        self.state = state

    def member_drivers(self, group: int) -> dict[str, str | None]:
        """Return the name and driver of each member, PCI function or not."""
        directory = self.root.iommu_group_devices(group)
        names = self.tree.list_dir(directory)
        if names:
            return {name: self.tree.link_name(os.path.join(directory, name, "driver")) for name in names}
        # A sparse tree may only have the links in the members' directories.
        found = (device for device in list_devices(self.tree) if device.group == group)
        return {str(device.address): device.driver for device in found}

    def host_users(self, group: int) -> list[str]:
        """Return the members whose driver uses the group's DMA for the host."""
        drivers = self.member_drivers(group).items()
        return [name for name, driver in drivers if driver and self._owns_dma(driver)]

    def vfio_members(self, group: int) -> list[str]:
        """Return the members bound to vfio drivers."""
        drivers = self.member_drivers(group).items()
        return [name for name, d in drivers if d and self.state.driver(d).kind == "vfio"]

    def _owns_dma(self, driver: str) -> bool:
        return self.state.driver(driver).kind == "host"

    def is_held(self, group: int) -> bool:
        """True while the group's node is open."""
        try:
            fd = self.tree.open_file(self.root.vfio_group(group))
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def is_busy(self, group: int) -> bool:
        """True while the group's node cannot be opened: it is open, or a function is bound to an iommufd."""
        return self.is_held(group) or bool(self.bound_iommufds(group))

    def bound_iommufds(self, group: int) -> dict[str, int]:
        """Return the members that are bound to an iommufd, with its number."""
        if not self.tree.has_entry(self.root.dev_vfio_devices):
            return {}
        members = [find_device(self.tree, name) for name in self.member_drivers(group)]
        found = {str(device.address): bound_iommufd(device) for device in members if device is not None}
        return {name: number for name, number in found.items() if number is not None}

    def is_device_held(self, device: SimDevice) -> bool:
        """True while a user of the group has this device open, or a process has its own node open."""
        if is_open(device):
            return True
        group = device.group
        if group is None or str(device.address) not in self.state.held.get(str(group), ()):
            return False
        return self.is_held(group)

    def claim_for_host(self, device: SimDevice, driver: str) -> None:
        """
        Claim the group's DMA for an ordinary driver.

        Raises:
            Refusal: EBUSY while user space owns the DMA.

        Source: iommu_device_use_default_domain (drivers/iommu/iommu.c), Linux 5.19
        """
        group = device.group
        if group is not None and self._owns_dma(driver) and self.is_busy(group):
            raise Refusal(errno.EBUSY)

    def add_node(self, group: int) -> None:
        """Create the group's node with its first vfio device."""
        path = self.root.vfio_group(group)
        if not self.tree.has_entry(path):
            self.tree.make_dirs(self.root.dev_vfio)
            self.tree.put_file(path, b"", mode=0o600)

    def drop_node(self, group: int) -> None:
        """Remove the group's node with its last vfio device; a device whose removal is stuck still counts."""
        removing = [entry for entry in self.state.pending if entry.stage == "remove"]
        stuck = {entry.device for entry in removing if self.state.driver(entry.driver).kind == "vfio"}
        for name, driver in self.member_drivers(group).items():
            if name in stuck or (driver and self.state.driver(driver).kind == "vfio"):
                return
        self.tree.drop_file(self.root.vfio_group(group))

    def open(self, group: int) -> int:
        """
        Open a group's node and attach it to a container, as QEMU does.

        Returns:
            A descriptor that holds the group.

        Raises:
            Refusal: ENOENT without a node, EBUSY if the node is already open or a member is bound to an iommufd, EPERM
                if the host uses a member.
        """
        if self.bound_iommufds(group):
            raise Refusal(errno.EBUSY)
        try:
            fd = self.tree.open_file(self.root.vfio_group(group), os.O_RDWR)
        except FileNotFoundError:
            raise Refusal(errno.ENOENT) from None
        try:
            self._claim(fd, group)
        except Refusal:
            os.close(fd)
            raise
        return fd

    def _claim(self, fd: int, group: int) -> None:
        """Lock a group's open node, as the only one; refuse if the host uses a member."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(errno.EBUSY) from None
        if self.host_users(group):
            raise Refusal(errno.EPERM)

    def bind_iommufd(self, device: SimDevice, fd: int, iommufd: int) -> None:
        """
        Bind an open node of a function to an iommufd.

        Raises:
            Refusal: EBUSY while the group's node is open, EINVAL if the function is bound already, EPERM if the host
                uses a member or another iommufd has one.

        Source: vfio_df_ioctl_bind_iommufd (drivers/vfio/device_cdev.c), iommufd_device_bind
        """
        group = device.group
        assert group is not None
        bound = self.bound_iommufds(group)
        if self.is_held(group):
            raise Refusal(errno.EBUSY)
        if str(device.address) in bound:
            raise Refusal(errno.EINVAL)
        if self.host_users(group) or set(bound.values()) - {iommufd_number(iommufd)}:
            raise Refusal(errno.EPERM)
        bind_node(fd, iommufd)
