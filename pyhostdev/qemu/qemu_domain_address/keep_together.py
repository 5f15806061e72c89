# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One guest slot for one host device.

libvirt gives every function of a multifunction device a slot of its own. A guest that should see the
device as it is on the host wants them together: same slot, same function numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigError
from pyhostdev.util.pciaddress import FUNCTION_MAX, PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_addr import DomainPCIAddressSet
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts


class HostDeviceSlots:
    """
    Chooses the addresses of assigned functions such that those of one host device share a slot.

    A function keeps its number where that is free; the lowest one of a device becomes function 0 when
    the guest does not get function 0 itself, since a slot without one is not seen. SR-IOV VFs share a slot
    on the host by their numbering only and are placed one by one.
    """

    def __init__(
        self,
        dom: DomainDef,
        host: HostFacts | None,
        addrs: DomainPCIAddressSet,
        group_of: Callable[[Any], int],
    ) -> None:
        self.addrs = addrs
        self.host = host
        self.group_of = group_of
        self._numbers: dict[PCIDeviceAddress, int] = {}
        self._joined: set[PCIDeviceAddress] = set()
        self._slots: dict[tuple[PCIDeviceAddress, int], PCIDeviceAddress] = {}
        assigned = [hostdev for hostdev in dom.pci_hostdevs() if hostdev.is_assigned]
        self._number(assigned)
        for hostdev in assigned:
            self._learn(hostdev)

    def _key(self, hostdev: Any) -> tuple[PCIDeviceAddress, int]:
        """Return what functions must have in common to share a slot: the device and the group."""
        return hostdev.pci_address.with_function(0), self.group_of(hostdev)

    def _number(self, hostdevs: list[DomainHostdevDef]) -> None:
        """Choose the guest function of every host function."""
        devices: dict[tuple[PCIDeviceAddress, int], list[PCIDeviceAddress]] = {}
        for hostdev in hostdevs:
            devices.setdefault(self._key(hostdev), []).append(hostdev.pci_address)
        for functions in devices.values():
            self._numbers.update((source, source.function) for source in functions)
            self._numbers[min(functions)] = 0

    def _learn(self, hostdev: Any) -> None:
        """Remember the slot of a function whose address the user chose: the others go there."""
        if hostdev.info.pci is not None and self._is_shared(hostdev.pci_address):
            self._slots.setdefault(self._key(hostdev), hostdev.info.pci.pci)

    def _is_shared(self, source: PCIDeviceAddress) -> bool:
        """Return False for a function that the host knows to be its device's only one, or a VF."""
        read = getattr(self.host, "pci_device", None)
        function = None if read is None else read(source)
        return function is None or function.is_multifunction() is not False

    def place(self, hostdev: Any, flags: int) -> PCIDeviceAddress:
        """
        Take an address for a function and return it.

        Raises:
            ConfigError: no slot is left.
        """
        source, group = hostdev.pci_address, self.group_of(hostdev)
        if not self._is_shared(source):
            return self.addrs.reserve_next(flags, group)
        key = self._key(hostdev)
        address = None
        if key in self._slots:
            address = self._join(self._slots[key], self._numbers[source], flags, group)
        if address is not None:
            self._joined.add(source)
        else:
            address = self.addrs.reserve_next(flags, group, self._numbers[source])
            self._slots[key] = address
        return address

    def has_joined(self, hostdev: Any) -> bool:
        """Tell whether a function shares the slot that another function of its device has."""
        return hostdev.pci_address in self._joined

    def _join(self, slot: PCIDeviceAddress, wanted: int, flags: int, group: int) -> PCIDeviceAddress | None:
        """Take the wanted function of a slot, or its first free one; None when nothing fits there."""
        taken = self.addrs.buses[slot.bus].slots.get(slot.slot, 0) if slot.bus < len(self.addrs.buses) else 0
        for function in (wanted, *range(FUNCTION_MAX + 1)):
            if taken >> function & 1:
                continue
            address = slot.with_function(function)
            try:
                self.addrs.reserve(address, flags, group)
            except ConfigError:
                return None
            return address
        return None
