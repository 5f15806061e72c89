# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Finish the changes of all guests of a host that were interrupted because a process was killed.

For a running guest, QEMU is asked over its control socket. For a guest that ended without its owner, units that were
being plugged or unplugged are reattached; completely plugged units stay for ``release`` and ``recover --all``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pyhostdev.conf.libvirt_release import LibvirtRelease
from pyhostdev.errors import DeviceInUseError, HostdevError
from pyhostdev.hypervisor.guest_facts import unknown_guest_text, unreadable_guests
from pyhostdev.hypervisor.hostdev_result import FAILED, KEPT, RESTORED, RecoveryResult
from pyhostdev.hypervisor.hostdev_units import give_back, read_units
from pyhostdev.qemu.qemu_hotplug.control import controlled
from pyhostdev.qemu.qemu_hotplug.finish import RETURNED, UNFINISHED
from pyhostdev.qemu.qemu_hotplug.runtime import GuestDirectory, read_guests
from pyhostdev.util.record import PLUGGED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.hypervisor.virhostdev import HostdevManager

_OUTCOMES = {RETURNED: RESTORED, UNFINISHED: FAILED}


def finish_all(
    manager: HostdevManager, *, timeout_s: float, check: Callable[[], None] = lambda: None
) -> list[RecoveryResult]:
    """
    Finish the pending changes of every guest, and return an outcome per unit, and one per guest that is unknown.

    Raises:
        OperationError, SysfsError: the state directory cannot be read.
    """
    state = manager.host.state()
    found = [RecoveryResult(bad.name, None, KEPT, unknown_guest_text(bad)) for bad in unreadable_guests(state)]
    for directory in read_guests(manager.host.state_dir, below=state.below):
        if directory.is_running:
            found += _of_running(manager, directory, timeout_s, check)
        else:
            found += _of_ended(manager, directory)
    return found


def _of_running(
    manager: HostdevManager, directory: GuestDirectory, timeout_s: float, check: Callable[[], None]
) -> list[RecoveryResult]:
    owner = directory.facts.name
    if not any(unit.is_hot for unit in read_units(manager.context, owner)) and directory.has_owner:
        return []  # its owner finishes changes itself
    try:
        return asyncio.run(_finish(manager, directory, timeout_s, check))
    except DeviceInUseError as err:
        return [RecoveryResult(owner, owner, KEPT, str(err))]
    except HostdevError as err:
        return [RecoveryResult(owner, owner, FAILED, str(err))]


async def _finish(
    manager: HostdevManager, directory: GuestDirectory, timeout_s: float, check: Callable[[], None]
) -> list[RecoveryResult]:
    release = LibvirtRelease.parse(directory.facts.release)
    async with controlled(manager, directory, capabilities=None, release=release, check=check) as guest:
        found = await guest.finish(timeout_s=timeout_s)
    owner = directory.facts.name
    return [RecoveryResult(done.unit, owner, _OUTCOMES.get(done.outcome, KEPT), done.message) for done in found]


def _of_ended(manager: HostdevManager, directory: GuestDirectory) -> Iterator[RecoveryResult]:
    """Reattach the units of an ended guest that were being plugged or unplugged."""
    owner = directory.facts.name
    for unit in read_units(manager.context, owner):
        is_pending = unit.is_mixed or (unit.is_hot and unit.phase != PLUGGED)
        if not is_pending:
            continue
        try:
            give_back(manager.context, owner, unit)
        except DeviceInUseError as err:
            yield RecoveryResult(unit.name, owner, KEPT, str(err))
        except HostdevError as err:
            yield RecoveryResult(unit.name, owner, FAILED, str(err))
        else:
            yield RecoveryResult(unit.name, owner, RESTORED, "its guest has ended; it was reattached")
