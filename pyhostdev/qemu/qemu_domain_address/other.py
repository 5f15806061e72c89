# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Addresses on the guest's other buses: virtio-serial, USB, the virtual bus of pseries, memory slots.

Mirrors: src/conf/domain_addr.c, src/qemu/qemu_domain_address.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.board_conf import DomainHubDef
from pyhostdev.conf.bus_address_conf import (
    CCIDAddress,
    DIMMAddress,
    SpaprVIOAddress,
    USBAddress,
    VirtioMMIOAddress,
    VirtioSerialAddress,
)
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError, XMLError
from pyhostdev.qemu.qemu_domain import is_arm_virt, is_pseries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease

_SERIAL_PORTS = 31  # QEMU's default
_VIO_FIRST = {"interface": 0x1000, "controller": 0x2000, "nvram": 0x3000, "serial": 0x30000000}
_VIO_STEP = 0x1000
_HUB_PORTS = 8

# without UHCI companions: they share the ports of their EHCI controller
_USB_PORTS = {"piix3-uhci": 2, "piix4-uhci": 2, "ehci": 6, "ich9-ehci1": 6, "vt82c686b-uhci": 2, "pci-ohci": 3}
_XHCI_MODELS = ("nec-xhci", "qemu-xhci")
_XHCI_PORTS = 4
_VIRTIO_SCSI = ("virtio-scsi", "virtio-transitional", "virtio-non-transitional")


def assign_virtio_serial_addresses(dom: DomainDef) -> None:
    """
    Give ports to channels, and to consoles with a controller in their address; port 0 is reserved for a console.

    A console without an address gets its port from QEMU.

    Raises:
        XMLError: a controller is missing, a port is in use, or no port is free.

    Mirrors: qemuDomainAssignVirtioSerialAddresses
    """
    placed = [console for console in dom.consoles if isinstance(console.info.address, VirtioSerialAddress)]
    users = [device for device in [*placed, *dom.channels] if device.target_type == "virtio"]
    ports = {c.index: c.ports or _SERIAL_PORTS for c in dom.controllers if c.type == "virtio-serial"}
    taken: set[tuple[int, int]] = set()
    for device in users:
        address = device.info.address
        if isinstance(address, VirtioSerialAddress) and address.port:
            _take_serial_port(device, address, ports, taken)
    for device in users:
        address = device.info.address
        if not isinstance(address, VirtioSerialAddress) or not address.port:
            _choose_serial_port(device, ports, taken)


def _take_serial_port(
    device: Any, address: VirtioSerialAddress, ports: dict[Any, int], taken: set[tuple[int, int]]
) -> None:
    if address.controller not in ports:
        raise XMLError(f"The guest has no virtio-serial controller {address.controller}", line=device.line)
    place = (address.controller, address.port or 0)
    if place in taken or place[1] >= ports[address.controller]:
        raise XMLError(f"Port {place[1]} of virtio-serial controller {place[0]} is not free", line=device.line)
    taken.add(place)


def _choose_serial_port(device: Any, ports: dict[Any, int], taken: set[tuple[int, int]]) -> None:
    allow_zero = device.tag == "console"
    wanted = device.info.address
    for index in sorted(ports):
        if isinstance(wanted, VirtioSerialAddress) and wanted.controller != index:
            continue
        for port in range(0 if allow_zero else 1, ports[index]):
            if (index, port) not in taken:
                taken.add((index, port))
                device.info.address = VirtioSerialAddress(controller=index, bus=0, port=port)
                return
    missing = wanted.controller if isinstance(wanted, VirtioSerialAddress) else 0
    raise XMLError(f"No port is left on virtio-serial controller {missing}", line=device.line)


def assign_ccid_addresses(dom: DomainDef) -> None:
    """Give smartcards their slots in the first reader."""
    for slot, card in enumerate(dom.smartcards):
        if card.info.address is None:
            card.info.address = CCIDAddress(controller=0, slot=slot)


def assign_spapr_vio_addresses(dom: DomainDef) -> None:
    """
    Give the devices on the virtual bus of pseries their registers.

    Raises:
        XMLError: a register is used twice.

    Mirrors: qemuDomainAssignSpaprVIOAddresses
    """
    users = list(_vio_devices(dom)) if is_pseries(dom) else []
    taken: set[int] = set()
    for device in users:
        address = device.info.address
        if isinstance(address, SpaprVIOAddress) and address.reg is not None:
            if address.reg in taken:
                raise XMLError(f"spapr-vio register {address.reg:#x} is used twice", line=device.line)
            taken.add(address.reg)
    for device in users:
        if device.info.address is None or device.info.address == SpaprVIOAddress():
            _choose_register(device, taken)


