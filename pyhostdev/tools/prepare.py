# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev prepare``: detach a domain's host devices, without QEMU."""

from __future__ import annotations

import argparse

from pyhostdev.tools import arguments, devices, releases
from pyhostdev.tools.contract import DONE
from pyhostdev.tools.main import complain, tell_notes


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
    if is_named:
        definition = devices.named_domain(args, manager.host)
    else:
        definition = arguments.definition_of(args)
        definition.validate()
    release = releases.release_of(args, manager.host)
    plan = manager.host.plan(definition, args.policy, accept=args.accept, release=release)
    if plan.ok:
        releases.tell_release(args, manager.host)
        tell_notes(plan.notes)
    if not manager.prepare(plan, node_owner=node_owner):
        complain(f"note: domain '{plan.owner}' already has these devices")
    return DONE
