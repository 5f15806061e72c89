# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Assign the guest addresses of all devices, and add the controllers that they need.

Addresses are assigned twice. A dry run, in which the set of buses grows on demand, finds the controllers to add. The
real run then uses the existing buses. So a guest that is defined again keeps its addresses, and they depend on the
definition alone (for some devices also on the host).

Mirrors: src/qemu/qemu_domain_address.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.address_conf import PCIGuestAddress
from pyhostdev.conf.controller_conf import DomainControllerDef
from pyhostdev.conf.domain_addr import CONNECT_HOTPLUG, CONNECT_PCI_DEVICE, DomainPCIAddressBus, DomainPCIAddressSet
from pyhostdev.conf.domain_controllers import place_controller
from pyhostdev.conf.guest_addresses import COMPANION
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, Renumbering, XMLError
from pyhostdev.qemu.qemu_domain import ARM, has_pci_root, has_pcie_root, is_arm_virt, is_pseries, lacks_pci
from pyhostdev.qemu.qemu_domain_address.chipset import is_piix3_function, reserve_chipset
from pyhostdev.qemu.qemu_domain_address.flags import CONVENTIONAL, EXPRESS, ConnectFlags
from pyhostdev.qemu.qemu_domain_address.keep_together import HostDeviceSlots
from pyhostdev.qemu.qemu_domain_address.other import (
    assign_ccid_addresses,
    assign_memory_slots,
    assign_spapr_vio_addresses,
    assign_usb_addresses,
    assign_virtio_mmio_addresses,
    assign_virtio_serial_addresses,
)
from pyhostdev.qemu.qemu_postparse.controller_defaults import fill_controller_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.util.pciaddress import PCIDeviceAddress

# for an unknown machine that could have PCI, libvirt reports an internal error
_UNKNOWN_MACHINE = Renumbering("unknown-machine-number", VIR_ERR_INTERNAL_ERROR)
_ROOTS = ("pci-root", "pcie-root")
_USB2_MODELS = ("ich9-ehci1", "ich9-uhci1", "ich9-uhci2", "ich9-uhci3")
# an EHCI controller and its companions are functions of one slot
_USB2_FUNCTIONS = {"ich9-ehci1": 7, "ich9-uhci1": 0, "ich9-uhci2": 1, "ich9-uhci3": 2}