def _choose_register(device: Any, taken: set[int]) -> None:
    register = _VIO_FIRST[device.tag]
    while register in taken:
        register += _VIO_STEP
    taken.add(register)
    device.info.address = SpaprVIOAddress(reg=register)


def _vio_devices(dom: DomainDef) -> Iterator[Any]:
    yield from (net for net in dom.interfaces if net.model == "spapr-vlan")
    yield from (c for c in dom.controllers if c.type == "scsi" and c.model == "ibmvscsi")
    yield from (serial for serial in dom.serials if serial.target_model == "spapr-vty")
    if dom.nvram is not None:
        yield dom.nvram


def assign_virtio_mmio_addresses(dom: DomainDef) -> None:
    """
    Put all virtio devices without an address on virtio-mmio, if one device of an ARM guest is on it.

    Mirrors: qemuDomainAssignVirtioMMIOAddresses (src/qemu/qemu_domain_address.c)
    """
    if not is_arm_virt(dom):
        return
    infos = [info for _, info in dom.device_infos()]
    if any(isinstance(info.address, VirtioMMIOAddress) for info in infos):
        for device in _virtio_devices(dom):
            if device.info.address is None:
                device.info.address = VirtioMMIOAddress()


def _virtio_devices(dom: DomainDef) -> Iterator[Any]:
    """
    Yield the devices that support every virtio transport.

    Mirrors: qemuDomainPrimeVirtioDeviceAddresses (src/qemu/qemu_domain_address.c)
    """
    yield from (disk for disk in dom.disks if disk.bus == "virtio")
    yield from (device for device in dom.inputs if device.bus == "virtio")
    yield from (net for net in dom.interfaces if net.type != "hostdev" and (net.model or "").startswith("virtio"))
    yield from (c for c in dom.controllers if c.type == "virtio-serial" or c.model in _VIRTIO_SCSI)
    yield from (h for h in dom.hostdevs if h.type == "scsi_host" and h.mode == "subsystem")
    yield from (video for video in dom.videos if video.model_type == "virtio")
    yield from (device for device in (dom.memballoon, dom.vsock) if device is not None and device.model != "none")
    yield from (*dom.rngs, *(f for f in dom.filesystems if not f.is_mtp))


def assign_memory_slots(dom: DomainDef) -> None:
    """
    Give memory modules their slots.

    Raises:
        ConfigError: a slot is used twice, or no slot is free.

    Mirrors: qemuDomainAssignMemoryDeviceSlots
    """
    modules = [module for module in dom.memories if module.model in ("dimm", "nvdimm")]
    slots = dom.max_memory.slots or 0 if dom.max_memory is not None else 0
    if modules and not dom.has_memory_hotplug:
        raise ConfigUnsupportedError("A memory device needs <maxMemory>", line=modules[0].line)
    taken: set[int] = set()
    for module in modules:
        slot = _slot(module)
        if slot is not None and (slot in taken or slot >= slots):
            raise ConfigUnsupportedError(f"Memory slot {slot} is not free", line=module.line)
        taken |= set() if slot is None else {slot}
    for module in modules:
        if _slot(module) is None:
            _choose_slot(module, slots, taken)


