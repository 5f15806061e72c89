# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The owner: the process that started a guest. It lets other processes control QEMU, and finishes interrupted changes.

A device can leave without our request: a host program unbinds a held function, a guest ejects a slot, or the
requesting process was killed. The owner sees each event, and acts when no other process holds the control lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyhostdev.errors import HostdevError, OperationError
from pyhostdev.hypervisor.guest_facts import GUEST_FILE, GuestFacts
from pyhostdev.hypervisor.virhostdev import HostdevManager
from pyhostdev.qemu.qemu_command.machine import second_monitor
from pyhostdev.qemu.qemu_hotplug import Guest
from pyhostdev.qemu.qemu_hotplug.finish import PENDING, RETURNED
from pyhostdev.qemu.qemu_hotplug.livestate import live_definition
from pyhostdev.qemu.qemu_hotplug.qmpclient import ClientConnection, connected
from pyhostdev.qemu.qemu_hotplug.runtime import GuestDirectory

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities

LOOK_AGAIN_S = 5.0  # while a unit is pending: its event may have been lost
TAKE_BACK_S = 10.0
_LOCK_POLL_S = 0.1

_log = logging.getLogger(__name__)


class GuestOwner:
    """
    Controls one guest for its owner; ``run_guest`` takes it as ``control``.

    Args:
        definition: complete, as ``define`` returns it.
        node_owner: QEMU's uid and gid; None means the current user.
    """

    def __init__(
        self,
        definition: DomainDef,
        host: Host,
        capabilities: QEMUCapabilities,
        release: LibvirtRelease,
        node_owner: tuple[int, int] | None,
    ) -> None:
        self.definition = live_definition(definition)
        self._host = host
        self._capabilities = capabilities
        self._release = release
        self._node_owner = node_owner
        self._path = ""
        self._pid = 0
        self._is_stopping = False
        self._wake = asyncio.Event()

    def arguments(self, control_fd: int) -> list[str]:
        """Return QEMU's arguments for the second monitor."""
        as_object = self._release.has("monitor-object") and self._capabilities.has_object("monitor-qmp")
        return second_monitor(control_fd, as_object=as_object)

    def _directory(self, pid: int) -> GuestDirectory:
        return GuestDirectory(
            self._path, GuestFacts(str(self.definition.name), pid, str(self._release), self._node_owner)
        )

    @contextlib.contextmanager
    def owning(self, runtime_path: str) -> Iterator[None]:
        """Hold the owner lock during the block."""
        self._path = runtime_path
        with self._directory(0).owning():
            yield

    def spawned(self, pid: int) -> None:
        """Write the live definition, then the file by which other processes find the guest."""
        self._pid = pid
        directory = self._directory(pid)
        directory.state.save(self.definition)
        directory.files.replace(GUEST_FILE, directory.facts.to_bytes())

    def stop(self) -> None:
        """Make ``follow`` return as soon as possible."""
        self._is_stopping = True
        self._wake.set()

    def _check(self) -> None:
        if self._is_stopping:
            raise OperationError("The guest is ending")

    async def follow(self, client: QMPClient) -> None:
        """Finish pending changes after each event of a device, until ``stop`` is called."""
        self._wake = asyncio.Event()
        connection = ClientConnection(client)
        is_pending = False
        while not self._is_stopping:
            if not await self._woken(connection, LOOK_AGAIN_S if is_pending else None):
                continue
            try:
                is_pending = await self._finish(connection)
            except HostdevError as err:
                _log.warning("Pending changes of guest '%s' could not be finished: %s", self.definition.name, err)
                is_pending = True

    async def _woken(self, connection: ClientConnection, timeout_s: float | None) -> bool:
        """Wait for an event, the timeout or ``stop``; return False after ``stop``."""
        event = asyncio.ensure_future(connection.events.get())
        wake = asyncio.ensure_future(self._wake.wait())
        await asyncio.wait({event, wake}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (event, wake):
            task.cancel()
        await asyncio.gather(event, wake, return_exceptions=True)
        return not self._is_stopping

    async def _close_leftovers(self, directory: GuestDirectory, guest: Guest) -> None:
        """Close nodes that a killed process handed over: to the second monitor, which alone knows their names."""
        if directory.state.unit_names():
            with directory.socket_path() as path:
                async with connected(path) as control:
                    await guest.close_leftovers(control)

    async def _finish(self, connection: ClientConnection) -> bool:
        """Finish pending changes under the control lock; return True if some remain."""
        directory = self._directory(0)
        fd = directory.try_control()
        while fd is None:  # held by a process that attaches or detaches
            await asyncio.sleep(_LOCK_POLL_S)
            self._check()
            fd = directory.try_control()
        try:
            guest = Guest(
                connection,
                HostdevManager(self._host),
                capabilities=self._capabilities,
                release=self._release,
                state=directory.state,
                pid=self._pid or None,
                check=self._check,
            )
            await self._close_leftovers(directory, guest)
            found = await guest.finish(timeout_s=TAKE_BACK_S)
        finally:
            os.close(fd)
        for done in found:
            _log.warning("Unit %s of guest '%s': %s", done.unit, self.definition.name, done.message)
        return any(done.outcome in (PENDING, RETURNED) for done in found)
