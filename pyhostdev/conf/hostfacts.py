# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What definitions, plans and command lines ask of a host; ``Host`` answers, and so does a stand-in of a test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyhostdev.errors import SysfsError

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.virpci import PCIDevice


class HostFacts(Protocol):
    """The facts of a host that are read when they are asked for."""

    @property
    def root(self) -> HostRoot:
        """The paths of the host."""

    def pci_device(self, address: PCIDeviceAddress, /) -> PCIDevice | None:
        """Return a function, None when the host does not have it."""

    def is_pci_express(self, address: PCIDeviceAddress, /) -> bool | None:
        """Tell whether a function is PCI Express; None when the host cannot tell."""

    def iommu_group(self, address: PCIDeviceAddress, /) -> int | None:
        """Return the number of a function's IOMMU group; None without one."""

    def has_driver(self, name: str, /) -> bool | None:
        """Tell whether a driver is registered; None when the host cannot tell."""

    def has_module(self, name: str, /) -> bool | None:
        """Tell whether a module can be loaded; None when the host cannot tell."""

    def is_in_flight(self, address: PCIDeviceAddress, /) -> bool:
        """Tell whether a write to a function has not come back from the kernel."""


def is_multifunction(host: HostFacts, address: PCIDeviceAddress) -> bool | None:
    """Return what a host shows of a function; None for one that is unknown, missing or unreadable."""
    try:
        function = host.pci_device(address)
        return None if function is None else function.is_multifunction()
    except SysfsError:
        return None
