# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The interfaces between parts of the simulated kernel that would otherwise import each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pyhostdev.testing.iommu import IOMMUGroups
    from pyhostdev.testing.kernelstate import KernelState
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.testing.tree import Tree
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress


class FaultyKernel(Protocol):
    """The kernel that a fault acts on."""

    def block_next(self, *, lands: bool) -> None:
        """Let the next write hang; without lands it never takes effect."""

    def kill(self) -> None:
        """End the writing process."""

    def vanish(self, address: PCIDeviceAddress) -> None:
        """Remove a function from the bus at once."""

    def foreign(self) -> Any:
        """Return the same kernel for another program."""


class GroupKernel(Protocol):
    """The kernel whose groups a guest opens."""

    root: HostRoot

    def entered(self) -> AbstractContextManager[Any]:
        """Hold the lock of the tree and yield its bus."""


class Bus(Protocol):
    """The PCI bus that functions leave and return to, with its drivers."""

    tree: Tree
    root: HostRoot
    state: KernelState
    groups: IOMMUGroups
    waiting_for: str | None

    def detach(self, device: SimDevice) -> None:
        """Unbind a function."""

    def force_off(self, device: SimDevice, driver: str) -> None:
        """Unbind a removed function, without waiting for its driver."""

    def attach_new(self, device: SimDevice) -> None:
        """Offer a new function to the drivers."""

    def tell(self, action: str, device: SimDevice) -> None:
        """Send an event."""