def _choose_slot(module: Any, slots: int, taken: set[int]) -> None:
    free = next((n for n in range(slots) if n not in taken), None)
    if free is None:
        raise ConfigError("No memory slot is left", line=module.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    taken.add(free)
    module.info.address = DIMMAddress(slot=free)


def _slot(module: Any) -> int | None:
    address = module.info.address
    return address.slot if isinstance(address, DIMMAddress) else None


class _Hub:
    """The ports of one USB bus, or of one hub on it."""

    def __init__(self, nports: int) -> None:
        self.ports: list[_Hub | bool | None] = [None] * nports
        self._is_full = False  # for good: no port becomes free again

    def free(self) -> list[int] | None:
        """Return the path of the first free port, preferring ports without a hub in between."""
        if self._is_full:
            return None
        for number, port in enumerate(self.ports, 1):
            if port is None:
                return [number]
        for number, port in enumerate(self.ports, 1):
            below = port.free() if isinstance(port, _Hub) else None
            if below is not None:
                return [number, *below]
        self._is_full = True
        return None

    def take(self, path: list[int], device: _Hub | bool) -> bool:
        """Occupy a port; return False if it does not exist or is in use."""
        number = path[0] - 1
        if not 0 <= number < len(self.ports):
            return False
        port = self.ports[number]
        if len(path) > 1:
            return isinstance(port, _Hub) and port.take(path[1:], device)
        if port is not None:
            return False
        self.ports[number] = device
        return True


_USB_ORDER = ("hub", "disk", "net", "sound", "hostdev", "ccid", "serial", "input", "mtp", "redirdev")


def assign_usb_addresses(dom: DomainDef, release: LibvirtRelease) -> None:
    """
    Give USB devices their ports; add hubs if there are not enough ports.

    Raises:
        ConfigError: a port is in use or does not exist, or no port is free.

    Mirrors: qemuDomainAssignUSBAddresses
    """
    buses = _usb_buses(dom)
    if not buses:
        return
    _add_hubs(dom, release, sum(len(bus.ports) for bus in buses.values()))
    hubs = list(dom.hubs)
    others = [device for device in _usb_devices(dom, release) if device.tag != "hub"]
    for device in [*sorted(hubs, key=_depth), *others]:
        if _port_of(device):
            _take_usb_port(device, buses)
    for device in [*hubs, *others]:
        if not _port_of(device):
            _choose_usb_port(device, buses)


def _usb_buses(dom: DomainDef) -> dict[int, _Hub]:
    buses: dict[int, _Hub] = {}
    for controller in dom.controllers:
        if controller.type != "usb":
            continue
        nports = _USB_PORTS.get(controller.model or "", 0)
        if controller.model in _XHCI_MODELS:
            nports = controller.ports if controller.ports is not None else _XHCI_PORTS
        if nports and controller.index is not None:
            buses.setdefault(controller.index, _Hub(nports))
    return buses


def _usb_devices(dom: DomainDef, release: LibvirtRelease) -> Iterator[Any]:
    """
    Yield all USB devices, in the order in which libvirt assigns ports.

    Mirrors: virDomainUSBDeviceDefForeach, in newer releases virDomainDeviceInfoIterate (src/conf/domain_conf.c)
    """
    kinds: dict[str, list[Any]] = {
        "hub": [*dom.hubs],
        "hostdev": [h for h in dom.hostdevs if h.mode == "subsystem" and h.type == "usb"],
        "disk": [d for d in dom.disks if d.bus == "usb"],
        "ccid": [c for c in dom.controllers if c.type == "ccid"],
        "input": [d for d in dom.inputs if d.bus == "usb"],
        "serial": [s for s in dom.serials if s.target_type == "usb-serial"],
        "sound": [s for s in dom.sounds if s.model == "usb"],
        "net": [n for n in dom.interfaces if n.model == "usb-net"],
        "redirdev": [*dom.redirdevs],
        "mtp": [f for f in dom.filesystems if f.is_mtp],
    }
    order = _USB_ORDER if release.has("usb-order") else kinds
    devices = [device for kind in order for device in kinds[kind]]
    # validation refuses a device with another type of address
    yield from (d for d in devices if isinstance(d.info.address, (USBAddress, type(None))))


def _add_hubs(dom: DomainDef, release: LibvirtRelease, nports: int) -> None:
    """Add as many hubs as the devices need; each hub itself occupies one port."""
    devices = list(_usb_devices(dom, release))
    ports = nports + len(dom.hubs) * _HUB_PORTS
    if len(devices) > ports:
        missing = -(-(len(devices) - ports + 1) // (_HUB_PORTS - 1))
        dom.hubs.extend(DomainHubDef(type="usb") for _ in range(missing))


def _port_of(device: Any) -> str | None:
    address = device.info.address
    return address.port if isinstance(address, USBAddress) else None


def _depth(device: Any) -> int:
    return (_port_of(device) or "").count(".")


def _new_usb_device(device: Any) -> _Hub | bool:
    return _Hub(_HUB_PORTS) if device.tag == "hub" else True


def _take_usb_port(device: Any, buses: dict[int, _Hub]) -> None:
    address = device.info.address
    try:
        path = [int(part) for part in address.port.split(".")]
    except ValueError:
        path = [0]
    bus = buses.get(address.bus)
    if bus is None or not bus.take(path, _new_usb_device(device)):
        raise XMLError(f"USB port {address.port} of bus {address.bus} does not exist or is in use", line=device.line)


def _choose_usb_port(device: Any, buses: dict[int, _Hub]) -> None:
    wanted = device.info.address
    for index in sorted(buses):
        if isinstance(wanted, USBAddress) and wanted.bus != index:
            continue
        path = buses[index].free()
        if path is not None:
            buses[index].take(path, _new_usb_device(device))
            device.info.address = USBAddress(bus=index, port=".".join(map(str, path)))
            return
    raise ConfigError("No USB port is left", line=device.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
