# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Queries about a host's PCI functions, shared by a scan and by a monitor's live view.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyhostdev.errors import ConfigError
from pyhostdev.util import virpci
from pyhostdev.util.finding import CONSENT, Finding
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostusage import HostUsage, HostUse
from pyhostdev.util.pciaddress import FIRMWARE_DOMAIN_MAX, PCIDeviceAddress
from pyhostdev.util.pciassign import (
    denied_obstacle,
    endpoint_obstacle,
    group_obstacle,
    has_iommu,
    member_obstacle,
    vfs_obstacle,
)
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.typed import Any, NamedTuple
from pyhostdev.util.virpci import PCIDevice

_CLASS = 2
# For each part of a filter: index of the Identity field, mask, number of digits
_FIELDS = ((0, 0xFFFF, 4), (1, 0xFFFF, 4), (_CLASS, 0xFFFFFF, 6), (_CLASS, 0xFF, 2))
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class Identity(NamedTuple):
    """What kind of function it is; None stands for a value that the host does not report."""

    vendor: int | None
    device: int | None
    class_: int | None


class HostFunctions(Sequence[PCIDevice]):
    """
    The PCI functions of a host in address order.

    The indexes are built on first use. A function without a key is left out of that index; lists are in address
    order.
    """

    root: HostRoot

    def __init__(self, root: HostRoot) -> None:
        self.root = root

    # Indexes

    @abstractmethod
    def find(self, address: PCIDeviceAddress | str) -> PCIDevice | None:
        """Return the function at an address, None if the host has none."""

    @abstractmethod
    def _index(self, name: str) -> Mapping[Any, list[PCIDevice]]:
        """Return the index with a given name, built on first use."""

    @property
    def groups(self) -> Mapping[int, list[PCIDevice]]:
        """IOMMU group number to its PCI functions, in order."""
        return self._index("groups")

    @property
    def slots(self) -> Mapping[tuple[int, int, int], list[PCIDevice]]:
        """(domain, bus, slot) to its functions, without VFs."""
        return self._index("slots")

    @property
    def buses(self) -> Mapping[tuple[int, int], list[PCIDevice]]:
        """(domain, bus) to its functions, without VFs."""
        return self._index("buses")

    @property
    def drivers(self) -> Mapping[str, list[PCIDevice]]:
        """Driver name to the functions bound to it."""
        return self._index("drivers")

    @property
    def virtual_functions(self) -> Mapping[PCIDeviceAddress, list[PCIDevice]]:
        """PF address to its VFs."""
        return self._index("virtual_functions")

    @property
    def identities(self) -> Mapping[Identity, list[PCIDevice]]:
        """Vendor, device and class to the functions with these values."""
        return self._index("identities")

    # One device

    def iommu_group_members(self, dev: PCIDevice) -> list[PCIDevice]:
        """
        Return all PCI functions of a function's IOMMU group, itself included; empty if it has no group.

        Mirrors: virPCIDeviceGetIOMMUGroupList (src/util/virpci.c)
        """
        return [] if dev.iommu_group is None else self.groups[dev.iommu_group]

    def siblings(self, dev: PCIDevice) -> list[PCIDevice]:
        """
        Return all functions of the device that a function belongs to, itself included; a VF stands alone.

        They share domain, bus and slot; with ARI enabled on the bus, they share the bus.
        """
        if dev.is_virtual_function:
            return [dev]
        return self.buses[dev.address[:2]] if self._is_ari(dev) else self.slots[dev.address[:3]]

    def is_multifunction(self, dev: PCIDevice) -> bool | None:
        """
        Return what ``PCIDevice.is_multifunction`` returns, but read configuration space only when needed.

        A function that is alone in its slot and on its bus is not multifunction. Otherwise the header type of
        function 0 is read, once per device.
        """
        if dev.is_virtual_function or len(self.siblings(dev)) == 1:
            return False
        slot = 0 if self._is_ari(dev) else dev.address.slot
        first = self.find(dev.address._replace(slot=slot, function=0))
        answer = None if first is None else first.has_multifunction_bit
        return dev.has_multifunction_bit if answer is None else answer

    def _is_ari(self, dev: PCIDevice) -> bool:
        """Ask one function of each bus, and only where ARI makes a difference."""
        peers = self.buses[dev.address[:2]]
        if len(peers) == 1 or peers[-1].address.slot == 0:
            return False
        return peers[0].is_ari  # the result is cached in that function

    def path_to_root_port(self, dev: PCIDevice) -> list[PCIDevice]:
        """
        Return the bridges above a function, root port first, and the function itself last.

        Host: sys/bus/pci/devices/ADDRESS, the link only
        """
        found = (self.find(address) for address in dev.read_path())
        return [step for step in found if step is not None]

    def root_port(self, dev: PCIDevice) -> PCIDevice | None:
        """Return the port above a function; None for a function on a root bus."""
        first = self.path_to_root_port(dev)[:1]
        return first[0] if first and first[0] is not dev else None

    def free_virtual_functions(self, pf: PCIDevice, taken: Iterable[PCIDeviceAddress | str] = ()) -> list[PCIDevice]:
        """
        Return the free VFs of a PF: without a driver or with vfio-pci, and not taken.

        Args:
            taken: addresses already claimed, such as those of a Journal's records.

        Raises:
            InvalidAddressError: a text in ``taken`` is not a PCI address.
        """
        claimed = set(map(PCIDeviceAddress.of, taken))
        vfs = self.virtual_functions.get(pf.address, [])
        return [vf for vf in vfs if vf.driver in (None, VFIO_PCI) and vf.address not in claimed]

    # Selections

    def with_driver(self, driver: str | None) -> list[PCIDevice]:
        """Return the functions bound to a driver; None selects those without a driver."""
        if driver is None:
            return [dev for dev in self if dev.driver is None]
        return self.drivers.get(driver, [])

    def filter(self, pattern: str) -> list[PCIDevice]:
        """
        Return the functions that match a pattern ``[vendor]:[device][:class[:interface]]``, all hexadecimal.

        An empty part or ``*`` matches everything. A class of two digits is a base class: ``::02`` selects all network
        controllers, ``::0200`` the Ethernet controllers, ``8086:1521`` all functions of one kind.

        Raises:
            ConfigError: the pattern is invalid.

        Mirrors: ``lspci -d``
        """
        tests = _parse_filter(pattern)
        index = self.identities
        kinds = [kind for kind in index if all(_fits(kind, *test) for test in tests)]
        return sorted((dev for kind in kinds for dev in index[kind]), key=lambda dev: dev.address)

    # Assignable functions

    def obstacles(self, dev: PCIDevice) -> list[Finding]:
        """
        Return all reasons why a function cannot be given to a guest on its own now; an empty list means that it can.

        Errors are facts that only a change of the host would remove. A fact that a domain could change by declaring
        more functions is reported as it is now: the drivers of the others. Consents are uses by the host (the boot
        display, a mounted disk, the default route), which a plan refuses until the user agrees.

        Host: sys/kernel/iommu_groups/N/devices, for members that are not PCI functions; files of ``HostUsage``, once
            per scan

        Mirrors: virPCIDeviceIsAssignable (src/util/virpci.c), which checks less
        """
        return list(self._each_obstacle(dev))

    def _each_obstacle(self, dev: PCIDevice) -> Iterator[Finding]:
        """Yield the obstacles as they are found, what costs most to find at the end."""
        vfs = len(self.virtual_functions.get(dev.address, ()))
        for obstacle in (endpoint_obstacle(dev, trust_class=True), vfs_obstacle(dev.address, vfs)):
            if obstacle is not None:
                yield obstacle
        in_no_group = group_obstacle(dev, has_iommu(self.root)) if dev.iommu_group is None else None
        for obstacle in (in_no_group, denied_obstacle(dev)):
            if obstacle is not None:
                yield obstacle
        yield from self._blockers(dev)
        yield from self._uses(dev)

    def uses(self, dev: PCIDevice) -> list[HostUse]:
        """Return what the host uses a function for: its console, a mounted disk, the default route."""
        return self._usage().of(dev.address)

    def _uses(self, dev: PCIDevice) -> Iterator[Finding]:
        if dev.is_vfio:
            return  # the host has already released it
        for use in self._usage().of(dev.address):
            yield Finding(use.reason, CONSENT, dev.address, f"Device {dev.address} {use.text}")

    def _usage(self) -> HostUsage:
        """Return what the host uses its devices for, read at the same moment as the functions."""
        return HostUsage(self.root)

    def is_assignable(self, dev: PCIDevice) -> bool:
        """
        Tell whether a function could be given to a guest on its own now, without consent.

        True without an error and without a use by the host; see ``obstacles``.
        """
        return next(self._each_obstacle(dev), None) is None

    def assignable(self) -> list[PCIDevice]:
        """Return the functions that can be given to a guest on their own now."""
        return [dev for dev in self if self.is_assignable(dev)]

    def _blockers(self, dev: PCIDevice) -> Iterator[Finding]:
        if dev.iommu_group is None:
            return
        peers = [other for other in self.iommu_group_members(dev) if other.address != dev.address]
        members = [peer.as_group_member() for peer in peers]
        known = {str(dev.address)} | {member.name for member in members}
        members += virpci.read_iommu_group_members(self.root, dev.iommu_group, skip=known)
        for member in members:
            obstacle = member_obstacle(dev.iommu_group, member)
            if obstacle is not None and not self._vanishes_with(dev, member.address):
                yield obstacle

    def _vanishes_with(self, dev: PCIDevice, other: PCIDeviceAddress | None) -> bool:
        """Return True for a function that the driver of another one created: it is gone once that is detached."""
        return other is not None and other.domain > FIRMWARE_DOMAIN_MAX and other in dev.read_functions_below()


def _parse_filter(pattern: str) -> list[tuple[int, int, int]]:
    """Return the conditions on an identity: field, mask, value."""
    parts = pattern.split(":")
    if not 2 <= len(parts) <= len(_FIELDS):
        raise ConfigError(f"Invalid filter '{pattern}': expected one like 8086:1521 or ::0200")
    asked = [(number, part) for number, part in enumerate(parts) if part not in ("", "*")]
    return [_parse_part(pattern, number, part) for number, part in asked]


def _parse_part(pattern: str, number: int, part: str) -> tuple[int, int, int]:
    field, mask, digits = _FIELDS[number]
    if set(part) - _HEX_DIGITS or len(part) > digits:
        raise ConfigError(
            f"Invalid filter '{pattern}': expected a hexadecimal number of up to {digits} digits, not '{part}'"
        )
    if field != _CLASS or number > _CLASS or len(part) == digits:
        return field, mask, int(part, 16)
    shift = 16 if len(part) <= 2 else 8
    return field, mask >> shift << shift, int(part, 16) << shift


def _fits(identity: Identity, field: int, mask: int, value: int) -> bool:
    known = identity[field]
    return known is not None and known & mask == value
