# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev plan``: what happens to each function of each touched group, and why."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from pyhostdev.tools import arguments, devices, output, releases
from pyhostdev.tools.planning import Found, found_sentences, planned, to_json

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    devices.add_arguments(parser)
    arguments.add_roots(parser)
    arguments.add_policy(parser)
    releases.add_release(parser)
    arguments.add_json(parser)
    arguments.add_qemu_user(parser)
    parser.add_argument("--find", action="store_true", help="show where the pinned host devices are now")
    parser.add_argument(
        "--for-start", action="store_true", help="also exit with 1 if 'pyhostdev start' would not run the domain"
    )


def run(args: argparse.Namespace) -> int:
    """Make the plan and print it; return 1 if the plan refuses, or with --for-start if start would refuse."""
    from pyhostdev.conf.domain_validate import validate_domain

    roots = args.roots or ["/"]
    if devices.is_named(args):
        return _run_named(args, roots)
    definition = arguments.definition_of(args)
    validate_domain(definition)  # an unknown attribute or element of a host device is a finding of the plan
    if len(roots) > 1:
        from pyhostdev.tools import plan_hosts

        return plan_hosts.run(args, definition, roots)
    args.root = roots[0]
    host = arguments.host_of(args)
    plan, origin = planned(args, definition, host, partial(releases.capabilities_of, args, definition, host))
    _print(args, plan, origin, host.find_pinned(definition) if args.find else None)
    return 0 if (plan.can_start if args.for_start else plan.ok) else 1


def _run_named(args: argparse.Namespace, roots: list[str]) -> int:
    """Plan for devices without a domain: the guest is unknown."""
    if args.for_start or args.find:
        raise argparse.ArgumentTypeError("--device cannot be combined with --for-start or --find")
    if len(roots) > 1:
        from pyhostdev.tools import plan_hosts

        return plan_hosts.run(args, None, roots)
    args.root = roots[0]
    host = arguments.host_of(args)
    answering = releases.answering(args, host)
    release = answering.release
    plan = host.plan(devices.named_domain(args, host), args.policy, accept=args.accept, release=release)
    releases.tell_release(args, answering)
    _print(args, plan, None, None)
    return 0 if plan.ok else 1


def _print(args: argparse.Namespace, plan: Plan, origin: str | None, found: Found | None) -> None:
    if args.json:
        output.print_json(to_json(plan, origin, found))
    else:
        print_plan(plan, found)


def print_plan(plan: Plan, found: Found | None = None) -> None:
    """Print a plan as a tree: the groups with their functions, the findings, then where pinned devices are."""
    tree = output.Branch(plan.headline())
    for group, fates in plan.fates_by_group().items():
        branch = tree.add("no IOMMU group" if group is None else f"IOMMU group {group}")
        for fate in fates:
            branch.add(f"{fate.name}  {plan.fate_phrases(fate)}")
    for finding in plan.findings:
        tree.add(f"{finding.severity}: {finding.sentence}")
    for sentence in [] if found is None else found_sentences(found):
        tree.add(sentence)
    output.print_tree(tree)
