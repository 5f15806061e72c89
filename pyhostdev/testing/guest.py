# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A simulated QEMU that holds a group, and the stages of its end.

An exiting process releases its memory before it closes its descriptors. The group is released with its last reference,
which other parts of the kernel may keep after the process has disappeared from /proc.
"""

from __future__ import annotations

import os

from pyhostdev.errors import SysfsError
from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.procfiles import SimulatedProcess
from pyhostdev.util.deprecation import warn_renamed
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.testing.protocols import GroupKernel
    from pyhostdev.util.pciaddress import PCIDeviceAddress


class SimulatedGuest:
    """
    Hold a group as QEMU does: the node, its container, and devices of the group (by default all on vfio drivers).

    Raises:
        SysfsError: ENOENT without a node, EBUSY if the node is already open, EPERM if the group is not viable.
    """

    def __init__(self, kernel: GroupKernel, group: int, devices: Sequence[PCIDeviceAddress] | None = None) -> None:
        self.kernel = kernel
        self.group = group
        path = kernel.root.vfio_group(group)
        try:
            with kernel.entered() as core:
                self.fd = core.groups.open(group)
                names = core.groups.vfio_members(group) if devices is None else [str(a) for a in devices]
                core.state.held[str(group)] = names
        except Refusal as refusal:
            raise SysfsError(refusal.errnum, path, f"open IOMMU group {group}") from None
        self.process = SimulatedProcess(kernel.root, [path], names)

    def begin_exit(self) -> None:
        """Start to exit after a kill; everything is still open."""
        self.process.begin_exit()

    def begin_to_end(self) -> None:
        """Do the same as ``begin_exit``: its deprecated name."""
        warn_renamed("begin_to_end", "begin_exit")
        self.begin_exit()

    def close_all(self) -> None:
        """Become a zombie; the kernel still holds the group."""
        self.process.close_all()

    def vanish(self) -> None:
        """Disappear from /proc; the kernel still holds the group."""
        self.process.vanish()

    def let_go(self) -> None:
        """Release the last reference of the group, and finish the writes that waited for it."""
        os.close(self.fd)
        with self.kernel.entered() as core:
            core.state.held.pop(str(self.group), None)