def assign_addresses(
    dom: DomainDef,
    host: HostFacts | None = None,
    *,
    keep_together: bool = False,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> None:
    """
    Give every device of the guest its address. Changes the definition, which must have its defaults.

    Args:
        host: knows which functions are conventional PCI, and their IOMMU groups; without it, all are PCI Express
            and in no group.
        keep_together: True puts the assigned functions of one host device into one guest slot.
        release: the libvirt release whose order of controllers applies.

    Raises:
        ConfigError: an address is invalid or in use, or no address is free.

    Mirrors: qemuDomainAssignAddresses (src/qemu/qemu_domain_address.c)
    """
    assign_virtio_serial_addresses(dom)
    assign_ccid_addresses(dom)
    assign_spapr_vio_addresses(dom)
    assign_virtio_mmio_addresses(dom)
    assign_pci_addresses(dom, host, keep_together=keep_together, release=release)
    assign_usb_addresses(dom, release)
    assign_memory_slots(dom)


def assign_pci_addresses(
    dom: DomainDef,
    host: HostFacts | None = None,
    *,
    keep_together: bool = False,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> None:
    """
    Give every PCI device of the guest an address; add controllers if needed.

    Args:
        host, keep_together, release: as for ``assign_addresses``.

    Raises:
        ConfigError: an address is invalid or in use, or no address is free.

    Mirrors: qemuDomainAssignPCIAddresses (src/qemu/qemu_domain_address.c)
    """
    flags, groups = ConnectFlags(dom, host), _isolation_groups(dom, host)

    def run(nbuses: int, *, dry_run: bool) -> _Run:
        run = _Run(dom, flags, groups, _create_set(dom, nbuses, dry_run))
        if keep_together:
            run.slots = HostDeviceSlots(dom, host, run.addrs, run.group_of)
        return run

    highest = max((c.index or 0 for c in dom.controllers if c.is_pci), default=-1)
    if highest < 0:
        run(0, dry_run=False).check_no_bus()
        return
    if dom.os.arch in ARM and lacks_pci(dom):
        return  # the machine has no PCI; validation refuses the controller
    dry = run(highest + 1, dry_run=True)
    dry.assign()
    if highest == 0 and len(dry.addrs.buses) > 1 and has_pcie_root(dom):
        # the user did not choose a topology: keep one port free for hotplug
        dry.addrs.reserve_next(EXPRESS | CONNECT_HOTPLUG)
    dry.add_controllers(release)
    run(len(dry.addrs.buses), dry_run=False).assign()
    _mark_multifunction(dom)
    fill_controller_defaults(dom)


def occupied_addresses(dom: DomainDef, host: HostFacts | None = None) -> _Run:
    """
    Return the buses of a complete domain, with the addresses of its devices and chipset reserved.

    Raises:
        ConfigError: an address of the domain is invalid or used twice.
    """
    highest = max((c.index or 0 for c in dom.controllers if c.is_pci), default=-1)
    run = _Run(dom, ConnectFlags(dom, host), _isolation_groups(dom, host), _create_set(dom, highest + 1, False))
    run.collect()
    reserve_chipset(dom, run.addrs, run.place)
    return run


class _Run:
    """One pass over the guest's devices with its own set of buses."""

    def __init__(self, dom: DomainDef, flags: ConnectFlags, groups: dict[int, int], addrs: DomainPCIAddressSet) -> None:
        self.dom = dom
        self.flags = flags
        self.groups = groups
        self.addrs = addrs
        self.slots: HostDeviceSlots | None = None

    def group_of(self, device: Any) -> int:
        """Return the isolation group of a device; group 0 is not isolated."""
        return self.groups.get(id(device.info), 0)

    def check_no_bus(self) -> None:
        """
        Refuse a device that needs a slot in a guest without PCI.

        Raises:
            XMLError: a device needs a PCI slot, or has a PCI address.
        """
        late = None if lacks_pci(self.dom) else _UNKNOWN_MACHINE
        wanting = [device for device in _in_slot_order(self.dom) if device.info.needs_address]
        for device in wanting:
            if self.flags.of(device):
                raise XMLError("The guest has no PCI bus", line=device.line, renumbered=late)
        for device, info in self.dom.device_infos():
            if info.pci is not None:
                raise XMLError("The guest has no PCI bus", line=device.line, renumbered=late)

    def assign(self) -> None:
        """
        Reserve the addresses in the definition, then the chipset's, then choose the missing ones.

        Mirrors: qemuDomainPCIAddressSetCreate, qemuDomainAssignDevicePCISlots
        """
        self.collect()
        reserve_chipset(self.dom, self.addrs, self.place)
        if self.addrs.dry_run and self._needs_spare_slot():
            self.addrs.reserve_next(CONVENTIONAL)
        for device in _in_slot_order(self.dom):
            if device.tag == "controller" and device.model in _USB2_MODELS:
                self._place_usb2(device)
            else:
                self.place(device)

    def _needs_spare_slot(self) -> bool:
        """Return True if a slot must stay free for a bridge: on conventional buses that are not full."""
        full = all(bus.is_fully_reserved for bus in self.addrs.buses)
        return has_pci_root(self.dom) and not full and not is_arm_virt(self.dom)

    def collect(self) -> None:
        """Reserve the addresses in the definition."""
        for device, info in self.dom.device_infos():
            pci = info.pci
            if pci is None or is_piix3_function(device):
                continue
            # older releases accepted PCI addresses on other devices, and treated these as conventional PCI
            self.addrs.reserve(pci.pci, self.flags.of(device) or CONNECT_PCI_DEVICE, self.group_of(device))

    def place(self, device: Any) -> None:
        """Choose an address for a device that needs one and does not have one."""
        if not device.info.needs_address:
            return
        flags = self.flags.of(device)
        if not flags:
            return
        if self.slots is not None and device.tag == "hostdev" and device.is_pci:
            address = self.slots.place(device, flags)
            device.info.why = COMPANION if self.slots.has_joined(device) else None
        else:
            address = self.addrs.reserve_next(flags, self.group_of(device))
        self._store(device, address)

    def _store(self, device: Any, address: PCIDeviceAddress, multifunction: bool | None = None) -> None:
        if not self.addrs.dry_run:
            device.info.address = PCIGuestAddress.at(address, multifunction=multifunction)

    def _place_usb2(self, device: Any) -> None:
        """Put a USB 2 controller into the slot of its companions, which have the same index."""
        if not device.info.needs_address:
            return
        function = _USB2_FUNCTIONS[device.model]
        multifunction = True if function == 0 else None
        flags = self.flags.of(device)
        slot = self._usb2_slot(device.index)
        if slot is None:
            self._store(device, self.addrs.reserve_next(flags, function=function), multifunction)
            return
        address = slot.with_function(function)
        self.addrs.reserve(address, flags)
        device.info.address = PCIGuestAddress.at(address, multifunction=multifunction)
        device.info.why = COMPANION

    def _usb2_slot(self, index: int) -> PCIDeviceAddress | None:
        companions = (c for c in self.dom.controllers if c.model in _USB2_MODELS and c.index == index)
        return next((c.info.pci.pci for c in companions if c.info.pci is not None), None)

    def add_controllers(self, release: LibvirtRelease) -> None:
        """Add the missing controller of each bus, and reserve a slot for it."""
        known = {c.index for c in self.dom.controllers if c.is_pci}
        index = 0
        while index < len(self.addrs.buses):  # a controller may itself need a new bus
            if index not in known:
                controller = DomainControllerDef(type="pci", index=index, model=self.addrs.buses[index].model)
                place_controller(self.dom, controller, release)
                if controller.model not in _ROOTS:
                    self.addrs.reserve_next(self.flags.of(controller))
            index += 1


def _create_set(dom: DomainDef, nbuses: int, dry_run: bool) -> DomainPCIAddressSet:
    """
    Return the buses of the existing controllers; an index without a controller gets the machine's usual model.

    Raises:
        ConfigError: a controller has no model.
    """
    models: dict[int, Any] = {c.index or 0: c for c in dom.controllers if c.is_pci}
    root = models[0].model if 0 in models else "pci-root"
    filler = {"pcie-root": "pcie-root-port"}.get(root, "pci-root" if is_pseries(dom) else "pci-bridge")
    buses = [_bus(models.get(index), root if index == 0 else filler) for index in range(nbuses)]
    if is_pseries(dom) and buses:
        buses[0].locked = True  # PHB 0 is shared, so it cannot belong to one isolation group
    return DomainPCIAddressSet(buses, dry_run=dry_run, multiple_roots=is_pseries(dom))


def _bus(controller: Any | None, filler: str) -> DomainPCIAddressBus:
    if controller is None:
        return DomainPCIAddressBus(filler)
    if controller.model is None:
        raise ConfigError(
            f"PCI controller {controller.index} has no model",
            libvirt_code=VIR_ERR_INTERNAL_ERROR,
            line=controller.line,
        )
    return DomainPCIAddressBus(controller.model, hotplug=controller.hotplug is not False)


def _isolation_groups(dom: DomainDef, host: HostFacts | None) -> dict[int, int]:
    """
    Return isolation groups by ``id()`` of a device's info; devices that are missing are in group 0.

    The pseries firmware isolates per host bridge, so each IOMMU group of the host needs its own host bridge. The
    isolation group is the number of the IOMMU group plus 1, because 0 is a valid group.

    Mirrors: qemuDomainSetupIsolationGroups (src/qemu/qemu_domain_address.c)
    """
    if host is None or not is_pseries(dom):
        return {}
    found = {}
    for hostdev in dom.pci_hostdevs():
        group = host.iommu_group(hostdev.pci_address)
        if group is not None:
            found[id(hostdev.info)] = group + 1
    return found


def _in_slot_order(dom: DomainDef) -> Iterator[Any]:
    """
    Yield the devices in the order in which libvirt assigns slots.

    Mirrors: qemuDomainAssignDevicePCISlots (src/qemu/qemu_domain_address.c)
    """
    yield from (c for c in dom.controllers if c.is_pci and c.model not in _ROOTS)
    yield from dom.filesystems
    yield from dom.interfaces
    yield from dom.sounds
    # IDE controller 0 is part of the chipset
    yield from (c for c in dom.controllers if not c.is_pci and (c.type, c.index) != ("ide", 0))
    yield from dom.disks
    yield from dom.all_hostdevs()
    if dom.memballoon is not None:
        yield dom.memballoon
    yield from dom.rngs
    yield from dom.watchdogs
    yield from dom.videos
    yield from dom.shmems
    yield from dom.inputs
    yield from dom.serials
    yield from dom.memories
    yield from dom.iommus
    if dom.vsock is not None:
        yield dom.vsock
    yield from dom.cryptos
    yield from dom.panics
    if dom.pstore is not None:
        yield dom.pstore


def _mark_multifunction(dom: DomainDef) -> None:
    """
    Set multifunction on each function 0 whose slot has further functions, unless the user set it.

    Mirrors: virDomainPCIAddressSetAllMulti (src/conf/domain_addr.c)
    """
    addresses = [pci for _, info in dom.device_infos() if (pci := info.pci) is not None]
    shared = {(a.bus, a.slot) for a in addresses if a.function != 0}
    for address in addresses:
        if address.function == 0 and address.multifunction is None and (address.bus, address.slot) in shared:
            address.multifunction = True
