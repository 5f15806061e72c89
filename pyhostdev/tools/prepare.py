# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev prepare``: detach a domain's host devices, without QEMU."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyhostdev.errors import RefusedError
from pyhostdev.tools import arguments, devices, releases
from pyhostdev.tools.contract import DONE
from pyhostdev.tools.main import complain, tell_notes

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    devices.add_arguments(parser)
    arguments.add_root(parser)
    arguments.add_policy(parser)
    arguments.add_changes(parser)
    releases.add_libvirt(parser)
    arguments.add_user(parser, "give the guest's nodes below /dev/vfio to this user until the release")


def run(args: argparse.Namespace) -> int:
    """Make the plan and execute it."""
    is_named = devices.is_named(args)
    node_owner = None if args.user is None else (args.user.uid, args.user.gid)
    manager = arguments.manager_of(args)
    definition = devices.named_domain(args, manager.host) if is_named else _written_domain(args, manager.host)
    found = releases.answering(args, manager.host)
    plan = manager.host.plan(definition, args.policy, accept=args.accept, release=found.release)
    if plan.ok:
        releases.tell_release(args, found)
        tell_notes(plan.notes)
    if not manager.prepare(plan, node_owner=node_owner):
        complain(f"note: domain '{plan.owner}' already has these devices")
    return DONE


def _written_domain(args: argparse.Namespace, host: Host) -> DomainDef:
    """Return the domain in the file, valid, with the functions that networks' pools give to it."""
    definition = _with_pool_functions(arguments.definition_of(args), host)
    definition.validate()
    return definition


def _with_pool_functions(definition: DomainDef, host: Host) -> DomainDef:
    """
    Return the definition with the functions that networks' pools give to it.

    Raises:
        RefusedError: a pool has no function for an interface.
    """
    if not definition.interfaces:
        return definition
    from pyhostdev.hypervisor.network_pool import pool_notes, pool_obstacles, with_pool_functions

    definition = with_pool_functions(definition, host)
    obstacles = list(pool_obstacles(definition, host))
    if obstacles:
        raise RefusedError(obstacles)
    tell_notes(list(pool_notes(definition)))
    return definition
