# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What attach, detach and finish share: one running guest with its monitor, manager, state and memory limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pyhostdev.hypervisor.hostdev_units import Unit, give_back, mark, read_units
from pyhostdev.qemu.qemu_hotplug.connection import Monitor, QMPConnection
from pyhostdev.qemu.qemu_hotplug.devices import plug_of
from pyhostdev.qemu.qemu_hotplug.memory import GuestMemory
from pyhostdev.qemu.qemu_hotplug.unplugging import UnplugRequests

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_hotplug.livestate import LiveState
    from pyhostdev.qemu.qemu_hotplug.unplugging import Waiting
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.record import Plug

_T = TypeVar("_T")


async def in_thread(action: Callable[..., _T], *args: Any) -> _T:
    """Run a blocking call, such as a write to the kernel, in a thread."""
    return await asyncio.to_thread(action, *args)


class RunningGuest:
    """
    One running guest.

    Args:
        owner: the domain's name in the records.
        pid: of QEMU, to change its memory limit; None leaves that to the caller.
        check: called between steps and while waiting; it may raise an error to stop the change.
        waiting: called with the seconds left while waiting for the guest.
    """

    def __init__(
        self,
        connection: QMPConnection,
        manager: HostdevManager,
        state: LiveState,
        *,
        owner: str,
        pid: int | None = None,
        check: Callable[[], None] = lambda: None,
        waiting: Waiting = lambda left: None,
    ) -> None:
        self.monitor = Monitor(connection)
        self.manager = manager
        self.state = state
        self.owner = owner
        self.check = check
        self.waiting = waiting
        self.memory = GuestMemory(manager.context, pid, state)

    def unplug_requests(self) -> UnplugRequests:
        """Return a context manager that requests removals and waits for them."""
        return UnplugRequests(self.monitor, self.check, self.waiting)

    async def units(self) -> list[Unit]:
        """Return the guest's recorded units."""
        return await in_thread(read_units, self.manager.context, self.owner)

    async def mark(self, unit: Unit, phase: str, plugs: Mapping[PCIDeviceAddress, Plug] | None = None) -> Unit:
        """Record the phase of a unit."""
        return await in_thread(mark, self.manager.context, self.owner, unit, phase, plugs)

    def plugs_of(self, unit: Unit, phase: str) -> dict[PCIDeviceAddress, Plug]:
        """Return the record data of a unit's functions from the live definition."""
        mine = set(unit.addresses)
        hostdevs = [hostdev for hostdev in self.state.load().pci_hostdevs() if hostdev.pci_address in mine]
        return {hostdev.pci_address: plug_of(unit.name, phase, hostdev) for hostdev in hostdevs}

    def ids_of(self, unit: Unit) -> list[str]:
        """Return the ids in QEMU of a unit's functions, function 0 of the guest slot first."""
        if unit.is_hot:
            return unit.ids
        plugs = self.plugs_of(unit, "").values()
        return [alias for _, alias in sorted((plug.guest or "", plug.alias) for plug in plugs if plug.alias)]

    async def complete(self, unit: Unit) -> list[PCIDeviceAddress]:
        """
        Reattach a unit that has left QEMU, then update the live definition and the memory limit.

        Raises:
            DeviceInUseError: its group is still open.
            OperationError, SysfsError: a device could not be reattached; the unit's records stay.
        """
        back = await in_thread(give_back, self.manager.context, self.owner, unit)
        await in_thread(self.forget, unit.name, unit.addresses)
        return back

    def forget(self, unit: str, addresses: Iterable[PCIDeviceAddress]) -> None:
        """Remove devices from the live definition, and lower QEMU's limit of locked memory."""
        gone = set(addresses)
        live = self.state.load()
        left = [h for h in live.hostdevs if not (h.is_pci and h.pci_address in gone)]
        if len(left) != len(live.hostdevs):
            live.hostdevs[:] = left
            self.memory.lower_to(live)
            self.state.save(live)
        else:
            self.memory.lower_to(live)
        self.state.drop_unit(unit)

    def add_to_definition(self, definition_of: Callable[[DomainDef], DomainDef]) -> None:
        """Change the live definition."""
        self.state.save(definition_of(self.state.load()))
