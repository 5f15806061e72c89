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
    from collections.abc import Iterable

    from pyhostdev.conf.domain_addr import DomainPCIAddressSet
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.qemu.qemu_address_flags import HostFacts


class HostDeviceSlots:
    """
    Chooses the addresses of assigned functions such that those of one host device share a slot.

    A function keeps its number where that is free; the lowest one of a device becomes function 0 when
    the guest does not get function 0 itself, since a slot without one is not seen. SR-IOV VFs share a slot
    on the host by their numbering only and are placed one by one.
    """

    def __init__(self, dom: DomainDef, host: HostFacts | None, addrs: DomainPCIAddressSet) -> None:
        self.addrs = addrs
        self.host = host
        self._numbers: dict[PCIDeviceAddress, int] = {}
        self._slots: dict[tuple[PCIDeviceAddress, int], PCIDeviceAddress] = {}
        assigned = [hostdev for hostdev in dom.pci_hostdevs() if hostdev.is_assigned]
        self._number(hostdev.pci_address for hostdev in assigned)
        for hostdev in assigned:
            self._learn(hostdev)

    def _number(self, sources: Iterable[PCIDeviceAddress]) -> None:
        """Choose the guest function of every host function."""
        devices: dict[PCIDeviceAddress, list[PCIDeviceAddress]] = {}
        for source in sources:
            devices.setdefault(source.with_function(0), []).append(source)
        for functions in devices.values():
            lowest = min(functions)
            self._numbers.update((source, source.function) for source in functions)
            self._numbers[lowest] = 0

    def _learn(self, hostdev: Any) -> None:
        """Remember the slot of a function whose address the user chose: the others go there."""
        if hostdev.info.pci is not None and self._is_shared(hostdev.pci_address):
            key = (hostdev.pci_address.with_function(0), 0)
            self._slots.setdefault(key, hostdev.info.pci.pci)

    def _is_shared(self, source: PCIDeviceAddress) -> bool:
        """Return False for a function that the host knows to be its device's only one, or a VF."""
        ask = getattr(self.host, "is_multifunction", None)
        return ask is None or ask(source) is not False

    def place(self, hostdev: Any, flags: int, isolation_group: int) -> PCIDeviceAddress:
        """
        Take an address for a function and return it.

        Raises:
            ConfigError: no slot is left.
        """
        source = hostdev.pci_address
        if not self._is_shared(source):
            return self.addrs.reserve_next(flags, isolation_group)
        key = (source.with_function(0), isolation_group)
        slot = self._slots.get(key) or self._slots.get((key[0], 0))
        if slot is not None:
            address = self._join(slot, self._numbers[source], flags, isolation_group)
            if address is not None:
                return address
        address = self.addrs.reserve_next(flags, isolation_group, self._numbers[source])
        self._slots[key] = address
        return address

    def _join(
        self, slot: PCIDeviceAddress, wanted: int, flags: int, isolation_group: int
    ) -> PCIDeviceAddress | None:
        """Take the wanted function of a slot, or its first free one; None when nothing fits there."""
        taken = self.addrs.buses[slot.bus].slots.get(slot.slot, 0) if slot.bus < len(self.addrs.buses) else 0
        for function in (wanted, *range(FUNCTION_MAX + 1)):
            if taken >> function & 1:
                continue
            address = slot.with_function(function)
            try:
                self.addrs.reserve(address, flags, isolation_group)
            except ConfigError:
                return None
            return address
        return None
