# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev start``: run a domain in the foreground, its host devices prepared and given back."""

from __future__ import annotations

import argparse

from pyhostdev.errors import ConfigUnsupportedError, RefusedError
from pyhostdev.tools import arguments
from pyhostdev.tools.main import REFUSED, complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_policy(parser)
    arguments.add_keep_together(parser)
    arguments.add_capabilities(parser)
    arguments.add_changes(parser)
    parser.add_argument("--log", metavar="FILE", help="append what QEMU writes to this file")


def run(args: argparse.Namespace) -> int:
    """Plan, prepare, run QEMU to its end, give back."""
    import qemu.qmp  # noqa: F401 - when it is missing, that is told before anything else

    from pyhostdev.qemu import qemu_driver

    definition = arguments.definition_of(args)
    manager = arguments.manager_of(args)
    capabilities = arguments.capabilities_of(args, definition, manager.host)
    guest = qemu_driver.Guest(definition, manager.host, keep_together=args.keep_together, capabilities=capabilities)
    plan = manager.host.plan(guest.definition, args.policy, accept=args.accept)
    if not plan.ok:
        raise RefusedError(plan.obstacles, plan)
    if args.simulate:
        raise ConfigUnsupportedError("A guest cannot run on a simulated host: its QEMU would reach for the real one")
    outcome = guest.run(manager, plan, log_path=args.log)
    if outcome.failed:
        complain(str(outcome))
        return REFUSED
    return 0
