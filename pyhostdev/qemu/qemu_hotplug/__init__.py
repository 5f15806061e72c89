# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Host devices that a running guest gets and lets go of: a card as one.

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
from pyhostdev.errors import ConfigUnsupportedError, DeviceMissingError
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_hotplug.attach import attach
from pyhostdev.qemu.qemu_hotplug.detach import detach, named_part, named_unit
from pyhostdev.qemu.qemu_hotplug.devices import PlannedUnit, plan_unit
from pyhostdev.qemu.qemu_hotplug.finish import Finished, finish
from pyhostdev.qemu.qemu_hotplug.guest import RunningGuest
from pyhostdev.qemu.qemu_hotplug.livestate import MemoryState, live_definition

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
    from pyhostdev.util.pciaddress import PCIDeviceAddress

TIMEOUT_S = 20.0  # five seconds of a blinking button, and what the guest takes

__all__ = ["TIMEOUT_S", "Finished", "Guest", "PlannedUnit"]


class Guest:
    """
    A running guest whose QEMU is reached over a connection, whichever program started it.

    One change at a time: the caller excludes others, as ``attach-device`` does with the guest's lock.

    Args:
        connection: negotiated, with ``execute`` and ``events``.
        definition: of the running domain, complete as ``define`` returns it; not needed with ``state``.
        capabilities: of the emulator; the stored ones where None.
        state: where the live definition and pending units are kept; in this object's memory where None.
        pid: QEMU's process, whose limit of locked memory is raised; None leaves that to the caller.
        node_owner: uid and gid that QEMU runs as, if not as the current user.
        check: called between steps and while waiting; an error that it raises stops the change there.
        waiting: called while the guest is waited for, with the seconds that are left.
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
            assert definition is not None, "a guest needs its definition, or the state that has it"
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
            ConfigError, ConfigUnsupportedError: with libvirt's number for the same fault.
        """
        host = self._guest.manager.host
        return plan_unit(self.definition, plan, self.capabilities, host, self.release)

    async def attach(self, plan: Plan, *, timeout_s: float = TIMEOUT_S) -> str:
        """
        Plug the unit of a plan, as a whole or not at all, and return its name.

        Args:
            plan: made by ``Host.plan_attach`` for the present live definition.
            timeout_s: how long a rollback waits until the guest lets go of staged functions.

        Raises:
            ConfigError, RefusedError: nothing was touched.
            OperationError, SysfsError: a step failed; ``rolled_back`` tells whether everything was undone.
        """
        planned = self.plan_guest_side(plan)
        if any("iommufd" in properties for properties in planned.arguments):
            raise ConfigUnsupportedError(
                "A running guest cannot get a device by iommufd: its nodes cannot be handed over"
            )
        await attach(self._guest, plan, planned, timeout_s=timeout_s, node_owner=self.node_owner)
        return planned.name

    async def detach(
        self, unit: str | Collection[PCIDeviceAddress], *, timeout_s: float = TIMEOUT_S, policy: str = "auto"
    ) -> list[PCIDeviceAddress]:
        """
        Ask the guest to let go of a unit, wait for every function, and give all back.

        Args:
            unit: its name, or the addresses of all of its functions.
            policy: with "off", some functions of a unit can go alone, as in libvirt: unless others share their slot.

        Returns:
            The functions that were given back.

        Raises:
            DeviceMissingError, RefusedError: nothing was asked.
            PendingError: the guest was asked and has not let go; repeat the call, or ``finish`` later.
            OperationError: QEMU or the guest refused, or a device could not be given back.
        """
        if policy == "off" and not isinstance(unit, str):
            named = named_part(await self._guest.units(), unit, self.definition, self._guest.owner)
        else:
            named = await self._unit(unit)
        return await detach(self._guest, named, timeout_s=timeout_s)

    async def unit_name(self, addresses: Collection[PCIDeviceAddress]) -> str:
        """
        Return the name of the unit whose functions these are, all of them.

        Raises:
            DeviceMissingError, RefusedError: they are not those of one unit.
        """
        return (await self._unit(addresses)).name

    async def _unit(self, unit: str | Collection[PCIDeviceAddress]) -> Unit:
        units = await self._guest.units()
        if not isinstance(unit, str):
            return named_unit(units, unit, self._guest.owner)
        for known in units:
            if known.name == unit:
                return known
        raise DeviceMissingError(f"Domain '{self._guest.owner}' does not have unit {unit}")

    async def finish(self, *, timeout_s: float = TIMEOUT_S) -> list[Finished]:
        """
        Finish or roll back what was interrupted, and give back what the guest has let go of; safe at any time.

        Raises:
            OperationError: the connection ended.
        """
        return await finish(self._guest, timeout_s=timeout_s)
