# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A simulated QEMU that holds a group, and the stages of its end.

A process closes its descriptors in the middle of its exit, after its memory has gone; the group itself is let go with
its last reference, which others in the kernel may have a while longer than /proc shows the process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.errors import SysfsError
from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.procfiles import SimulatedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.testing.protocols import GroupKernel
    from pyhostdev.util.pciaddress import PCIDeviceAddress


class SimulatedGuest:
    """
    Hold a group as QEMU does: the node, its container, and devices in it (all on vfio drivers by default).

    Raises:
        SysfsError: ENOENT without node, EBUSY when it is open already, EPERM when the group is not viable.
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

    def begin_to_end(self) -> None:
        """Be killed: the process is on its way out, with everything open still."""
        self.process.begin_to_end()

    def close_all(self) -> None:
        """Be a zombie; the kernel still holds the group."""
        self.process.close_all()

    def vanish(self) -> None:
        """Be gone from /proc; the kernel still holds the group."""
        self.process.vanish()

    def let_go(self) -> None:
        """Let the kernel close the group for the last time, and finish who waited for that."""
        os.close(self.fd)
        with self.kernel.entered() as core:
            core.state.held.pop(str(self.group), None)
