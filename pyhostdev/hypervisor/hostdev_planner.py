# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Make a plan: each rule of row S4, of the policies and of libvirt's checks is one method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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
from pyhostdev.hypervisor.hostdev_function_plan import bus_reset_phrase, driver_phrase, function_plans, reset_phrase
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
    read_pci_devices_with_groups,
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
    requests, groups = _requests(host, definition.host_functions(), drivers)
    taken = frozenset(definition.guest_pci_addresses() if occupied is None else occupied)
    planner = _Planner(host, requests, groups, owner, policy, records, taken, definition, drivers)
    return planner.plan(consents(accept, host.root), release)


def _requests(
    host: HostFacts, hostdevs: list[DomainHostdevDef], drivers: VFIODrivers
) -> tuple[list[Request], dict[int, list[virpci.GroupMember]]]:
    """Return each hostdev with the host's function, and the IOMMU groups that only have such functions."""
    addresses = [hostdev.pci_address for hostdev in hostdevs]
    found, groups = read_pci_devices_with_groups(host.root, addresses)
    return [
        Request.of(hostdev, found.get(at), drivers) for hostdev, at in zip(hostdevs, addresses, strict=True)
    ], groups


class _Planner:
    """A plan in the making: each rule is one method that yields its findings."""

    def __init__(
        self,
        host: HostFacts,
        requests: list[Request],
        groups: dict[int, list[virpci.GroupMember]],
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
        self.moving = [request for request in self.present if request.moves]
        self.moving_addresses = {request.address for request in self.moving}
        self.drivers = drivers
        # a VF has no VFs and no siblings, and the drivers that create functions bind to no VF
        self.endpoints = _without_vfs(self.present)
        self.moving_endpoints = [dev for dev in self.endpoints if dev.address in self.moving_addresses]
        self.members = self._read_members(groups)
        self.siblings = self._read_siblings()
        self.vfs = read_all_virtual_functions(self.endpoints)
        self.vanishing = self._read_vanishing()
        # the VFs that a PF's driver may remove when the PF is detached, each with its PF
        self.virtual = {vf: dev.address for dev in self.moving_endpoints for vf in self.vfs.get(dev.address, ())}
        self.leaving = self._read_leaving()
        self.resets = {r.address: r.dev.usable_reset() for r in self.moving if r.dev is not None}
        self.bus_resets = self._bus_resets()

    def plan(self, accepted: frozenset[tuple[str, str]], release: LibvirtRelease) -> Plan:
        """Return the plan."""
        findings = self.findings()
        return Plan(
            owner=self.owner,
            policy=self.policy,
            requests=self.requests,
            findings=findings,
            steps=self.steps(),
            fates=self.fates,
            proposals=self.proposals(findings),
            accepted=accepted,
            definition=self.definition,
            occupied=self.occupied,
            release=release,
        )

    def _read_members(self, whole: dict[int, list[virpci.GroupMember]]) -> dict[int, list[virpci.GroupMember]]:
        """Return the members of each declared device's group; those of some groups are known."""
        groups = {r.dev.iommu_group for r in self.present if r.dev is not None} - {None}
        numbers: list[int] = sorted(groups)  # type: ignore[arg-type]  # without None
        unread = [group for group in numbers if group not in whole]
        if not unread:
            return {group: whole[group] for group in numbers}
        known = {str(r.address): r.dev.as_group_member() for r in self.present if r.dev is not None}
        found = {**whole, **read_iommu_groups(self.host.root, unread, known=known)}
        return {group: found[group] for group in numbers}

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

    def _bus_resets(self) -> dict[PCIDeviceAddress, str]:
        """Return how each moving device is reset that the kernel cannot reset alone, as a phrase."""
        alone = [r.dev for r in self.moving if r.dev is not None and self.resets[r.address] is None]
        return {dev.address: bus_reset_phrase(dev, self.declared) for dev in alone}

    def findings(self) -> list[Finding]:
        """Return all findings, those in the domain's order first, each fact once."""
        found: list[Finding] = [*self.words, *self._findings_of_devices()]
        found += self._two_uses()
        found += self._changed_identities()
        found += self._incomplete_devices()
        found += self._group_findings()
        found += self._missing_drivers()
        found += host_needs(self.host.root, [request.dev for request in self.moving if request.dev is not None])
        found += held_groups(self.host.root, self._first_by_group(), self.members)
        found += libvirt_owners(self.host.root, self._touched())
        found += saved_overrides(self.host.root, self.present, self.moving_addresses)
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
        leaving = [self.leaving.get(address) for address in (*self.vanishing, *self.virtual)]
        for dev in [*[request.dev for request in self.present], *leaving]:
            group = None if dev is None else dev.iommu_group
            if dev is not None and group is not None and group not in found:
                found[group] = dev.address
        return found

    def _findings_of_devices(self) -> Iterator[Finding]:
        """Yield the findings on each device; those of one kind are alike, so one without a finding answers for all."""
        quiet: set[object] = set()
        for request in self.requests:
            kind = self._kind(request)
            if kind is None or kind not in quiet:
                found = list(self._device_findings(request))
                if not found:
                    quiet.add(kind)
                yield from found

    def _kind(self, request: Request) -> object:
        """Return all that ``_device_findings`` looks at, except for the address; None if that is more than this."""
        dev = request.dev
        if dev is None or not dev.is_virtual_function or request.address in self.records or request.network:
            return None
        is_in_flight = self.has_records and self.host.is_in_flight(request.address)
        settings = (request.managed, request.written, request.stub, request.module, request.named, is_in_flight)
        return settings, dev.kind, dev.iommu_group is None

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
                if member.address not in self.declared or member.address in self.records:
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
        steps, resets, reattachments = self._module_steps(), list[Step](), list[Step]()
        for request in self.present:
            address, role, stub = request.address, request.role, request.stub
            driver = None if request.dev is None else request.dev.driver
            if address not in self.moving_addresses:
                steps.append(Step(address, role, "keep", driver, driver))
                continue
            steps.append(Step(address, role, "detach", driver, stub))
            if self.resets[address]:
                resets.append(Step(address, role, "reset", stub, stub))
            reattachments.append(Step(address, role, "reattach", stub, driver))
        return steps + resets + reattachments

    def _module_steps(self) -> list[Step]:
        """Return a step for each module to load, at the first device that needs it."""
        found: dict[str, Step] = {}
        for request in self.moving:
            if request.module is not None and request.module not in found:
                found[request.module] = Step(request.address, request.role, "load-module", None, request.module)
        return list(found.values())

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
        """Return the fate of each member of a touched group, then of the devices without a group; reads nothing."""
        resets = {at: reset_phrase(method) if method else self.bus_resets[at] for at, method in self.resets.items()}
        return function_plans(self.requests, self.members, self.records, resets, self.vanishing)


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
