# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's side of a plan: alias, address and properties of each function to plug.

All checks happen here, before the host is touched. libvirt reports the same errors, with the same numbers, but only
after it has detached the device.

Mirrors: qemuDomainAttachHostPCIDevice, qemuDomainEnsurePCIAddress (src/qemu/qemu_hotplug.c, qemu_domain_address.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.address_conf import PCIGuestAddress
from pyhostdev.conf.device_validate import device_errors
from pyhostdev.conf.domain_addr import CONNECT_HOTPLUG
from pyhostdev.conf.newer_words import drop_newer_words
from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_OPERATION_INVALID,
    ConfigError,
    ConfigUnsupportedError,
    raise_all,
)
from pyhostdev.hypervisor.hostdev_attach import unit_of
from pyhostdev.qemu.qemu_alias import hostdev_alias
from pyhostdev.qemu.qemu_command.builder import CommandBuilder
from pyhostdev.qemu.qemu_command.hostdev import hotplug_properties
from pyhostdev.qemu.qemu_command.ignored import start_findings
from pyhostdev.qemu.qemu_command.paths import DomainPaths
from pyhostdev.qemu.qemu_command.refused import unbuilt_errors
from pyhostdev.qemu.qemu_domain_address import occupied_addresses
from pyhostdev.qemu.qemu_validate import QEMURules
from pyhostdev.util.finding import ERROR
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.record import PREPARED, Plug
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities


class PlannedUnit(NamedTuple):
    """
    A unit to plug: the live definition afterwards, and the arguments of each ``device_add`` in order.

    ``hostdevs`` are the new devices of the live definition, with aliases and addresses.
    """

    name: str
    hostdevs: tuple[DomainHostdevDef, ...]
    definition: DomainDef
    arguments: tuple[dict[str, Any], ...]

    @property
    def plugs(self) -> dict[PCIDeviceAddress, Plug]:
        """The data for the record of each function."""
        return {hostdev.pci_address: plug_of(self.name, PREPARED, hostdev) for hostdev in self.hostdevs}

    @property
    def by_iommufd(self) -> list[PCIDeviceAddress]:
        """The functions whose nodes QEMU gets as descriptors."""
        found = (hostdev for hostdev in self.hostdevs if hostdev.is_assigned and self.definition.uses_iommufd(hostdev))
        return [hostdev.pci_address for hostdev in found]

    @property
    def ids(self) -> list[str]:
        """The ids in QEMU, in the order of plugging."""
        return [str(properties["id"]) for properties in self.arguments]


def plug_of(unit: str, phase: str, hostdev: DomainHostdevDef) -> Plug:
    """Return the data for the record of a host device of a running domain."""
    guest = hostdev.info.pci if hostdev.is_assigned else None
    alias = hostdev.info.alias if hostdev.is_assigned else None
    return Plug(unit, phase, alias, None if guest is None else str(guest.pci))


def plan_unit(
    live: DomainDef,
    plan: Plan,
    capabilities: QEMUCapabilities,
    host: HostFacts,
    release: LibvirtRelease,
    spent_ids: Collection[str] = (),
) -> PlannedUnit:
    """
    Plan the guest's side of a plan that ``Host.plan_attach`` made.

    Args:
        live: the running domain, with aliases and addresses.
        spent_ids: the aliases that QEMU no longer accepts.

    Raises:
        ConfigError, ConfigUnsupportedError: with libvirt's number for the same fault.
    """
    assert plan.definition is not None
    hostdevs = [hostdev.copy() for hostdev in plan.definition.pci_hostdevs()]
    _refuse_wrong(live, hostdevs, capabilities, release)
    after = live.copy()
    after.hostdevs.extend(hostdevs)
    _refuse_present(live, hostdevs)
    _refuse_spent(hostdevs, spent_ids)
    _choose_aliases(after, hostdevs, spent_ids)
    _place(live, host, hostdevs)
    return PlannedUnit(
        unit_of(plan.requests), tuple(hostdevs), after, tuple(_arguments(after, hostdevs, capabilities, release))
    )


def _refuse_wrong(
    live: DomainDef, hostdevs: Sequence[DomainHostdevDef], capabilities: QEMUCapabilities, release: LibvirtRelease
) -> None:
    """
    Refuse devices with which the definition would be invalid, or that we cannot build.

    Raises:
        ConfigError: the first error, with the rest in ``others``.
    """
    rules = QEMURules(capabilities, release)
    errors: list[ConfigError] = []
    for hostdev in hostdevs:
        drop_newer_words(hostdev, release)
        errors += device_errors(live, hostdev)
        errors += rules.device_errors(live, hostdev)
        errors += unbuilt_errors(hostdev) if hostdev.is_assigned else []
        hostdev.driver_name = hostdev.driver_name or "vfio"  # the only backend for assigned functions
    raise_all([*errors, *_new_start_errors(live, hostdevs)])


def _new_start_errors(live: DomainDef, hostdevs: Sequence[DomainHostdevDef]) -> Iterator[ConfigError]:
    """Yield what ``start`` would refuse in the definition with the devices, and not without them."""
    known = set(start_findings(live))
    after = live.copy()
    after.hostdevs.extend(hostdevs)
    for finding in start_findings(after):
        if finding not in known and finding.severity == ERROR:
            yield ConfigUnsupportedError(finding.message, line=finding.line)


