# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans for the command line: with the obstacles of ``start``, and as JSON."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigUnsupportedError, OperationError
from pyhostdev.hypervisor.hostdev_plan import Plan
from pyhostdev.tools.releases import release_of
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.ownership import chosen_ownership
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities


def planned(
    args: argparse.Namespace, definition: DomainDef, host: Host, capabilities_of: Callable[[], QEMUCapabilities]
) -> tuple[Plan, str | None]:
    """Return the plan with the obstacles of ``start``, and the origin of the emulator's capabilities."""
    from pyhostdev.hypervisor.network_pool import reading_networks_once, with_pool_functions
    from pyhostdev.hypervisor.vf_network import vf_consents
    from pyhostdev.qemu import qemu_driver
    from pyhostdev.qemu.qemu_process.iommufd import vfio_nodes

    ownership = chosen_ownership(args.user)
    host = reading_networks_once(host)
    started = with_pool_functions(definition, host)
    own = vf_consents(started) if args.for_start else []  # start sets the network of virtual functions itself
    release = release_of(args, host)
    plan = host.plan(started, args.policy, accept=[*args.accept, *own], release=release)
    plan = plan.with_nodes(vfio_nodes(started, host, release))
    try:
        capabilities = capabilities_of()
    except (ConfigUnsupportedError, OperationError) as err:
        if args.capabilities is not None:
            raise
        # The host devices can still be prepared: another hypervisor driver may run the domain
        others = qemu_driver.host_obstacles(definition, host, ownership=ownership, release=release)
        return plan.with_start_findings([Finding("unsupported", ERROR, None, str(err)), *others]), None
    obstacles = qemu_driver.start_obstacles(definition, host, capabilities, ownership=ownership, release=release)
    addresses = qemu_driver.guest_addresses(definition, host, capabilities, release=release)
    return plan.with_start_findings(obstacles).with_guest_addresses(addresses), capabilities.origin


Found = dict[PCIDeviceAddress, list[PCIDeviceAddress]]


def to_json(plan: Plan, origin: str | None, found: Found | None, root: str | None = None) -> dict[str, Any]:
    """Return a plan as printed with --json; ``root`` is only named if there are several."""
    return {
        **plan.to_json(),
        "libvirt": str(plan.release),
        "capabilities": origin,
        "found": _found_to_json(found),
        "root": root,
    }


def found_sentences(found: Found) -> list[str]:
    """Return one sentence for each pinned device: where it is now."""
    if not found:
        return ["the domain has no pinned host devices"]
    places = {pinned: " or ".join(map(str, now)) for pinned, now in found.items()}
    return [
        f"the device pinned at {pinned} {f'is at {now}' if now else 'is not on this host'}"
        for pinned, now in places.items()
    ]


def _found_to_json(found: Found | None) -> list[dict[str, object]] | None:
    if found is None:
        return None
    return [{"pinned": str(pinned), "now": [str(place) for place in places]} for pinned, places in found.items()]
