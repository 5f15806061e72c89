# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev plan``: what happens to each function of each touched group, and why."""

from __future__ import annotations

import argparse

from pyhostdev.errors import ConfigUnsupportedError, OperationError
from pyhostdev.hypervisor.hostdev_plan import Plan
from pyhostdev.tools import arguments, output
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.ownership import chosen_ownership
from pyhostdev.util.pciaddress import PCIDeviceAddress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_policy(parser)
    arguments.add_release(parser)
    arguments.add_json(parser)
    arguments.add_qemu_user(parser)
    parser.add_argument("--find", action="store_true", help="tell where the pinned host devices are now")
    parser.add_argument(
        "--for-start", action="store_true", help="also exit with 1 if 'pyhostdev start' would not run the domain"
    )


def run(args: argparse.Namespace) -> int:
    """Make the plan and print it; return 1 if the plan refuses, or with --for-start if start would refuse."""
    from pyhostdev.conf.domain_validate import validate_domain
    from pyhostdev.qemu import qemu_driver

    definition = arguments.definition_of(args)
    validate_domain(definition)  # an unknown attribute or element of a host device is a finding of the plan
    host = arguments.host_of(args)
    ownership = chosen_ownership(args.user)
    plan = host.plan(definition, args.policy, accept=args.accept)
    origin = None
    try:
        capabilities = arguments.capabilities_of(args, definition, host)
    except (ConfigUnsupportedError, OperationError) as err:
        if args.capabilities is not None:
            raise
        # The host devices can still be prepared: another hypervisor driver may run the domain
        plan = plan.with_start_findings([Finding("unsupported", ERROR, None, str(err))])
    else:
        origin = capabilities.origin
        plan = plan.with_start_findings(
            qemu_driver.start_obstacles(definition, host, capabilities, ownership=ownership, release=args.libvirt)
        ).with_guest_addresses(qemu_driver.guest_addresses(definition, host, capabilities, release=args.libvirt))
    found = host.find_pinned(definition) if args.find else None
    if args.json:
        output.print_json({**plan.to_json(), "capabilities": origin, "found": _found_to_json(found)})
    else:
        print_plan(plan, found or {})
    return 0 if (plan.can_start if args.for_start else plan.ok) else 1


Found = dict[PCIDeviceAddress, list[PCIDeviceAddress]]


def _found_to_json(found: Found | None) -> list[dict[str, object]] | None:
    if found is None:
        return None
    return [{"pinned": str(pinned), "now": [str(place) for place in places]} for pinned, places in found.items()]


def print_plan(plan: Plan, found: Found) -> None:
    """Print a plan as a tree: the groups with their functions, the findings, then where pinned devices are."""
    tree = output.Branch(plan.headline())
    for group, fates in plan.fates_by_group().items():
        branch = tree.add("no IOMMU group" if group is None else f"IOMMU group {group}")
        for fate in fates:
            branch.add(f"{fate.name}  {fate.text}")
    for finding in plan.findings:
        tree.add(f"{finding.severity}: {finding.sentence}")
    for pinned, places in found.items():
        where = f"is at {' or '.join(map(str, places))}" if places else "is not on this host"
        tree.add(f"the device pinned at {pinned} {where}")
    output.print_tree(tree)
