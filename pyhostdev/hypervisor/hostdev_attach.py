# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The plan of a unit: the functions of one host device that are plugged into a running domain together.

Rows S1 to S4 and the policies apply as in the plan of a definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, ConfigError
from pyhostdev.hypervisor.hostdev_plan import ASSIGNED, Plan, Request
from pyhostdev.hypervisor.hostdev_planner import build_plan
from pyhostdev.hypervisor.hostdev_status import unit_name
from pyhostdev.util.finding import ERROR, Finding

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.util.journal import Record
    from pyhostdev.util.pciaddress import PCIDeviceAddress


def plan_attach(
    host: HostFacts,
    live: DomainDef,
    hostdevs: Sequence[DomainHostdevDef],
    policy: str = "auto",
    *,
    records: Mapping[PCIDeviceAddress, Record] | None,
    accept: Iterable[str] = (),
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> Plan:
    """
    Return the plan for plugging the functions of one host device; see ``Host.plan_attach``.

    Raises:
        ConfigError, ConfigUnsupportedError: the request is invalid for any host.
    """
    if not hostdevs or not all(hostdev.is_pci for hostdev in hostdevs):
        raise ConfigError(
            "Only PCI host devices can be attached as one device", libvirt_code=VIR_ERR_CONFIG_UNSUPPORTED
        )
    plan = build_plan(
        host,
        _with_only(live, hostdevs),
        owner=str(live.name),
        policy=policy,
        records=records,
        occupied={info.pci.pci for _, info in live.device_infos() if info.pci is not None},
        accept=accept,
        release=release,
    )
    plan.findings = (*plan.findings, *_several_devices(plan.requests), *_unfit_group(plan))
    return plan


def _with_only(live: DomainDef, hostdevs: Iterable[DomainHostdevDef]) -> DomainDef:
    """
    Return a domain that takes nothing from the host but these devices, with the buses of a running domain.

    Assigned devices come first, so that they are detached first and reattached first.
    """
    from pyhostdev.conf.domain_conf import DomainDef

    ordered = sorted(hostdevs, key=lambda hostdev: not hostdev.is_assigned)
    return DomainDef(name=live.name, hostdevs=ordered, controllers=live.controllers, iommus=live.iommus)


def unit_of(requests: Sequence[Request]) -> str:
    """Return the name of the unit that these functions form."""
    request = min(requests, key=lambda request: (request.role != ASSIGNED, request.address))
    dev = request.dev
    if dev is None:
        return unit_name(request.address, is_virtual_function=False)
    address = dev.address if dev.is_virtual_function else dev.function_zero
    return unit_name(address, is_virtual_function=dev.is_virtual_function)


def _several_devices(requests: Sequence[Request]) -> Iterable[Finding]:
    """Yield a finding for the first function of another device: each device is plugged separately."""
    first = requests[0]
    for request in requests[1:]:
        if unit_of([request]) != unit_of([first]):
            text = (
                f"Functions {first.address} and {request.address} belong to different devices: attach one device after "
                "the other"
            )
            yield Finding("several-devices", ERROR, request.address, text)
            return


def _unfit_group(plan: Plan) -> Iterable[Finding]:
    """Yield the notes of a plan that are errors for a running guest: QEMU would refuse the device."""
    for finding in plan.findings:
        if finding.reason == "viommu-group":
            yield finding._replace(severity=ERROR, message=f"{finding.message} (the guest is running)")
