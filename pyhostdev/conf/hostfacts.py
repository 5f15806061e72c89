# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The facts about a host that definitions, plans and command lines need; ``Host`` and test doubles implement it.
"""

from __future__ import annotations

from pyhostdev.errors import SysfsError
from pyhostdev.util.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.virpci import PCIDevice


class HostFacts(Protocol):
    """The facts of a host; each call reads the host."""

    @property
    def root(self) -> HostRoot:
        """The paths of the host."""

    def pci_device(self, address: PCIDeviceAddress, /) -> PCIDevice | None:
        """Return a function, None if the host does not have it."""

    def is_pci_express(self, address: PCIDeviceAddress, /) -> bool | None:
        """Return True if a function is PCI Express; None if unknown."""

    def iommu_group(self, address: PCIDeviceAddress, /) -> int | None:
        """Return the number of a function's IOMMU group; None without one."""

    def has_driver(self, name: str, /) -> bool | None:
        """Return True if a driver is registered; None if unknown."""

    def has_module(self, name: str, /) -> bool | None:
        """Return True if a module can be loaded; None if unknown."""

    def is_in_flight(self, address: PCIDeviceAddress, /) -> bool:
        """Return True if a write to a function has not returned from the kernel."""


def is_multifunction(host: HostFacts, address: PCIDeviceAddress) -> bool | None:
    """Return True if a function belongs to a multifunction device; None if unknown, missing or unreadable."""
    try:
        function = host.pci_device(address)
        return None if function is None else function.is_multifunction()
    except SysfsError:
        return None
