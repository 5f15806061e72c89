# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Control a running guest from a second process: find it by name, lock it, connect to its control socket.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from pyhostdev.errors import RefusedError
from pyhostdev.hypervisor.guest_facts import unknown_guest_text, unreadable_guests
from pyhostdev.qemu.qemu_hotplug import Guest
from pyhostdev.qemu.qemu_hotplug.runtime import GuestDirectory, find_guest
from pyhostdev.util.finding import ERROR, Finding

if TYPE_CHECKING:
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
    from pyhostdev.qemu.qemu_hotplug.unplugging import Waiting

LOCK_WAIT_S = 2.0


def running_guest(manager: HostdevManager, owner: str, *, needs_owner: bool) -> GuestDirectory:
    """
    Return the running guest of a domain.

    Args:
        needs_owner: True requires that the process that started it still runs: it reattaches the devices at the end.

    Raises:
        RefusedError: the guest does not run, or its owner has ended.
    """
    found = find_guest(manager.host.state_dir, owner, below=manager.host.state().below)
    if found is None or not found.is_running:
        text = f"No running guest of domain '{owner}' was started here"
        texts = [text, *(unknown_guest_text(bad) for bad in unreadable_guests(manager.host.state()))]
        raise RefusedError([Finding("guest-absent", ERROR, None, text) for text in texts])
    if needs_owner and not found.has_owner:
        text = f"The process that started guest '{owner}' has ended: it could not reattach the device afterwards"
        raise RefusedError([Finding("guest-absent", ERROR, None, text)])
    return found


@contextlib.asynccontextmanager
async def controlled(
    manager: HostdevManager,
    directory: GuestDirectory,
    *,
    capabilities: QEMUCapabilities | None,
    release: LibvirtRelease,
    check: Callable[[], None] = lambda: None,
    waiting: Waiting = lambda left: None,
) -> AsyncIterator[Guest]:
    """
    Control a running guest during the block; no other process can change its devices.

    Raises:
        DeviceInUseError: another process controls the guest.
        OperationError: QEMU does not answer.
    """
    from pyhostdev.qemu.qemu_hotplug.qmpclient import connected

    with directory.controlling(LOCK_WAIT_S), directory.socket_path() as path:
        async with connected(path) as connection:
            yield Guest(
                connection,
                manager,
                capabilities=capabilities,
                release=release,
                state=directory.state,
                pid=directory.facts.pid,
                node_owner=directory.facts.node_owner,
                check=check,
                waiting=waiting,
            )
