# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev diff``: what differs between two hosts, and what it means for domains."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pyhostdev.hypervisor.hostdiff import HostChange, compare_hosts
from pyhostdev.tools import arguments, output, releases
from pyhostdev.tools.contract import DIFFER, DONE

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.hostdev_plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    for name, what in (("before", "the first host"), ("after", "the second host")):
        parser.add_argument(name, metavar=name.upper(), help=f"{what}: a directory, a snapshot's FILE.tar.gz, or /")
    parser.add_argument(
        "--domain",
        dest="domains",
        action="append",
        default=[],
        metavar="FILE",
        help="also show the plans of this domain before and after; can be repeated",
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare the hosts and print the differences; return 6 if there are any."""
    before, after = arguments.host_at(args.before), arguments.host_at(args.after)
    changes = compare_hosts(before, after)
    plans = [_compared_plans(path, before, after) for path in args.domains]
    if args.json:
        value = {"version": 1, "changes": [_to_json(change) for change in changes], "plans": plans}
        output.print_json(value)
    else:
        rows = [_row(change) for change in changes] + [_plan_row(plan) for plan in plans]
        output.print_table(("CHANGE", "DEVICE", "BEFORE", "AFTER"), rows)
    return DIFFER if changes or any(plan["differs"] for plan in plans) else DONE


def _compared_plans(path: str, before: Host, after: Host) -> dict[str, Any]:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.domain_validate import validate_domain

    definition = DomainDef.parse(arguments.read_file(path))
    validate_domain(definition)
    sides = [_verdict(_plan_on(host, definition)) for host in (before, after)]
    return {"domain": definition.name, "differs": sides[0] != sides[1], "before": sides[0], "after": sides[1]}


def _plan_on(host: Host, definition: DomainDef) -> Plan:
    """Plan a domain as ``plan`` does on the host: as its release of libvirt, with the functions of its networks."""
    from pyhostdev.hypervisor.network_pool import with_pool_functions

    release = releases.installed_release(host).release
    return host.plan(with_pool_functions(definition, host), release=release)


def _verdict(plan: Plan) -> dict[str, Any]:
    return {
        "ok": plan.ok,
        "obstacles": [finding.sentence for finding in plan.obstacles],
        "steps": [step.to_json() for step in plan.steps],
    }


def _to_json(change: HostChange) -> dict[str, str | None]:
    addresses = {name: None if a is None else str(a) for name, a in (("address", change.address), ("now", change.now))}
    return {"change": change.change, **addresses, "before": change.before, "after": change.after}


def _row(change: HostChange) -> tuple[object | None, ...]:
    return change.change, change.address or change.now, change.before, change.after


def _plan_row(plan: dict[str, Any]) -> tuple[object | None, ...]:
    return "plan" if plan["differs"] else "same plan", plan["domain"], _words(plan["before"]), _words(plan["after"])


def _words(side: dict[str, Any]) -> str:
    return f"can be prepared, {len(side['steps'])} steps" if side["ok"] else "; ".join(side["obstacles"])
