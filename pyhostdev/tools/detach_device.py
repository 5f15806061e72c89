# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev detach-device``: unplug a host device, or a card as one, from a running guest or from a definition."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import PendingError
from pyhostdev.tools import arguments, hotplug, releases
from pyhostdev.tools.contract import DONE, PENDING
from pyhostdev.tools.main import complain

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_hotplug import Guest
    from pyhostdev.util.pciaddress import PCIDeviceAddress

Result = tuple[str, str | None, list[dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    hotplug.add_owner_and_file(parser)
    hotplug.add_live(parser, "until the guest releases the device")
    arguments.add_root(parser)
    releases.add_release(parser)


def run(args: argparse.Namespace) -> int:
    """Check the definition, unplug, then write the definition; not if the guest has not released the device."""
    from pyhostdev.qemu.qemu_driver.device_config import detach_hostdevs
    from pyhostdev.util.transaction import deferred_signals

    hostdevs = hotplug.hostdevs_of(args)
    manager = arguments.manager_of(args)
    stored = hotplug.StoredDefinition(args, manager.host, detach_hostdevs, hostdevs) if args.config else None
    result: Result = ("configured", None, [])
    with deferred_signals() as check:
        if hotplug.is_live(args):
            result = _detach(args, manager, {hostdev.pci_address for hostdev in hostdevs}, check)
        if stored is not None and result[0] != "pending":
            stored.write(after_live=hotplug.is_live(args))
    hotplug.print_result(args, *result)
    return PENDING if result[0] == "pending" else DONE


def _detach(
    args: argparse.Namespace, manager: HostdevManager, addresses: set[PCIDeviceAddress], check: Callable[[], None]
) -> Result:
    """Unplug from the running guest; return the outcome, the unit, and the facts about its functions in the guest."""
    from pyhostdev.qemu.qemu_hotplug.control import running_guest
    from pyhostdev.qemu.qemu_hotplug.finish import RETURNED

    directory = running_guest(manager, args.owner, needs_owner=False)

    async def detach() -> Result:
        with hotplug.progress() as waiting:
            async with hotplug.guest_of(args, manager, directory, check, waiting) as guest:
                facts = hotplug.function_facts(guest, addresses)
                unit = await guest.unit_name(addresses)
                finished = await guest.finish(timeout_s=args.timeout)
                if any((done.unit, done.outcome) == (unit, RETURNED) for done in finished):
                    return "given-back", unit, facts
                return await _ask(guest, unit, addresses, facts, args.timeout)

    return asyncio.run(detach())


async def _ask(
    guest: Guest, unit: str, addresses: set[PCIDeviceAddress], facts: list[dict[str, Any]], timeout_s: float
) -> Result:
    try:
        await guest.detach(addresses, timeout_s=timeout_s)
    except PendingError as err:
        complain(err.with_reason)
        return "pending", unit, facts
    return "given-back", unit, facts
