# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A running guest as a second process changes it: found by its name, locked, reached over its control socket.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from pyhostdev.errors import RefusedError
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
        needs_owner: the process that started it must live, which gives the devices back at the guest's end.

    Raises:
        RefusedError: there is none, or its owner has ended.
    """
    found = find_guest(manager.host.state_dir, owner)
    if found is None or not found.is_running:
        text = f"No running guest of domain '{owner}' was started here"
        raise RefusedError([Finding("guest-absent", ERROR, None, text)])
    if needs_owner and not found.has_owner:
        text = f"The process that started guest '{owner}' has ended, so the device would not be given back at its end"
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
    Control a running guest while the block runs; no other process changes its devices meanwhile.

    Raises:
        DeviceInUseError: another process does.
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
