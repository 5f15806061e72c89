# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The nodes of functions that a running QEMU gets by iommufd: opened here, and passed over the socket of its monitor.

QEMU keeps a descriptor under a name until a command uses it up. One that no command used would make the unbind of its
function wait for ever, so it is closed in QEMU, as our own copy is, before anything is given back.

Mirrors: qemuDomainAttachHostPCIDevice (src/qemu/qemu_hotplug.c)
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.hostdev import IOMMUFD
from pyhostdev.qemu.qemu_hotplug.guest import RunningGuest, in_thread
from pyhostdev.qemu.qemu_process.vfiofds import VFIODescriptors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyhostdev.qemu.qemu_hotplug.connection import Monitor
    from pyhostdev.qemu.qemu_hotplug.devices import PlannedUnit


def node_name(device_id: str) -> str:
    """Return the name under which QEMU keeps the node of a device."""
    return f"{device_id}-node"


class PassedDescriptors:
    """
    The nodes of one unit; leaving it closes all that QEMU did not use up. Does nothing for a unit without iommufd.

    Raises:
        OperationError, SysfsError: a node cannot be opened, or QEMU does not take one; none stays open.
    """

    def __init__(self, guest: RunningGuest, planned: PlannedUnit) -> None:
        self._guest = guest
        self._monitor = guest.monitor
        self._addresses = {
            str(hostdev.info.alias): hostdev.pci_address
            for hostdev in planned.hostdevs
            if hostdev.is_assigned and planned.definition.uses_iommufd(hostdev)
        }
        self._names: list[str] = []
        self._open: VFIODescriptors | None = None

    async def __aenter__(self) -> PassedDescriptors:
        if self._addresses:
            is_new = IOMMUFD not in await self._monitor.object_ids()
            opener = VFIODescriptors(self._guest.manager.host, list(self._addresses.values()), opens_iommufd=is_new)
            self._open = await in_thread(opener.__enter__)
            try:
                if is_new:
                    fd = await self._pass(node_name(IOMMUFD), self._open.fd(None))
                    await self._monitor.object_add({"qom-type": "iommufd", "id": IOMMUFD, "fd": fd})
            except BaseException:
                await self._close()
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def add(self, properties: dict[str, Any]) -> None:
        """
        Add a device, after its node was handed over.

        QEMU remembers the node under the device's id even if it refuses the device, and ends itself when it gets
        another node under that id. So the id is recorded first, and not used again; ``commit`` removes the record.

        Source: cpr_get_fd_param, cpr_resave_fd (migration/cpr.c, QEMU 10.1 and later)
        """
        device_id = str(properties["id"])
        address = self._addresses.get(device_id)
        if address is None or self._open is None:
            await self._monitor.device_add(properties)
            return
        state = self._guest.state
        fd = await self._pass(node_name(device_id), self._open.fd(address))
        await in_thread(lambda: state.store_spent_ids(state.spent_ids | {device_id}))
        await self._monitor.device_add({**properties, "fd": fd})

    async def _pass(self, name: str, fd: int) -> str:
        self._names.append(name)
        await self._monitor.pass_descriptor(name, fd)
        return name

    async def _close(self) -> None:
        """Close our copies first: a lost connection to the monitor must not keep them open."""
        if self._open is not None:
            self._open.close()
            self._open = None
            await close_in(self._monitor, self._names)


async def close_in(monitor: Monitor, names: Iterable[str]) -> None:
    """
    Close descriptors that QEMU has not used up.

    Raises:
        MonitorLost: there is no answer.
    """
    for name in names:
        await monitor.close_passed(name)


async def close_leftovers(guest: RunningGuest, monitor: Monitor | None = None) -> None:
    """
    Close what a killed process handed over for a unit that QEMU did not get.

    Args:
        monitor: the one that got the descriptors, if it is not the guest's.

    Raises:
        MonitorLost: there is no answer.
    """
    live = await in_thread(guest.state.load)
    present = await guest.monitor.present_ids()
    for unit in await guest.units():
        if unit.is_hot:
            hostdevs = await in_thread(guest.state.read_unit, unit.name)
            aliases = [str(h.info.alias) for h in hostdevs or () if h.is_assigned and live.uses_iommufd(h)]
            await close_in(monitor or guest.monitor, (node_name(alias) for alias in aliases if alias not in present))
