# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Make a plan: each rule of row S4, of the policies and of libvirt's checks is one method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import ConfigError
from pyhostdev.hypervisor.hostdev_checks import (
    consents,
    driver_obstacle,
    held_groups,
    host_needs,
    libvirt_owners,
    saved_overrides,
    split_groups,
    used_vfs,
    vanishing_functions,
    vf_network,
)
from pyhostdev.hypervisor.hostdev_function_plan import driver_phrase, function_plans
from pyhostdev.hypervisor.hostdev_plan import (
    ASSIGNED,
    POLICIES,
    FunctionPlan,
    Plan,
    Request,
    Step,
)
from pyhostdev.util import virpci
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.iommugroup import read_iommu_groups
from pyhostdev.util.journal import Record
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciassign import (
    denied_obstacle,
    endpoint_obstacle,
    group_obstacle,
    has_iommu,
    keeps_dma,
    member_obstacle,
    vfs_obstacle,
)
from pyhostdev.util.pcidevices import (
    read_all_virtual_functions,
    read_entries,
    read_pci_devices,
    read_siblings,
)
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.vfiodriver import DriverChoice, VFIODrivers

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef, ProposedHostdev
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease


def build_plan(
    host: HostFacts,
    definition: DomainDef,
    *,
    owner: str,
    policy: str = "auto",
    records: Mapping[PCIDeviceAddress, Record] | None,
    occupied: Iterable[PCIDeviceAddress] | None = None,
    accept: Iterable[str] = (),
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> Plan:
    """
    Plan what happens to the host devices of one domain.

    Args:
        definition: the domain; its PCI functions are those of NVMe disks, then the host devices.
        owner: the domain's name.
        policy: auto, device, group or off.
        records: the journal's records, by address; None if this user may not read them, which is a finding.
        occupied: guest addresses of other devices, for ``no-guest-function-0``; by default the definition's.
        accept: consents, each as REASON:ADDRESS or REASON:SELECTOR.
        release: the libvirt release whose choice of drivers applies; by default the newest.

    Raises:
        ConfigError: the policy is unknown, or a consent or the name of a driver is invalid.
        ConfigUnsupportedError: a backend is not VFIO.
    """
    if policy not in POLICIES:
        raise ConfigError(f"Unknown policy '{policy}': expected one of {', '.join(POLICIES)}")
    drivers = VFIODrivers(host.root, variants=release.has("vfio-variants"))
    requests = _requests(host, definition.host_functions(), drivers)
    taken = frozenset(definition.guest_pci_addresses() if occupied is None else occupied)
    planner = _Planner(host, requests, owner, policy, records, taken, definition, drivers)
    return planner.plan(consents(accept, host.root), release)


def _requests(host: HostFacts, hostdevs: list[DomainHostdevDef], drivers: VFIODrivers) -> list[Request]:
    """Return each hostdev with the host's function, all of which are read together."""
    addresses = [hostdev.pci_address for hostdev in hostdevs]
    found = read_pci_devices(host.root, addresses)
    return [Request.of(hostdev, found.get(at), drivers) for hostdev, at in zip(hostdevs, addresses, strict=True)]


class _Planner:
    """A plan in the making: each rule is one method that yields its findings."""

    def __init__(
        self,
        host: HostFacts,
        requests: list[Request],
        owner: str,
        policy: str,
        records: Mapping[PCIDeviceAddress, Record] | None,
        occupied: frozenset[PCIDeviceAddress],
        definition: DomainDef,
        drivers: VFIODrivers,
    ) -> None:
        self.host = host
        self.requests = requests
        self.owner = owner
        self.policy = policy
        self.records = records or {}
        self.has_records = records is not None
        self.occupied = occupied
        self.words = definition.unknown_words()
        self.definition = definition
        self.declared = {request.address: request for request in requests}
        self.present = [request for request in requests if request.dev is not None]
        self.moving = [r for r in self.present if r.managed and not _is_already_there(r)]
        self.drivers = drivers
        # a VF has no VFs and no siblings, and the drivers that create functions bind to no VF
        self.endpoints = _without_vfs(self.present)
        self.moving_endpoints = _without_vfs(self.moving)
        self.members = self._read_members()
        self.siblings = self._read_siblings()
        self.vfs = read_all_virtual_functions(self.endpoints)
        self.vanishing = self._read_vanishing()
        # the VFs that a PF's driver may remove when the PF is detached, each with its PF
        self.virtual = {vf: dev.address for dev in self.moving_endpoints for vf in self.vfs.get(dev.address, ())}
        self.leaving = self._read_leaving()

    def plan(self, accepted: frozenset[tuple[str, str]], release: LibvirtRelease) -> Plan:
        """Return the plan."""
        findings = self.findings()
        return Plan(
            owner=self.owner,
            policy=self.policy,
            requests=self.requests,
            findings=findings,
            steps=self.steps(),
            fates=self.fates(),
            proposals=self.proposals(findings),
            accepted=accepted,
            definition=self.definition,
            occupied=self.occupied,
            release=release,
        )

    def _read_members(self) -> dict[int, list[virpci.GroupMember]]:
        groups = {r.dev.iommu_group for r in self.present if r.dev is not None}
        numbers = sorted(group for group in groups if group is not None)
        known = {str(r.address): r.dev.as_group_member() for r in self.present if r.dev is not None}
        return read_iommu_groups(self.host.root, numbers, known=known)

    def _read_siblings(self) -> dict[PCIDeviceAddress, list[virpci.PCIDevice]]:
        """Map function 0's address of each declared multifunction device to the device's functions."""
        known = {dev.address: dev for dev in self.endpoints}
        found = read_siblings(self.endpoints, known)
        return {first: [s for s in devs if not (s.is_bridge or s.is_host_bridge)] for first, devs in found.items()}

    def _read_vanishing(self) -> dict[PCIDeviceAddress, PCIDeviceAddress]:
        """Return each function that exists only while a declared device keeps its driver, with that device."""
        read_entries(self.moving_endpoints)
        return {below: dev.address for dev in self.moving_endpoints for below in dev.read_functions_below()}

    def _read_leaving(self) -> dict[PCIDeviceAddress, virpci.PCIDevice]:
        """Return the functions that may leave with a declared device, as they are now."""
        return read_pci_devices(self.host.root, (*self.vanishing, *self.virtual))

    def findings(self) -> list[Finding]:
        """Return all findings, those in the domain's order first, each fact once."""
        found: list[Finding] = [*self.words]
        for request in self.requests:
            found += self._device_findings(request)
        found += self._two_uses()
        found += self._changed_identities()
        found += self._incomplete_devices()
        found += self._group_findings()
        found += self._missing_drivers()
        moving = {request.address for request in self.moving}
        found += host_needs(self.host.root, [request.dev for request in self.moving if request.dev is not None])
        found += held_groups(self.host.root, self._first_by_group(), self.members)
        found += libvirt_owners(self.host.root, self._touched())
        found += saved_overrides(self.host.root, self.present, moving)
        found += self._empty_slots()
        found += split_groups(self.present, self.definition)
        found += vanishing_functions(self.vanishing, self.declared, self.records)
        found += used_vfs(self.virtual, self.records)
        if not self.has_records:
            text = "This user may not read the records of this host, so devices in use or in doubt are unknown"
            found.append(Finding("records", NOTE, None, text))
        seen: dict[tuple[str, str, int | None], Finding] = {}
        for finding in found:
            seen.setdefault((finding.reason, str(finding.address), finding.line), finding)
        return list(seen.values())

    def _changed_identities(self) -> Iterable[Finding]:
        pins = self.definition.hostdev_pins()
        if not pins:
            return ()
        from pyhostdev.hypervisor.hostdev_pins import pin_findings  # few domains have pins

        return pin_findings(pins, {request.address: request.dev for request in self.requests})

    def _touched(self) -> set[PCIDeviceAddress]:
        """Return the declared devices, all that share a group with one (a group has one user), and vanishing ones."""
        members = (member.address for group in self.members.values() for member in group)
        return {
            *self.declared,
            *self.vanishing,
            *self.virtual,
            *(address for address in members if address is not None),
        }

    def _first_by_group(self) -> dict[int, PCIDeviceAddress]:
        """Return each touched group's number with the first declared or vanishing device in it."""
        found: dict[int, PCIDeviceAddress] = {}
        leaving = (self.leaving.get(address) for address in (*self.vanishing, *self.virtual))
        for dev in (*(request.dev for request in self.present), *leaving):
            if dev is not None and dev.iommu_group is not None:
                found.setdefault(dev.iommu_group, dev.address)
        return found

    def _device_findings(self, request: Request) -> Iterable[Finding]:
        address, dev = request.address, request.dev
        if dev is None or dev.is_unreadable:
            what = "is not on this host" if dev is None else "does not answer"
            yield _error("device-missing", address, f"Device {address} {what}")
            return
        bridge = endpoint_obstacle(dev)
        if bridge is not None:  # libvirt only refuses PCI bridges, and leaves a host bridge to the kernel
            yield self._by_policy(bridge) if dev.is_host_bridge else bridge
        if request.written is not None and dev.is_multifunction() is False:
            severity = ERROR if request.written == "no" else NOTE
            text = f"Device {address} has no other functions, so assigned='{request.written}' has no meaning"
            yield Finding("not-multifunction", severity, address, text)
        yield from vf_network(request)
        yield from self._usability_findings(request, dev)

    def _two_uses(self) -> Iterable[Finding]:
        """Yield a finding for each controller of an NVMe disk that is a host device of the domain, too."""
        hostdevs = {request.address: request for request in self.requests if not request.nvme_disks}
        for request in self.requests:
            if request.nvme_disks and request.address in hostdevs:
                text = f"Device {request.address} has disk '{request.nvme_disks[0]}' and is a host device, too"
                yield Finding("in-use", ERROR, request.address, text, hostdevs[request.address].line)

    def _usability_findings(self, request: Request, dev: virpci.PCIDevice) -> Iterable[Finding]:
        address = request.address
        for obstacle in self._obstacles(request, dev):
            yield self._by_policy(obstacle)
        if self.has_records and self.host.is_in_flight(address):
            yield _error("in-doubt", address, f"A write to device {address} has not returned from the kernel")
        record = self.records.get(address)
        if record is not None and record.original.incarnation != dev.incarnation:
            yield _error("changed-device", address, f"Device {address} is not the one that was detached")
        elif not request.managed and not self._has_stub(dev, record):
            yield _error(
                "unmanaged-attached",
                address,
                f"Device {address} is not managed and has {driver_phrase(dev.driver)}: detach it first",
            )

    def _obstacles(self, request: Request, dev: virpci.PCIDevice) -> list[Finding]:
        """Return what will make the kernel refuse a device."""
        found = [vfs_obstacle(request.address, len(self.vfs.get(request.address, ())))]
        if dev.iommu_group is None:
            found.append(group_obstacle(dev, has_iommu(self.host.root)))
        if request.stub == VFIO_PCI and not dev.is_vfio:
            found.append(denied_obstacle(dev))
        if request.named:
            found.append(self.drivers.mismatch(dev, DriverChoice(request.stub, request.module, request.why)))
        return _findings(*found)

    def _has_stub(self, dev: virpci.PCIDevice, record: Record | None) -> bool:
        """Tell whether a device has a stub: a VFIO driver, or its stub on the inactive list."""
        return dev.is_vfio or (record is not None and dev.driver == record.target)

    def _by_policy(self, obstacle: Finding) -> Finding:
        """Return what the kernel will refuse: an error, or a note if policy off leaves the decision to the kernel."""
        return obstacle._replace(severity=NOTE if self.policy == "off" else ERROR)

    def _incomplete_devices(self) -> Iterable[Finding]:
        for siblings in self.siblings.values():
            if not self._device_rule_applies(siblings):
                continue
            sibling = next(s.address for s in siblings if s.address in self.declared)
            for dev in siblings:
                if dev.address not in self.declared:
                    yield _incomplete(dev.address, dev.driver, sibling)

    def _device_rule_applies(self, siblings: list[virpci.PCIDevice]) -> bool:
        declared = [self.declared[s.address] for s in siblings if s.address in self.declared]
        dev = declared[0].dev if declared else None
        if dev is None or len(siblings) < 2 or dev.is_multifunction() is False:
            return False
        written = any(request.written is not None for request in declared)
        return self.policy == "device" or (self.policy == "auto" and written)

    def _group_findings(self) -> Iterable[Finding]:
        for group, members in self.members.items():
            for member in members:
                yield from self._member_findings(group, member)

    def _member_findings(self, group: int, member: virpci.GroupMember) -> Iterable[Finding]:
        owner = self._owner(member)
        declared = member.address in self.declared
        if owner is not None and (declared or owner != self.owner):
            yield _error("in-use", member.address, f"Device {member.name} is in use by domain '{owner}'")
        elif not declared and member.address not in self.vanishing and self.policy in ("group", "auto"):
            yield from self._blockers(group, member)

    def _owner(self, member: virpci.GroupMember) -> str | None:
        record = self.records.get(member.address) if member.address else None
        return record.owner if record is not None and record.is_active else None

    def _blockers(self, group: int, member: virpci.GroupMember) -> Iterable[Finding]:
        for siblings in self.siblings.values():
            here = [s.address for s in siblings]
            if member.address in here and keeps_dma(member):
                sibling = next(a for a in here if a in self.declared)
                yield _incomplete(here[here.index(member.address)], member.driver, sibling)
                return
        yield from _findings(member_obstacle(group, member))

    def _missing_drivers(self) -> Iterable[Finding]:
        seen = set()
        for request in self.moving:
            if request.module not in seen:
                seen.add(request.module)
                yield from _findings(driver_obstacle(self.host, request.address, request.stub, request.module))

    def _empty_slots(self) -> Iterable[Finding]:
        visible = [r for r in self.requests if r.role == ASSIGNED and r.guest_address is not None]
        taken = self.occupied | {r.guest_address for r in visible if r.guest_address is not None}
        reported = set()
        for request in visible:
            guest = request.guest_address
            assert guest is not None
            if guest.with_function(0) not in taken and guest[:3] not in reported:
                reported.add(guest[:3])
                yield Finding(
                    "no-guest-function-0",
                    NOTE,
                    request.address,
                    f"Guest slot {str(guest)[:-2]} has no function 0, so the guest will not see device "
                    f"{request.address} there",
                )

    def steps(self) -> list[Step]:
        """Return the steps in their order; reset and reattach come after the guest's end."""
        steps: list[Step] = []
        loaded: set[str] = set()
        for request in self.moving:
            if request.module is not None and request.module not in loaded:
                loaded.add(request.module)
                steps.append(Step(request.address, request.role, "load-module", None, request.module))
        moving = {request.address for request in self.moving}
        for request in self.present:
            assert request.dev is not None
            driver = request.dev.driver
            if request.address in moving:
                steps.append(Step(request.address, request.role, "detach", driver, request.stub))
            else:
                steps.append(Step(request.address, request.role, "keep", driver, driver))
        return steps + self._give_back_steps(moving)

    def _give_back_steps(self, moving: set[PCIDeviceAddress]) -> list[Step]:
        back = [(r, r.dev) for r in self.present if r.dev is not None and r.address in moving]
        resets = [Step(r.address, r.role, "reset", r.stub, r.stub) for r, dev in back if dev.usable_reset()]
        return resets + [Step(r.address, r.role, "reattach", r.stub, dev.driver) for r, dev in back]

    def proposals(self, findings: Iterable[Finding]) -> list[ProposedHostdev]:
        """Return the missing functions whose declaration would help: endpoints, managed like the others."""
        from pyhostdev.conf.domain_conf import ProposedHostdev

        blockers = (f.address for f in findings if f.reason in ("incomplete-device", "group-not-viable"))
        addresses = sorted({a for a in blockers if isinstance(a, PCIDeviceAddress)})
        devices = (self.host.pci_device(address) for address in addresses)
        managed = all(request.managed for request in self.requests)
        return [
            ProposedHostdev(dev.address, managed, dev.is_multifunction() is True)
            for dev in devices
            if dev is not None and not (dev.is_bridge or dev.is_host_bridge) and dev.is_endpoint is not False
        ]

    def fates(self) -> list[FunctionPlan]:
        """Return the fate of each member of a touched group, then of the devices without a group."""
        moving = {request.address for request in self.moving}
        return function_plans(self.requests, self.members, self.records, moving, self.vanishing)


def _is_already_there(request: Request) -> bool:
    """
    Tell whether a device has the driver that it will have, so that the guest's start changes nothing.

    Mirrors: virPCIDeviceBindToStub, which also moves a device from one VFIO driver to another (src/util/virpci.c)
    """
    assert request.dev is not None
    return request.dev.driver == request.stub


def _without_vfs(requests: Iterable[Request]) -> list[virpci.PCIDevice]:
    """Return the devices of requests that are not VFs, each once."""
    devs = {r.address: r.dev for r in requests if r.dev is not None and not r.dev.is_virtual_function}
    return list(devs.values())


def _findings(*found: Finding | None) -> list[Finding]:
    """Return the findings without None."""
    return [finding for finding in found if finding is not None]


def _error(reason: str, address: PCIDeviceAddress | str | None, message: str) -> Finding:
    return Finding(reason, ERROR, address, message)


def _incomplete(address: PCIDeviceAddress, driver: str | None, sibling: PCIDeviceAddress) -> Finding:
    return _error(
        "incomplete-device",
        address,
        f"Function {address} ({driver_phrase(driver)}) belongs to the same device as {sibling} and is not "
        "declared: declare it too, with assigned='no' if the guest must not get it",
    )
