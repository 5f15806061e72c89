# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Put the functions of one host device into one guest slot.

libvirt gives every function of a multifunction device a separate slot. With keep_together, the guest sees the device
as the host does: one slot, and the same function numbers.
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
    Chooses the addresses of assigned functions so that those of one host device share a slot.

    A function keeps its function number if that is free. If the guest does not get function 0, the lowest function
    becomes function 0, because a guest does not scan a slot without one. SR-IOV VFs may share a slot on the host
    without being parts of one device, so each is placed separately.
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
        """Return the key that functions of one slot share: the host device and the isolation group."""
        return hostdev.pci_address.with_function(0), self.group_of(hostdev)

    def _number(self, hostdevs: list[DomainHostdevDef]) -> None:
        """Choose the function number in the guest of every host function."""
        devices: dict[tuple[PCIDeviceAddress, int], list[PCIDeviceAddress]] = {}
        for hostdev in hostdevs:
            devices.setdefault(self._key(hostdev), []).append(hostdev.pci_address)
        for functions in devices.values():
            self._numbers.update((source, source.function) for source in functions)
            self._numbers[min(functions)] = 0

    def _learn(self, hostdev: Any) -> None:
        """Record the slot of a function whose address the user chose; its siblings go there."""
        if hostdev.info.pci is not None and self._is_shared(hostdev.pci_address):
            self._slots.setdefault(self._key(hostdev), hostdev.info.pci.pci)

    def _is_shared(self, source: PCIDeviceAddress) -> bool:
        """Return False if the host shows that the function is a VF or its device's only function."""
        read = getattr(self.host, "pci_device", None)
        function = None if read is None else read(source)
        return function is None or function.is_multifunction() is not False

    def place(self, hostdev: Any, flags: int) -> PCIDeviceAddress:
        """
        Reserve an address for a function and return it.

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
        """Return True if a function shares the slot of another function of its device."""
        return hostdev.pci_address in self._joined

    def _join(self, slot: PCIDeviceAddress, wanted: int, flags: int, group: int) -> PCIDeviceAddress | None:
        """Reserve the wanted function of a slot, or its first free one; return None if that is impossible."""
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
