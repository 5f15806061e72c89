# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The plan: what happens to every function of every touched IOMMU group and why, or what prevents it.

Making a plan reads the host and writes nothing; a manager makes it again before it executes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigUnsupportedError
from pyhostdev.util.deprecation import deprecated_names
from pyhostdev.util.finding import CONSENT, ERROR, NOTE, Finding
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.record import Plug
from pyhostdev.util.typed import TYPE_CHECKING, Any, NamedTuple
from pyhostdev.util.vfiodriver import DriverChoice

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef, ProposedHostdev
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.util import virpci
    from pyhostdev.util.literals import Action, Role
    from pyhostdev.util.vfiodriver import VFIODrivers

POLICIES = ("auto", "device", "group", "off")
ASSIGNED: Role = "assigned"
UNASSIGNED: Role = "unassigned"
DETACHED, STAYS, VANISHES, MISSING = FATES = ("detached", "stays", "vanishes", "missing")
START_REASONS = ("viommu-group",)  # notes of a plan with which QEMU does not start
AROUND_PLAN = "around-plan"  # the reason of a finding: the domain takes a host device without the plan
AFTERWARDS = ("reset", "reattach")  # steps after the guest's end


class Step(NamedTuple):
    """One action on one function; ``before`` and ``after`` are drivers, None for no driver."""

    address: PCIDeviceAddress
    role: Role
    action: Action
    before: str | None
    after: str | None

    def to_json(self) -> dict[str, str | None]:
        """Return the step as in ``plan --json``."""
        return {
            "address": str(self.address),
            "role": self.role,
            "action": self.action,
            "from": self.before,
            "to": self.after,
        }


class Request(NamedTuple):
    """One declared PCI hostdev: the domain's request, and the host's function (None: the host does not have it)."""

    address: PCIDeviceAddress
    role: Role
    managed: bool
    written: str | None  # the value of assigned=, None without the attribute
    stub: str
    guest_address: PCIDeviceAddress | None
    dev: virpci.PCIDevice | None
    incarnation: int | None  # of dev's directory, when the plan was made
    network: tuple[str, ...] = ()  # settings of a VF's interface that must be made through the PF
    module: str | None = None  # the module to load before the stub is registered
    named: bool = False  # the definition names the stub
    why: str = ""  # the reason for the choice of the stub; empty for the default, vfio-pci
    nvme_disks: tuple[str, ...] = ()  # the guest's disks on the function, which the guest itself does not see
    line: int | None = None  # of the definition

    @classmethod
    def of(cls, hostdev: DomainHostdevDef, dev: virpci.PCIDevice | None, drivers: VFIODrivers) -> Request:
        """
        Read a hostdev's request.

        Args:
            dev: the function that it names, None if the host does not have it.

        Raises:
            ConfigError: the name of the driver cannot be that of a driver.
            ConfigUnsupportedError: the backend is not VFIO, or the device of an interface is not a virtual function.
        """
        source = hostdev.pci_address if dev is None else dev.address
        if hostdev.driver_name not in (None, "vfio"):
            raise ConfigUnsupportedError(
                f"Backend driver '{hostdev.driver_name}' of device {source} is not VFIO", address=source
            )
        guest = hostdev.info.pci
        net = hostdev.interface
        if net is not None and (dev is None or not dev.is_virtual_function):
            raise ConfigUnsupportedError(
                f"Device {source} is not a virtual function, and an <interface type='hostdev'> needs one",
                address=source,
                # libvirt looks up the port's network interface first, and finds none
                libvirt_code=VIR_ERR_INTERNAL_ERROR if net.has_virtualport else None,
            )
        choice = _driver_for(hostdev, dev, drivers)
        return cls(
            address=source,
            role=ASSIGNED if hostdev.is_assigned else UNASSIGNED,
            managed=hostdev.managed,
            written=None if hostdev.assigned is None else ("no", "yes")[hostdev.assigned],
            stub=choice.driver,
            guest_address=None if guest is None else guest.pci,
            dev=dev,
            incarnation=None if dev is None else dev.incarnation,
            network=() if net is None else net.words,
            module=choice.module,
            named=hostdev.managed and hostdev.host_driver.model is not None,
            why=choice.why,
            nvme_disks=hostdev.nvme_disks,
            line=hostdev.line,
        )

    @property
    def moves(self) -> bool:
        """
        True if the guest's start changes the driver of the function.

        Mirrors: virPCIDeviceBindToStub, which also moves a device from one VFIO driver to another (src/util/virpci.c)
        """
        return self.managed and self.dev is not None and self.dev.driver != self.stub

    def with_driver(self, driver: str) -> Request:
        """Return the request after its module was loaded, with the name of the registered driver."""
        return self._replace(stub=driver, module=None)