def _refuse_present(live: DomainDef, hostdevs: Sequence[DomainHostdevDef]) -> None:
    """
    Refuse a device that the running domain already has, and an alias in use.

    Raises:
        ConfigError: has libvirt's number.
    """
    present = {hostdev.pci_address for hostdev in live.pci_hostdevs()}
    aliases = {info.alias for _, info in live.device_infos()}
    for hostdev in hostdevs:
        address, alias = hostdev.pci_address, hostdev.info.alias
        if address in present:
            text, number = f"The domain already has device {address}", VIR_ERR_OPERATION_INVALID
            raise ConfigError(text, libvirt_code=number, address=address, reason="in-use")
        if alias is not None and alias in aliases:
            raise ConfigUnsupportedError(f"The alias '{alias}' is in use", address=address)
        present.add(address)
        aliases.add(alias)


def _refuse_spent(hostdevs: Sequence[DomainHostdevDef], spent_ids: Collection[str]) -> None:
    """
    Refuse an alias of the user with which QEMU would end itself.

    Raises:
        ConfigUnsupportedError: names it.
    """
    for hostdev in hostdevs:
        if hostdev.info.alias in spent_ids:
            text = f"The alias '{hostdev.info.alias}' cannot be used again while the guest runs: QEMU refused a device"
            raise ConfigUnsupportedError(f"{text} with it, and would end itself", address=hostdev.pci_address)


def _choose_aliases(after: DomainDef, hostdevs: Sequence[DomainHostdevDef], spent_ids: Collection[str]) -> None:
    """Give the new devices the next free aliases; those with ``assigned='no'`` get none."""
    for hostdev in hostdevs:
        if hostdev.info.alias is None and hostdev.assigned is not False:
            hostdev.info.alias = hostdev_alias(after, spent_ids)


def _place(live: DomainDef, host: HostFacts, hostdevs: Sequence[DomainHostdevDef]) -> None:
    """
    Give each assigned function its guest address.

    Raises:
        ConfigError: an address is invalid or in use, or no slot with hot-plug is free.
    """
    assigned = [hostdev for hostdev in hostdevs if hostdev.is_assigned]
    if not assigned:
        return
    written = [hostdev for hostdev in assigned if hostdev.info.pci is not None]
    if written and len(written) != len(assigned):
        raise _unit_error("Either all assigned functions or none must have a guest address", assigned)
    occupied = occupied_addresses(live, host)
    if written:
        _check_written(assigned)
    flags = occupied.flags.of(assigned[0]) | CONNECT_HOTPLUG
    group = occupied.group_of(assigned[0])
    if written:
        first = _first_written(assigned)
        occupied.addrs.validate(first, flags)
        if occupied.addrs.is_slot_in_use(first):
            raise _unit_error(f"Slot {str(first)[:-2]} of the guest is in use", assigned)
        return
    slot = occupied.addrs.find_next(flags, group, 0)
    _take_slot(slot, assigned)


def _take_slot(slot: PCIDeviceAddress, assigned: Sequence[DomainHostdevDef]) -> None:
    """Give functions their host function numbers; without function 0, the lowest becomes function 0."""
    functions = sorted(assigned, key=lambda hostdev: hostdev.pci_address)
    for number, hostdev in enumerate(functions):
        function = hostdev.pci_address.function if number else 0
        multifunction = True if not number and len(functions) > 1 else None
        hostdev.info.address = PCIGuestAddress.at(slot.with_function(function), multifunction=multifunction)


def _check_written(assigned: Sequence[DomainHostdevDef]) -> None:
    """
    Refuse guest addresses that do not form one multifunction device.

    Raises:
        ConfigError: has libvirt's number for a single device.
    """
    addresses = [hostdev.info.pci for hostdev in assigned if hostdev.info.pci is not None]
    if len(addresses) == 1 and addresses[0].function:
        raise ConfigError(
            f"Guest PCI address {addresses[0].pci} is not function 0: a running guest does not find a slot without it",
            libvirt_code=VIR_ERR_INTERNAL_ERROR,
            reason="no-guest-function-0",
            address=assigned[0].pci_address,
        )
    if len({(a.domain, a.bus, a.slot) for a in addresses}) > 1:
        raise _unit_error("The functions of a unit must share one guest slot", assigned)
    if len({a.function for a in addresses}) < len(addresses):
        raise _unit_error("Two functions have the same guest address", assigned)
    first = next((a for a in addresses if a.function == 0), None)
    if first is None:
        raise _unit_error("One function must be function 0 of the guest slot", assigned, "no-guest-function-0")
    if len(addresses) > 1 and first.multifunction is False:
        raise _unit_error("multifunction='off' hides the other functions", assigned)
    if len(addresses) > 1:
        first.multifunction = True


def _first_written(assigned: Sequence[DomainHostdevDef]) -> PCIDeviceAddress:
    """Return the address of function 0."""
    return min(hostdev.info.pci.pci for hostdev in assigned if hostdev.info.pci is not None)


def _unit_error(text: str, assigned: Sequence[DomainHostdevDef], reason: str | None = None) -> ConfigError:
    return ConfigError(text, reason=reason or "guest-slot", address=assigned[0].pci_address, line=assigned[0].line)


def _arguments(
    after: DomainDef, hostdevs: Sequence[DomainHostdevDef], capabilities: QEMUCapabilities, release: LibvirtRelease
) -> Iterator[dict[str, Any]]:
    """
    Yield the arguments of each ``device_add``: functions other than 0 first, function 0 last.

    Raises:
        ConfigUnsupportedError: the emulator does not support a property.
    """
    build = CommandBuilder(after, capabilities, DomainPaths.of("", str(after.name), 0), release=release)
    assigned = [hostdev for hostdev in hostdevs if hostdev.is_assigned]
    for hostdev in sorted(assigned, key=_function, reverse=True):
        yield hotplug_properties(build, hostdev)


def _function(hostdev: DomainHostdevDef) -> int:
    return 0 if hostdev.info.pci is None else hostdev.info.pci.function
