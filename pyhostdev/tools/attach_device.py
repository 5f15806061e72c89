# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev attach-device``: plug a host device, or a card as one, into a running guest or into a definition."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from pyhostdev.tools import arguments, hotplug, releases
from pyhostdev.tools.main import tell_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.hypervisor.virhostdev import HostdevManager


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    hotplug.add_owner_and_file(parser)
    hotplug.add_live(parser, "until the guest releases functions when the change is rolled back")
    arguments.add_root(parser)
    arguments.add_policy(parser)
    releases.add_release(parser)


def run(args: argparse.Namespace) -> int:
    """Check the definition first, then plug, then write the definition."""
    from pyhostdev.qemu.qemu_driver.device_config import attach_hostdevs
    from pyhostdev.util.transaction import deferred_signals

    hostdevs = hotplug.hostdevs_of(args)
    manager = arguments.manager_of(args)
    stored = hotplug.StoredDefinition(args, manager.host, attach_hostdevs, hostdevs) if args.config else None
    unit, functions = None, list[dict[str, Any]]()
    with deferred_signals() as check:
        if hotplug.is_live(args):
            unit, functions = _attach(args, manager, hostdevs, check)
        if stored is not None:
            stored.write(after_live=hotplug.is_live(args))
    hotplug.print_result(args, "plugged" if unit else "configured", unit, functions)
    return 0


def _attach(
    args: argparse.Namespace,
    manager: HostdevManager,
    hostdevs: Sequence[DomainHostdevDef],
    check: Callable[[], None],
) -> tuple[str, list[dict[str, Any]]]:
    """Plug into the running guest; return the unit and the facts about its functions in the guest."""
    from pyhostdev.qemu.qemu_hotplug.control import running_guest

    directory = running_guest(manager, args.owner, needs_owner=True)

    async def attach() -> tuple[str, list[dict[str, Any]]]:
        with hotplug.progress() as waiting:
            async with hotplug.guest_of(args, manager, directory, check, waiting) as guest:
                hotplug.report_finished(await guest.finish(timeout_s=args.timeout))
                plan = manager.host.plan_attach(
                    guest.definition, hostdevs, args.policy, accept=args.accept, release=guest.release
                )
                unit = await guest.attach(plan, timeout_s=args.timeout)
                tell_notes(plan.notes)
                return unit, hotplug.function_facts(guest, {hostdev.pci_address for hostdev in hostdevs})

    return asyncio.run(attach())