def _driver_for(hostdev: DomainHostdevDef, dev: virpci.PCIDevice | None, drivers: VFIODrivers) -> DriverChoice:
    """Return the driver that a device gets; a device that is not managed keeps the VFIO driver that it has."""
    if dev is None:
        return DriverChoice(VFIO_PCI, None, "")
    if hostdev.managed:
        return drivers.choose(dev, hostdev.host_driver.model)
    return DriverChoice(dev.driver if dev.driver is not None and dev.is_vfio else VFIO_PCI, None, "")


class FunctionPlan(NamedTuple):
    """The fate of one member of a touched group: as one of ``FATES``, and as text for people."""

    name: str
    group: int | None
    driver: str | None
    role: Role | None
    text: str
    fate: str

    def to_json(self, guest_address: str | None, nodes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the member as in ``plan --json``; a function that is not assigned has no guest address or nodes."""
        return {
            "name": self.name,
            "driver": self.driver,
            "role": self.role,
            "fate": self.fate,
            "guest_address": guest_address if self.role == ASSIGNED else None,
            "nodes": list(nodes),
            "text": self.text,
        }


class Plan:
    """
    Steps and findings for one domain on one host.

    ``ok`` is False if a finding is an error, or needs a consent that was not given. ``proposals`` are the functions
    to declare as not assigned. ``can_start`` tells whether ``pyhostdev start`` would run the domain, None if that was
    not asked: the answer needs the emulator's capabilities.
    """

    def __init__(
        self,
        *,
        owner: str,
        policy: str,
        requests: Sequence[Request],
        steps: Sequence[Step],
        findings: Sequence[Finding],
        fates: Callable[[], Sequence[FunctionPlan]],
        proposals: Sequence[ProposedHostdev] = (),
        accepted: Set[tuple[str, str]] = frozenset(),
        definition: DomainDef | None = None,
        occupied: Set[PCIDeviceAddress] = frozenset(),
        start_findings: Sequence[Finding] | None = None,
        guest_addresses: Mapping[PCIDeviceAddress, PCIDeviceAddress] | None = None,
        nodes: Mapping[PCIDeviceAddress, Sequence[str]] | None = None,
        release: LibvirtRelease = DEFAULT_RELEASE,
        plugs: Mapping[PCIDeviceAddress, Plug] | None = None,
    ) -> None:
        self.owner = owner
        self.policy = policy
        self.requests = tuple(requests)
        self.steps = tuple(steps)
        self.findings = tuple(findings)
        self._make_fates = fates
        self._fates: tuple[FunctionPlan, ...] | None = None
        self.proposals = tuple(proposals)
        self.accepted = frozenset(accepted)
        self.definition = definition
        self.occupied = frozenset(occupied)
        self.start_findings = None if start_findings is None else tuple(start_findings)
        self.plugs = dict(plugs or {})
        self.guest_addresses = dict(guest_addresses or _written_guest_addresses(requests))
        self.nodes = dict(nodes or {})
        self.release = release

    @property
    def fates(self) -> tuple[FunctionPlan, ...]:
        """The fate of each member of a touched group; the texts are made when they are first asked for."""
        if self._fates is None:
            self._fates = tuple(self._make_fates())
        return self._fates

    @property
    def ok(self) -> bool:
        """True if the host devices can be prepared."""
        return not self.obstacles

    @property
    def can_start(self) -> bool | None:
        """True if ``pyhostdev start`` would run the domain; None if that was not asked."""
        return None if self.start_findings is None else not (self.obstacles or self.start_obstacles)

    @property
    def start_obstacles(self) -> tuple[Finding, ...]:
        """The errors of ``start`` besides ``obstacles``; empty if ``start`` was not asked."""
        reported = {key for finding in self.obstacles for key in _facts(finding)}
        found = [finding for finding in self.findings if finding.reason in START_REASONS]
        found += (finding for finding in self.start_findings or () if finding.severity == ERROR)
        return tuple(finding._replace(severity=ERROR) for finding in found if reported.isdisjoint(_facts(finding)))

    def _copy(self) -> Plan:
        plan = Plan.__new__(Plan)
        plan.__dict__.update(self.__dict__)
        return plan

    def with_start_findings(self, found: Sequence[Finding]) -> Plan:
        """
        Return the plan with the findings of ``start``.

        In the plan's own findings they are notes, because another hypervisor driver may run the domain; a bypass of
        the plan remains an error. A fact that the plan
        already contains is not repeated.
        """
        reported = {key for finding in self.findings for key in _facts(finding)}
        new = [finding for finding in found if reported.isdisjoint(_facts(finding))]
        notes = [f if f.reason == AROUND_PLAN else f._replace(severity=NOTE) for f in new]
        plan = self._copy()
        plan.findings, plan.start_findings = (*self.findings, *notes), tuple(found)
        return plan

    def with_guest_addresses(self, addresses: Mapping[PCIDeviceAddress, PCIDeviceAddress] | Mapping[str, str]) -> Plan:
        """
        Return the plan with the guest address of each assigned function, by its host address.

        The plan itself only knows the addresses in the definition; a hypervisor driver chooses the others.
        """
        plan = self._copy()
        plan.guest_addresses = {PCIDeviceAddress.of(a): PCIDeviceAddress.of(b) for a, b in addresses.items()}
        return plan

    def with_nodes(self, nodes: Mapping[PCIDeviceAddress, Sequence[str]] | Mapping[str, Sequence[str]]) -> Plan:
        """Return the plan with the nodes that the hypervisor opens for each assigned function."""
        plan = self._copy()
        plan.nodes = {PCIDeviceAddress.of(address): paths for address, paths in nodes.items()}
        return plan

    def fate_phrases(self, fate: FunctionPlan) -> str:
        """Return the text about one member, with the nodes that the guest's QEMU opens."""
        nodes = {str(address): found for address, found in self.nodes.items()}.get(fate.name)
        return fate.text if not nodes else f"{fate.text} (QEMU's nodes: {', '.join(nodes)})"

    def with_loaded_modules(self, drivers: Mapping[str, str]) -> Plan:
        """
        Return the plan after modules were loaded, with the names of the drivers that they registered.

        Args:
            drivers: each module that was loaded, with its driver.
        """
        named = {r.address: r.with_driver(drivers[r.module]) for r in self.requests if r.module is not None}
        plan = self._copy()
        plan.requests = tuple(named.get(request.address, request) for request in self.requests)
        plan.steps = tuple(
            step._replace(after=named[step.address].stub) if step.action == "detach" and step.address in named else step
            for step in self.steps
        )
        return plan

    def with_plugs(self, plugs: Mapping[PCIDeviceAddress, Plug] | Mapping[str, Plug]) -> Plan:
        """Return the plan with the record data of functions that will be plugged into a running guest."""
        plan = self._copy()
        plan.plugs = {PCIDeviceAddress.of(address): plug for address, plug in plugs.items()}
        return plan

    @property
    def obstacles(self) -> tuple[Finding, ...]:
        """The findings that refuse: errors, and findings without the needed consent."""
        return tuple(f for f in self.findings if f.severity == ERROR or self._wants_consent(f))

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that are only information."""
        return tuple(finding for finding in self.findings if finding.severity == NOTE)

    def _wants_consent(self, finding: Finding) -> bool:
        return finding.severity == CONSENT and (finding.reason, str(finding.address)) not in self.accepted

    def to_json(self) -> dict[str, Any]:
        """Return the plan as in ``plan --json``, without the emulator's capabilities."""
        guests = {str(host): str(guest) for host, guest in self.guest_addresses.items()}
        nodes = {str(address): found for address, found in self.nodes.items()}
        return {
            "version": 1,
            "ok": self.ok,
            "can_start": self.can_start,
            "owner": self.owner,
            "policy": self.policy,
            "steps": [step.to_json() for step in self.steps],
            "findings": [finding.to_json() for finding in self.findings],
            "accepted": [{"reason": reason, "address": address} for reason, address in sorted(self.accepted)],
            "groups": [
                {
                    "iommu_group": group,
                    "functions": [fate.to_json(guests.get(fate.name), nodes.get(fate.name, ())) for fate in fates],
                }
                for group, fates in self.fates_by_group().items()
            ],
            "proposal": [
                {"address": str(p.address), "managed": p.managed, "multifunction": p.is_multifunction}
                for p in self.proposals
            ],
        }

    def explain(self) -> str:
        """Return the whole plan as text: one line per function, by group, then one line per finding."""
        lines = [self.headline()]
        for group, fates in self.fates_by_group().items():
            lines.append("no IOMMU group" if group is None else f"IOMMU group {group}")
            lines += [f"  {fate.name}  {self.fate_phrases(fate)}" for fate in fates]
        lines += [f"{finding.severity}: {finding.sentence}" for finding in self.findings]
        return "\n".join(lines)

    def headline(self) -> str:
        """Return the verdict in one sentence: on the host devices and, if asked, on ``start``."""
        verdict = "the host devices can be prepared" if self.ok else "the host devices cannot be prepared"
        start = {None: "", True: "; pyhostdev start would run it", False: "; pyhostdev start would not run it"}
        return f"Domain '{self.owner}': {verdict} (policy {self.policy}){start[self.can_start]}"

    def fates_by_group(self) -> dict[int | None, list[FunctionPlan]]:
        """Return the fates under their groups' numbers, in the order of the plan."""
        table: dict[int | None, list[FunctionPlan]] = {}
        for fate in self.fates:
            table.setdefault(fate.group, []).append(fate)
        return table


def _written_guest_addresses(requests: Sequence[Request]) -> dict[PCIDeviceAddress, PCIDeviceAddress]:
    """Return the guest addresses in the definition itself, by host address."""
    return {request.address: request.guest_address for request in requests if request.guest_address is not None}


def _facts(finding: Finding) -> Iterator[tuple[object, ...]]:
    """Yield the keys that identify a finding: its message and line, and its reason on a device."""
    yield finding.message, finding.line
    if finding.address is not None:
        yield finding.reason, str(finding.address)


__getattr__ = deprecated_names(__name__, {"Fate": FunctionPlan})
