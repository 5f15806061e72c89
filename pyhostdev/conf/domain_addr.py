# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The PCI addresses of a guest: its buses, the kinds of device that each slot accepts, and the used addresses.

This module knows neither a host nor an emulator. Connect flags describe what a device needs and what a bus offers.

Mirrors: src/conf/domain_addr.c
"""

from __future__ import annotations

from pyhostdev.conf.domain_limits import PCI_INDEX_MAX
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, XMLError
from pyhostdev.util.pciaddress import FUNCTION_MAX, SLOT_MAX, PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple

# virDomainPCIConnectFlags: plain integers, because a large guest compares them ten thousand times
CONNECT_AUTOASSIGN = 1 << 0  # may be used for a device without an address
CONNECT_HOTPLUG = 1 << 1
CONNECT_INTEGRATED = 1 << 2  # part of the chipset: bus 0 only
CONNECT_AGGREGATE_SLOT = 1 << 3  # shares a slot with others of its kind
CONNECT_PCI_DEVICE = 1 << 4
CONNECT_PCIE_DEVICE = 1 << 5
CONNECT_PCIE_ROOT_PORT = 1 << 6
CONNECT_PCIE_SWITCH_UPSTREAM_PORT = 1 << 7
CONNECT_PCIE_SWITCH_DOWNSTREAM_PORT = 1 << 8
CONNECT_DMI_TO_PCI_BRIDGE = 1 << 9
CONNECT_PCI_EXPANDER_BUS = 1 << 10
CONNECT_PCIE_EXPANDER_BUS = 1 << 11
CONNECT_PCI_BRIDGE = 1 << 12
CONNECT_PCIE_TO_PCI_BRIDGE = 1 << 13

CONNECT_ENDPOINTS = CONNECT_PCI_DEVICE | CONNECT_PCIE_DEVICE
CONNECT_TYPES = (1 << 14) - CONNECT_PCI_DEVICE

_ALL_FUNCTIONS = (1 << FUNCTION_MAX + 1) - 1


class ControllerModel(NamedTuple):
    """A PCI controller: the slot that it needs (``plug``), and the slots that it offers."""

    plug: int
    offers: int
    min_slot: int
    max_slot: int
    can_hotplug: bool = False


_CONVENTIONAL = CONNECT_PCI_DEVICE | CONNECT_PCI_BRIDGE
_PORT = CONNECT_AUTOASSIGN | CONNECT_PCIE_DEVICE | CONNECT_PCIE_SWITCH_UPSTREAM_PORT | CONNECT_PCIE_TO_PCI_BRIDGE

CONTROLLER_MODELS = {
    "pci-root": ControllerModel(0, CONNECT_AUTOASSIGN | _CONVENTIONAL | CONNECT_PCI_EXPANDER_BUS, 1, SLOT_MAX, True),
    "pci-bridge": ControllerModel(CONNECT_PCI_BRIDGE, CONNECT_AUTOASSIGN | _CONVENTIONAL, 1, SLOT_MAX, True),
    "pci-expander-bus": ControllerModel(
        CONNECT_PCI_EXPANDER_BUS, CONNECT_AUTOASSIGN | _CONVENTIONAL, 0, SLOT_MAX, True
    ),
    "pcie-root": ControllerModel(
        0,
        CONNECT_PCIE_DEVICE | CONNECT_PCIE_ROOT_PORT | CONNECT_DMI_TO_PCI_BRIDGE | CONNECT_PCIE_EXPANDER_BUS,
        1,
        SLOT_MAX,
    ),
    "dmi-to-pci-bridge": ControllerModel(CONNECT_DMI_TO_PCI_BRIDGE, _CONVENTIONAL, 0, SLOT_MAX),
    "pcie-to-pci-bridge": ControllerModel(
        CONNECT_PCIE_TO_PCI_BRIDGE, CONNECT_AUTOASSIGN | _CONVENTIONAL, 1, SLOT_MAX, True
    ),
    "pcie-root-port": ControllerModel(CONNECT_PCIE_ROOT_PORT | CONNECT_AGGREGATE_SLOT, _PORT, 0, 0, True),
    "pcie-switch-upstream-port": ControllerModel(
        CONNECT_PCIE_SWITCH_UPSTREAM_PORT, CONNECT_PCIE_SWITCH_DOWNSTREAM_PORT, 0, SLOT_MAX
    ),
    "pcie-switch-downstream-port": ControllerModel(CONNECT_PCIE_SWITCH_DOWNSTREAM_PORT, _PORT, 0, 0, True),
    "pcie-expander-bus": ControllerModel(
        CONNECT_PCIE_EXPANDER_BUS, CONNECT_PCIE_ROOT_PORT | CONNECT_DMI_TO_PCI_BRIDGE, 0, SLOT_MAX
    ),
}

# the name of a kind of device in an error; the first matching flag decides
_PLUG_NAMES = (
    (CONNECT_PCI_DEVICE, "conventional PCI device"),
    (CONNECT_PCIE_DEVICE, "PCI Express device"),
    *((model.plug & CONNECT_TYPES, name) for name, model in CONTROLLER_MODELS.items() if model.plug),
)


def describe_plug(flags: int) -> str:
    """Return the name of a device with these connect flags."""
    return next((name for flag, name in _PLUG_NAMES if flags & flag), "device")


def _address_error(message: str, from_config: bool) -> ConfigError:
    """Return the error of an address from the definition, or of one that we chose."""
    if from_config:
        return XMLError(message)
    return ConfigError(message, libvirt_code=VIR_ERR_INTERNAL_ERROR)


class DomainPCIAddressBus:
    """
    One bus: what it accepts, and a bitmap of the used functions per slot.

    Mirrors: virDomainPCIAddressBus (src/conf/domain_addr.h)
    """

    __slots__ = (
        "aggregate",
        "flags",
        "isolation_group",
        "locked",
        "max_slot",
        "min_slot",
        "model",
        "slots",
    )

    def __init__(self, model: str, *, hotplug: bool = True, locked: bool = False) -> None:
        kind = CONTROLLER_MODELS[model]
        self.model = model
        self.min_slot = kind.min_slot
        self.max_slot = kind.max_slot
        self.flags = kind.offers | (CONNECT_HOTPLUG if hotplug and kind.can_hotplug else 0)
        self.slots: dict[int, int] = {}
        self.aggregate: set[int] = set()
        self.isolation_group = 0
        self.locked = locked  # the isolation group never changes

    @property
    def is_empty(self) -> bool:
        """True if no function is in use."""
        return not self.slots

    @property
    def is_fully_reserved(self) -> bool:
        """True if every slot is at least partly in use."""
        return all(self.slots.get(slot) for slot in range(self.min_slot, self.max_slot + 1))

    def accepts(self, flags: int, *, from_config: bool) -> str | None:
        """
        Return None if the bus accepts a device with these flags, else the reason against it.

        A user may put an Express endpoint into a conventional slot and vice versa, and a bridge into any conventional
        slot; an address that we choose never does so.
        """
        offers = self.flags
        if from_config:
            if offers & CONNECT_ENDPOINTS:
                offers |= CONNECT_ENDPOINTS
            if flags & CONNECT_PCI_BRIDGE:
                flags |= CONNECT_PCI_DEVICE
        elif flags & CONNECT_AUTOASSIGN and not offers & CONNECT_AUTOASSIGN:
            return "is not for devices without an explicit address"
        if not flags & offers & CONNECT_TYPES:
            return f"does not accept a {describe_plug(flags)}"
        if flags & CONNECT_HOTPLUG and not offers & CONNECT_HOTPLUG:
            return "does not support hotplug"
        return None

    def find_unused(self, flags: int, function: int | None, first: int = 0) -> tuple[int, int] | None:
        """
        Return the first slot and function that a device with these flags may use, None without one.

        Args:
            first: the slot from which to search; 0 means the first one.
            function: the wanted function; None means function 0 of a free slot or, for a device that shares slots, any
                free function of a shared slot.
        """
        if self.accepts(flags, from_config=False) is not None:
            return None
        wanted = _ALL_FUNCTIONS if function is None else 1 << function
        shared = self.aggregate if flags & CONNECT_AGGREGATE_SLOT else ()
        for slot in range(first or self.min_slot, self.max_slot + 1):
            taken = self.slots.get(slot, 0)
            if not taken:
                return slot, function or 0
            free = wanted & ~taken
            if free and slot in shared:
                return slot, (free & -free).bit_length() - 1  # the lowest function
        return None

    def take(self, slot: int, function: int, flags: int, isolation_group: int, from_config: bool) -> None:
        """Mark a function as used; the first device of a bus determines its isolation group."""
        taken = self.slots.get(slot, 0)
        if flags & CONNECT_AGGREGATE_SLOT and not taken:
            self.aggregate.add(slot)
        if not self.slots and not self.locked:
            self.isolation_group = isolation_group
        elif self.isolation_group != isolation_group and from_config:
            self.isolation_group = 0  # the user mixed groups: the bus is not isolated
        self.slots[slot] = taken | 1 << function


class DomainPCIAddressSet:
    """
    All buses of a guest, in the order of their controllers' indices.

    With ``dry_run`` the set grows whenever a device does not fit; the result shows which controllers the guest needs.

    Mirrors: virDomainPCIAddressSet (src/conf/domain_addr.h)
    """

    __slots__ = ("_full", "buses", "dry_run", "multiple_roots")

    def __init__(
        self,
        buses: list[DomainPCIAddressBus],
        *,
        dry_run: bool = False,
        multiple_roots: bool = False,
    ) -> None:
        self.buses = buses
        self.dry_run = dry_run
        self.multiple_roots = multiple_roots  # conventional buses grow as host bridges (pseries)
        # (flags, function) -> the first bus and slot that may have room; those before stay full until a release
        self._full: dict[tuple[int, int | None], tuple[int, int]] = {}

    def validate(self, address: PCIDeviceAddress, flags: int, *, from_config: bool = True) -> None:
        """
        Refuse an address that is invalid, or that a device with these flags cannot have.

        Raises:
            ConfigError: has libvirt's number for an invalid definition, or for an internal error.

        Mirrors: virDomainPCIAddressValidate (src/conf/domain_addr.c)
        """
        problem = self._problem(address, flags, from_config)
        if problem is not None:
            raise _address_error(f"Invalid guest PCI address {address}: {problem}", from_config)

    def _problem(self, address: PCIDeviceAddress, flags: int, from_config: bool) -> str | None:
        if not self.buses:
            return "the guest has no PCI bus"
        domain, index, slot, function = address
        if domain != 0:
            return "a guest has only PCI domain 0"
        if index >= len(self.buses):
            return f"the last bus is {len(self.buses) - 1:#04x}"
        bus = self.buses[index]
        if flags & CONNECT_INTEGRATED and index != 0:
            return "an integrated device must be on bus 0"
        obstacle = bus.accepts(flags, from_config=from_config)
        if obstacle is not None:
            return f"PCI controller {index} ({bus.model}) {obstacle}"
        if not bus.min_slot <= slot <= bus.max_slot:
            return f"{bus.model} has the slots {bus.min_slot:#04x} to {bus.max_slot:#04x}"
        if not 0 <= function <= FUNCTION_MAX:
            return f"the last function is {FUNCTION_MAX}"
        return None

    def reserve(
        self,
        address: PCIDeviceAddress,
        flags: int,
        isolation_group: int = 0,
        *,
        from_config: bool = True,
    ) -> None:
        """
        Reserve one address.

        Raises:
            ConfigError: the address is in use or invalid.

        Mirrors: virDomainPCIAddressReserveAddrInternal (src/conf/domain_addr.c)
        """
        _, index, slot, function = address
        if self.dry_run:
            self._grow(index, flags)
        self.validate(address, flags, from_config=from_config)
        bus = self.buses[index]
        if bus.slots.get(slot, 0) >> function & 1:
            raise _address_error(f"Guest PCI address {address} is used twice", from_config)
        bus.take(slot, function, flags, isolation_group, from_config)

    def reserve_next(self, flags: int, isolation_group: int = 0, function: int | None = None) -> PCIDeviceAddress:
        """
        Reserve the first address that fits and return it.

        Raises:
            ConfigError: no address fits, and the set cannot grow.

        Mirrors: virDomainPCIAddressReserveNextAddr (src/conf/domain_addr.c)
        """
        address = self.find_next(flags, isolation_group, function)
        if flags & CONNECT_INTEGRATED:  # the search does not look at it; the rest fits
            self.validate(address, flags, from_config=False)
        _, index, slot, function = address
        self.buses[index].take(slot, function, flags, isolation_group, False)
        return address

    def find_next(self, flags: int, isolation_group: int = 0, function: int | None = None) -> PCIDeviceAddress:
        """
        Return the first address that fits.

        It is on a bus of the same isolation group, else on an empty bus that can join the group, else on a bus to be
        added.

        Raises:
            ConfigError: no address fits, and the set cannot grow.

        Mirrors: virDomainPCIAddressGetNextAddr (src/conf/domain_addr.c)
        """
        if not self.buses:
            raise XMLError("The guest has no PCI bus")
        first, found = self._first_with_room(flags, function)
        if found is not None and self.buses[first].isolation_group == isolation_group:
            return PCIDeviceAddress(0, first, *found)
        address = self._find_for_group(first, flags, isolation_group, function) if found is not None else None
        if address is not None:
            return address
        if not self.dry_run:
            raise _address_error(f"The guest has no free PCI slot for a {describe_plug(flags)}", False)
        index = self._grow(len(self.buses), flags)
        return PCIDeviceAddress(0, index, self.buses[index].min_slot, function or 0)

    def _find_for_group(
        self, first: int, flags: int, isolation_group: int, function: int | None
    ) -> PCIDeviceAddress | None:
        """Return the first address on a bus of the group, else on an empty bus, from a bus on; None without one."""
        rest = range(first, len(self.buses))
        same = [i for i in rest if self.buses[i].isolation_group == isolation_group]
        empty = [i for i in rest if self.buses[i].is_empty and not self.buses[i].locked]
        for index in (*same, *empty):
            found = self.buses[index].find_unused(flags, function)
            if found is not None:
                return PCIDeviceAddress(0, index, *found)
        return None

    def _first_with_room(self, flags: int, function: int | None) -> tuple[int, tuple[int, int] | None]:
        """Return the number of the first bus with room for these flags, in any isolation group, and the room."""
        key = (flags, function)
        index, slot = self._full.get(key, (0, 0))
        while index < len(self.buses):
            found = self.buses[index].find_unused(flags, function, slot)
            if found is not None:
                self._full[key] = index, found[0]
                return index, found
            index, slot = index + 1, 0
        self._full[key] = index, 0
        return index, None

    def release(self, address: PCIDeviceAddress) -> None:
        """
        Free one function; freeing an unused one is not an error.

        Mirrors: virDomainPCIAddressReleaseAddr (src/conf/domain_addr.c)
        """
        self._full.clear()
        slots = self.buses[address.bus].slots
        left = slots.get(address.slot, 0) & ~(1 << address.function) & _ALL_FUNCTIONS
        if left:
            slots[address.slot] = left
        else:
            slots.pop(address.slot, None)

    def is_slot_in_use(self, address: PCIDeviceAddress) -> bool:
        """Return True if any function of the slot is in use."""
        return address.bus < len(self.buses) and bool(self.buses[address.bus].slots.get(address.slot))

    def _grow(self, last: int, flags: int) -> int:
        """
        Add buses until bus number ``last`` exists, and return the number of the bus for these flags.

        If a conventional bus needs a port above it, the port gets that number and the bus the next one.

        Raises:
            ConfigError: the device needs a kind of controller that is never added automatically.

        Mirrors: virDomainPCIAddressSetGrow (src/conf/domain_addr.c)
        """
        add = last + 1 - len(self.buses)
        if add <= 0:
            return last
        models = self._growth(flags)
        if len(models) > add:
            last += len(models) - add
            add = len(models)
        models += ["pci-bridge" if len(models) > 1 else models[-1]] * (add - len(models))
        if last > PCI_INDEX_MAX:
            raise _address_error(f"A guest can have at most {PCI_INDEX_MAX + 1} PCI buses", False)
        self.buses.extend(DomainPCIAddressBus(model) for model in models)
        return last

    def _growth(self, flags: int) -> list[str]:
        """Return the controllers to add for a device with these flags, outermost first."""
        if flags & CONNECT_PCI_DEVICE:
            if self.multiple_roots:
                return ["pci-root"]
            if any(bus.flags & CONNECT_PCI_BRIDGE for bus in self.buses):
                return ["pci-bridge"]
            return ["pcie-root-port", "pcie-to-pci-bridge"]
        if flags & CONNECT_PCI_BRIDGE and self.buses and self.buses[0].model == "pcie-root":
            return ["dmi-to-pci-bridge"]
        ported = CONNECT_PCIE_DEVICE | CONNECT_PCIE_SWITCH_UPSTREAM_PORT | CONNECT_PCIE_TO_PCI_BRIDGE
        if flags & ported:
            return ["pcie-root-port"]
        raise _address_error(f"No controller has room for a {describe_plug(flags)}, and none can be added", False)
