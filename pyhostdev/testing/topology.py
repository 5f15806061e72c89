# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The topology of a described host: the bridge above each function, and the VFs of each PF.
"""

from __future__ import annotations

from pyhostdev.testing.driverspec import VMD
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.testing.hostspec import FunctionSpec, HostSpec
    from pyhostdev.util.pciaddress import PCIDeviceAddress

VMD_DOMAIN = 0x10000


class Topology:
    """The relations between a host's functions as they were described when it was made, found in one pass."""

    __slots__ = ("_bridges", "_firsts", "_makers", "_vfs", "host")

    def __init__(self, host: HostSpec) -> None:
        self.host = host
        self._bridges: dict[tuple[int, int], FunctionSpec] = {}
        self._firsts: dict[tuple[int, int], PCIDeviceAddress] = {}
        self._makers: list[FunctionSpec] = []
        self._vfs: dict[PCIDeviceAddress, list[FunctionSpec]] = {}
        for address, spec in host.functions.items():
            if spec.bridge is not None:
                self._bridges.setdefault((address.domain, spec.bridge[0]), spec)
            bus = (address.domain, address.bus)
            self._firsts[bus] = min(address, self._firsts.get(bus, address))
            if spec.driver == VMD and address.domain < VMD_DOMAIN:
                self._makers.append(spec)
            if spec.physfn is not None:
                self._vfs.setdefault(spec.physfn, []).append(spec)

    def bridge_above(self, spec: FunctionSpec) -> FunctionSpec | None:
        """Return the bridge that leads to a function's bus; a VF is where its PF is."""
        if spec.physfn is not None:
            return self.bridge_above(self.host.functions[spec.physfn])
        if spec.parent is not None:
            return self.host.functions[spec.parent]
        return self._bridges.get((spec.address.domain, spec.address.bus))

    def domain_maker(self, domain: int) -> FunctionSpec | None:
        """
        Return the volume management device that made a PCI domain; they are numbered from 0x10000.

        Source: vmd_find_free_domain (drivers/pci/controller/vmd.c)
        """
        number = domain - VMD_DOMAIN
        return self._makers[number] if 0 <= number < len(self._makers) else None

    def virtual_functions(self, spec: FunctionSpec) -> list[FunctionSpec]:
        """Return the described VFs of a PF, in the order of their index."""
        return self._vfs.get(spec.address, [])

    def is_first_on_bus(self, spec: FunctionSpec) -> bool:
        """True for the function that the kernel finds first on its bus."""
        return spec.address == self._firsts[spec.address.domain, spec.address.bus]
