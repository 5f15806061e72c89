# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Hot-plug and unplug host devices of a running guest; the functions of one card form one unit.

    guest = Guest(connection, manager, definition, pid=process.pid)
    plan = manager.host.plan_attach(guest.definition, hostdevs)
    unit = await guest.attach(plan)
    ...
    await guest.detach(unit)

Mirrors: src/qemu/qemu_hotplug.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import ConfigUnsupportedError, DeviceMissingError, RefusedError
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_hotplug.attach import attach
from pyhostdev.qemu.qemu_hotplug.connection import Monitor
from pyhostdev.qemu.qemu_hotplug.detach import detach, named_part, named_unit, refuse_disks
from pyhostdev.qemu.qemu_hotplug.devices import PlannedUnit, plan_unit
from pyhostdev.qemu.qemu_hotplug.finish import Finished, finish
from pyhostdev.qemu.qemu_hotplug.guest import RunningGuest
from pyhostdev.qemu.qemu_hotplug.livestate import MemoryState, live_definition
from pyhostdev.qemu.qemu_hotplug.nodes import close_leftovers
from pyhostdev.qemu.qemu_process.iommufd import host_obstacles
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.hypervisor.hostdev_units import Unit
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
    from pyhostdev.qemu.qemu_hotplug.connection import QMPConnection
    from pyhostdev.qemu.qemu_hotplug.livestate import LiveState
    from pyhostdev.qemu.qemu_hotplug.unplugging import Waiting

TIMEOUT_S = 20.0  # five seconds for the attention button, and time for the guest

__all__ = ["TIMEOUT_S", "Finished", "Guest", "PlannedUnit"]


class Guest:
    """
    A running guest that is controlled over a QMP connection; any program may have started it.

    The caller must allow only one change at a time; ``attach-device`` does so with the guest's lock.

    Args:
        connection: negotiated, with ``execute`` and ``events``.
        definition: of the running domain, as ``define`` returns it; not needed with ``state``.
        capabilities: of the emulator; None uses stored ones.
        state: stores the live definition and the pending units; None keeps them in memory.
        pid: of QEMU, to raise its limit of locked memory; None leaves that to the caller.
        node_owner: QEMU's uid and gid; None means the current user.
        check: called between steps and while waiting; it may raise an error to stop the change.
        waiting: called with the seconds left while waiting for the guest.
    """

    def __init__(
        self,
        connection: QMPConnection,
        manager: HostdevManager,
        definition: DomainDef | None = None,
        *,
        capabilities: QEMUCapabilities | None = None,
        release: LibvirtRelease = DEFAULT_RELEASE,
        state: LiveState | None = None,
        pid: int | None = None,
        node_owner: tuple[int, int] | None = None,
        check: Callable[[], None] = lambda: None,
        waiting: Waiting = lambda left: None,
    ) -> None:
        if state is None:
            assert definition is not None, "definition or state is required"
            state = MemoryState(live_definition(definition))
        self.release = release
        self.state = state
        self.capabilities = capabilities or stored_capabilities(self.definition, release)
        self.node_owner = node_owner
        self._guest = RunningGuest(
            connection, manager, state, owner=str(self.definition.name), pid=pid, check=check, waiting=waiting
        )

    @property
    def definition(self) -> DomainDef:
        """A copy of the live definition, with aliases and addresses."""
        return self.state.load()

    def plan_guest_side(self, plan: Plan) -> PlannedUnit:
        """
        Return the aliases, addresses and commands with which ``attach`` would execute a plan.

        Raises:
            ConfigError, ConfigUnsupportedError: the unit cannot be plugged; the error has libvirt's number.
        """
        host = self._guest.manager.host
        return plan_unit(self.definition, plan, self.capabilities, host, self.release, self.state.spent_ids)

    async def attach(self, plan: Plan, *, timeout_s: float = TIMEOUT_S) -> str:
        """
        Plug the unit of a plan, as a whole or not at all, and return its name.

        Args:
            plan: made by ``Host.plan_attach`` for the current live definition.
            timeout_s: the time for which a rollback waits until the guest releases staged functions.

        Raises:
            ConfigError, RefusedError: nothing was touched.
            OperationError, SysfsError: a step failed; ``rolled_back`` tells whether everything was undone.
        """
        planned = self.plan_guest_side(plan)
        if planned.by_iommufd:
            self._refuse_nodes(planned)
        await attach(self._guest, plan, planned, timeout_s=timeout_s, node_owner=self.node_owner)
        return planned.name

    def _refuse_nodes(self, planned: PlannedUnit) -> None:
        """
        Refuse nodes that the host does not have, or that the connection cannot hand over.

        Raises:
            ConfigUnsupportedError, RefusedError: nothing was touched.
        """
        if not self._guest.monitor.takes_descriptors:
            raise ConfigUnsupportedError("This connection to QEMU cannot hand over the nodes of iommufd")
        obstacles = host_obstacles(planned.definition, self._guest.manager.host)
        if obstacles:
            raise RefusedError(obstacles)

    async def detach(
        self, unit: str | Collection[PCIDeviceAddress | str], *, timeout_s: float = TIMEOUT_S, policy: str = "auto"
    ) -> list[PCIDeviceAddress]:
        """
        Ask the guest to release a unit, wait for every function, and reattach all functions to the host.

        Args:
            unit: its name, or the addresses of all of its functions.
            policy: "off" allows to unplug some functions of a unit alone, as libvirt does, unless others share their
                slot.

        Returns:
            The functions that were reattached.

        Raises:
            DeviceMissingError, RefusedError: the guest was not asked.
            PendingError: the guest was asked but has not released the unit; repeat the call, or call ``finish`` later.
            OperationError: QEMU or the guest refused, or a device could not be reattached.
        """
        if policy == "off" and not isinstance(unit, str):
            addresses = [*map(PCIDeviceAddress.of, unit)]
            named = named_part(await self._guest.units(), addresses, self.definition, self._guest.owner)
        else:
            named = await self._unit(unit)
        refuse_disks(named, self.definition)
        return await detach(self._guest, named, timeout_s=timeout_s)

    async def unit_name(self, addresses: Collection[PCIDeviceAddress | str]) -> str:
        """
        Return the name of the unit that consists of exactly these functions.

        Raises:
            DeviceMissingError, RefusedError: the functions are not exactly those of one unit.
        """
        return (await self._unit(addresses)).name

    async def _unit(self, unit: str | Collection[PCIDeviceAddress | str]) -> Unit:
        units = await self._guest.units()
        if not isinstance(unit, str):
            return named_unit(units, [*map(PCIDeviceAddress.of, unit)], self._guest.owner)
        for known in units:
            if known.name == unit:
                return known
        raise DeviceMissingError(f"Domain '{self._guest.owner}' does not have unit {unit}")

    async def finish(self, *, timeout_s: float = TIMEOUT_S) -> list[Finished]:
        """
        Finish or roll back interrupted changes, and reattach functions that the guest has released; safe at any time.

        Raises:
            OperationError: the connection ended.
        """
        await close_leftovers(self._guest)
        return await finish(self._guest, timeout_s=timeout_s)

    async def close_leftovers(self, connection: QMPConnection | None = None) -> None:
        """
        Close the nodes that a killed process handed over, and that QEMU has not used.

        Args:
            connection: to the monitor that got them, if it is not the guest's.

        Raises:
            OperationError: the connection ended.
        """
        await close_leftovers(self._guest, None if connection is None else Monitor(connection))
