# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The defaults that libvirt fills in when a domain is defined, as far as all hypervisors share them.

The Protocol ``Hypervisor`` provides the rest.

Mirrors: src/conf/domain_postparse.c
"""

from __future__ import annotations

from pyhostdev.conf.boot_conf import BootDev
from pyhostdev.conf.bus_address_conf import CCIDAddress, DriveAddress, VirtioSerialAddress
from pyhostdev.conf.chr_conf import DomainConsoleDef, DomainSerialDef
from pyhostdev.conf.device_postparse import fill_device, fill_video
from pyhostdev.conf.domain_controllers import (
    add_controller,
    assign_indices,
    find_controller,
    maybe_add_controller,
    sort_controllers,
)
from pyhostdev.conf.domain_limits import refuse_too_large
from pyhostdev.conf.domain_normalise import normalise
from pyhostdev.conf.graphics_conf import DomainVideoDef
from pyhostdev.conf.guest_addresses import mark_written
from pyhostdev.conf.newer_words import drop_newer_words
from pyhostdev.conf.os_conf import OSDef, SizeDef
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigUnsupportedError, XMLError
from pyhostdev.util.typed import TYPE_CHECKING, Protocol
from pyhostdev.util.virxml import is_blank

if TYPE_CHECKING:
    from pyhostdev.conf.disk_conf import DomainDiskDef
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.xml.xmldef import ElementDef

ISA_SERIAL_PORTS_MAX = 4


class Hypervisor(Protocol):
    """
    The hypervisor's part of the defaults.

    Mirrors: virDomainDefParserConfig (src/conf/domain_conf.h)
    """

    release: LibvirtRelease

    def fill_domain(self, dom: DomainDef) -> None:
        """Fill in machine, emulator, CPU and the devices that the machine always has."""

    def fill_device(self, dom: DomainDef, device: ElementDef) -> None:
        """Fill in the defaults of one device."""


def post_parse(dom: DomainDef, hypervisor: Hypervisor) -> DomainDef:
    """
    Return a copy with all defaults but guest addresses filled in.

    Raises:
        XMLError, ConfigUnsupportedError: a default does not exist or contradicts the definition, or a number is
            higher than any guest can have.

    Mirrors: virDomainDefPostParse (src/conf/domain_postparse.c)
    """
    dom = dom.copy()
    mark_written(dom)
    refuse_too_large(dom)
    drop_newer_words(dom, hypervisor.release)
    normalise(dom)
    if hypervisor.release.has("blank-metadata") and is_blank(dom.metadata):
        dom.metadata = None
    sort_controllers(dom)
    _add_hostdev_controllers(dom, hypervisor.release)
    assign_indices(dom)
    if hypervisor.release.has("added-controllers-sorted"):
        sort_controllers(dom)
    hypervisor.fill_domain(dom)
    _assign_isa_ports(dom)
    for device in _in_parse_order(dom):
        hypervisor.fill_device(dom, device)
        fill_device(dom, device)
    _fill_common(dom, hypervisor)
    return dom


def _in_parse_order(dom: DomainDef) -> list[ElementDef]:
    """
    Return all devices in libvirt's order of iteration.

    Mirrors: virDomainDeviceInfoIterateFlags (src/conf/domain_conf.c)
    """
    groups: list[list[ElementDef]] = [
        [*dom.disks],
        [*dom.interfaces],
        [*dom.sounds],
        [*dom.hostdevs],
        [*dom.filesystems],
        [*dom.controllers],
        [*dom.smartcards, *dom.serials, *dom.parallels, *dom.channels, *dom.consoles],
        [*dom.inputs],
        [part for part in (dom.memballoon, dom.nvram) if part is not None],
        [*dom.watchdogs, *dom.rngs, *dom.hubs, *dom.shmems, *dom.tpms, *dom.videos],
        [*dom.redirdevs, *dom.panics, *dom.memories, *dom.cryptos],
        [*dom.iommus, *(part for part in (dom.vsock, dom.pstore) if part is not None)],
    ]
    return [device for group in groups for device in group]


def _assign_isa_ports(dom: DomainDef) -> None:
    """
    Give ISA serial ports their numbers; a port without a written type does not count yet.

    Raises:
        XMLError: there are too many ports, or two have the same number.

    Mirrors: virDomainChrIsaSerialDefPostParse (src/conf/domain_postparse.c)
    """
    serials = [s for s in dom.serials if s.target_type == "isa-serial"]
    ports = [s.target_port for s in serials if s.target_port is not None]
    text = None
    if len(serials) > ISA_SERIAL_PORTS_MAX or any(p >= ISA_SERIAL_PORTS_MAX for p in ports):
        text = f"There are only {ISA_SERIAL_PORTS_MAX} ISA serial ports"
    elif len(set(ports)) != len(ports):
        text = "Two serial ports have the same number"
    if text is not None:
        raise XMLError(text, line=dom.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    free = iter([p for p in range(ISA_SERIAL_PORTS_MAX) if p not in ports])
    for serial in serials:
        if serial.target_port is None:
            serial.target_port = next(free)


def _fill_loader(os: OSDef, release: LibvirtRelease) -> None:
    if os.loader is not None and os.loader_type is None:
        os.loader_type = "rom"
        if release.has("firmware-format"):
            os.loader_format = os.loader_format or "raw"


def _fill_common(dom: DomainDef, hypervisor: Hypervisor) -> None:
    """
    Fill in the defaults that depend on several devices.

    Mirrors: virDomainDefPostParseCommon (src/conf/domain_postparse.c)
    """
    _fill_memory(dom)
    _fill_loader(dom.os, hypervisor.release)
    _refuse_duplicate_controllers(dom)
    _refuse_duplicate_panics(dom)
    _fill_boot(dom)
    _add_console(dom, hypervisor.release)
    if dom.os.bios_useserial and not dom.serials:
        raise XMLError("<bios useserial='yes'> needs a serial port", line=dom.os.line)
    _add_implicit_controllers(dom, hypervisor.release)
    _add_implicit_video(dom, hypervisor)
    late: list[ElementDef] = [*dom.serials[:1]]
    late += [c for c in dom.controllers if c.type == "scsi" and c.model is None]
    for device in late:
        hypervisor.fill_device(dom, device)
        fill_device(dom, device)
    _check_virtio_serial(dom)


def _check_virtio_serial(dom: DomainDef) -> None:
    """
    Refuse a port of a missing virtio-serial controller.

    Raises:
        XMLError: the controller is missing; the message names it.

    Mirrors: virDomainVirtioSerialAddrReserve (src/conf/domain_addr.c)
    """
    for device, info in dom.device_infos():
        address = info.address
        if not isinstance(address, VirtioSerialAddress) or not address.port:
            continue
        if find_controller(dom, "virtio-serial", address.controller) is None:
            raise XMLError(f"The domain has no virtio-serial controller {address.controller}", line=device.line)


def _fill_memory(dom: DomainDef) -> None:
    """
    Compute the amount of memory; NUMA cells take precedence.

    Raises:
        XMLError: there is no memory, or more than the maximum.

    Mirrors: virDomainDefPostParseMemory (src/conf/domain_postparse.c)
    """
    cells = sum(cell.memory_kib for cell in dom.cpu.cells) if dom.cpu is not None else 0
    plugged = sum(module.size_kib for module in dom.memories)
    if cells:
        dom.memory.value = cells + plugged
    if dom.memory_kib <= plugged:
        raise XMLError("The domain has no memory except its memory devices", line=dom.line)
    current = dom.current_memory.kib if dom.current_memory is not None else 0
    if not 0 < current <= dom.memory_kib:
        dom.current_memory = SizeDef.of_kib(dom.memory_kib)
    _check_max_memory(dom)


def _check_max_memory(dom: DomainDef) -> None:
    largest = dom.max_memory
    if largest is None:
        return
    if largest.kib == 0 and largest.slots:
        raise XMLError("Memory slots need a maximum memory", line=largest.line)
    if 0 < largest.kib < dom.memory_kib:
        raise XMLError("The maximum memory is less than the memory", line=largest.line)


def _refuse_duplicate_controllers(dom: DomainDef) -> None:
    """
    Refuse two controllers of the same type and index, except USB companions.

    Raises:
        XMLError: there are duplicates; the message names them.

    Mirrors: virDomainDefRejectDuplicateControllers (src/conf/domain_postparse.c)
    """
    seen: set[tuple[str, int | None]] = set()
    for controller in dom.controllers:
        key = (controller.type, controller.index)
        if key in seen and controller.type != "usb":
            raise XMLError(f"Two {key[0]} controllers have index {key[1]}", line=controller.line)
        seen.add(key)


def _refuse_duplicate_panics(dom: DomainDef) -> None:
    models = [panic.model for panic in dom.panics]
    if len(set(models)) != len(models):
        raise XMLError("Two panic devices have the same model", line=dom.panics[-1].line)


def _boot_orders(dom: DomainDef) -> set[int]:
    orders: set[int] = set()
    for device, info in dom.device_infos():
        order = info.boot_order
        if order is None:
            continue
        if order in orders:
            raise ConfigUnsupportedError(f"Two devices have the same boot order {order}", line=device.line)
        orders.add(order)
    return orders


def _fill_boot(dom: DomainDef) -> None:
    """
    Boot from the hard disk by default.

    Raises:
        ConfigUnsupportedError: two devices have the same boot order, or both devices and <os> have one.

    Mirrors: virDomainDefBootOrderPostParse (src/conf/domain_postparse.c)
    """
    orders = _boot_orders(dom)
    if orders and dom.os.boots:
        raise ConfigUnsupportedError(
            "Use either <boot order=> of devices or <boot dev=> of <os>, not both", line=dom.os.line
        )
    if not orders and not dom.os.boots:
        dom.os.boots = [BootDev(dev="hd")]


def _add_console(dom: DomainDef, release: LibvirtRelease) -> None:
    """
    Add the first console for the first serial port, or the reverse.

    A first console of type serial stands for the first serial port: each of them implies the other.

    Raises:
        ConfigUnsupportedError: another console has type serial.

    Mirrors: virDomainDefAddConsoleCompat (src/conf/domain_conf.c)
    """
    _number_consoles(dom)
    if any(console.target_type == "serial" for console in dom.consoles[1:]):
        raise ConfigUnsupportedError("Only the first console can be a serial port", line=dom.line)
    is_first_serial = bool(dom.consoles) and dom.consoles[0].target_type in (None, "serial")
    if is_first_serial and not dom.serials:
        dom.serials.append(_serial_of(dom.consoles[0]))
    elif not is_first_serial and _needs_console(dom):
        dom.consoles.insert(0, DomainConsoleDef(target_type="serial"))
        is_first_serial = True
    if is_first_serial:
        dom.consoles[0].target_type = "serial"
        dom.consoles[0].mirrors_serial = True
    if release.has("console-ports"):
        _number_consoles(dom)


def _number_consoles(dom: DomainDef) -> None:
    """Give each console its position as its port; a port in the definition is ignored."""
    for number, console in enumerate(dom.consoles):
        console.target_port = number


def _needs_console(dom: DomainDef) -> bool:
    kinds = (None, "isa-serial", "spapr-vio-serial", "system-serial", "sclp-serial")
    return bool(dom.serials) and dom.serials[0].target_type in kinds


def _serial_of(console: DomainConsoleDef) -> DomainSerialDef:
    serial = DomainSerialDef(target_port=console.target_port)
    serial.source = console.source.copy()
    serial.info = console.info.copy()
    serial.line = console.line
    return serial


def _add_implicit_controllers(dom: DomainDef, release: LibvirtRelease) -> None:
    """
    Add the controllers that devices need and that are not in the XML.

    Mirrors: virDomainDefAddImplicitControllers (src/conf/domain_conf.c)
    """
    for bus in ("scsi", "fdc", "ide", "sata", "nvme"):
        _add_disk_controllers(dom, release, bus)
    virtio = [c for c in [*dom.channels, *dom.consoles] if c.target_type in ("virtio", "virtio-serial")]
    for character in virtio:
        address = character.info.address
        index = address.controller if isinstance(address, VirtioSerialAddress) else 0
        maybe_add_controller(dom, release, "virtio-serial", index)
    for card in dom.smartcards:
        address = card.info.address
        maybe_add_controller(dom, release, "ccid", address.controller if isinstance(address, CCIDAddress) else 0)
    _add_hostdev_controllers(dom, release)


def _drive_controllers(devices: list[DomainDiskDef]) -> range:
    found = [d.info.address.controller for d in devices if isinstance(d.info.address, DriveAddress)]
    return range(max(found, default=-1) + 1)


def _add_disk_controllers(dom: DomainDef, release: LibvirtRelease, bus: str) -> None:
    disks = [disk for disk in dom.disks if disk.bus == bus]
    for index in _drive_controllers(disks):
        if find_controller(dom, bus, index) is None:
            controller = add_controller(dom, release, bus, index)
            controller.serial = _serial_number(disks, index) if bus == "nvme" else None


def _serial_number(disks: list[DomainDiskDef], controller: int) -> str | None:
    """Return the serial number of an NVMe controller: the first one that its disks have, since they share it."""
    behind = (d for d in disks if isinstance(d.info.address, DriveAddress) and d.info.address.controller == controller)
    return next((disk.serial for disk in behind if disk.serial is not None), None)


def _add_hostdev_controllers(dom: DomainDef, release: LibvirtRelease) -> None:
    """
    Add the SCSI controllers that SCSI host devices need, of the same model as an existing one.

    libvirt does so when it has read the host devices, whose addresses count as 0 then, and again at the end.

    Mirrors: virDomainDefMaybeAddHostdevSCSIcontroller (src/conf/domain_conf.c)
    """
    units = [h.info.address for h in dom.hostdevs if h.type == "scsi" and h.mode == "subsystem"]
    found = [address.controller if isinstance(address, DriveAddress) else 0 for address in units]
    last = max(found, default=-1)
    alike = [c.model for c in dom.controllers if c.type == "scsi"]
    if not release.has("hostdev-scsi-model"):
        alike = [c.model for c in dom.controllers if c.type == "scsi" and c.index == last]
    for index in range(last + 1):
        maybe_add_controller(dom, release, "scsi", index, alike[-1] if alike else None)


def _add_implicit_video(dom: DomainDef, hypervisor: Hypervisor) -> None:
    """
    Add a video device to a domain with graphics, and mark the first one as primary.

    Mirrors: virDomainDefAddImplicitVideo, virDomainDefPostParseVideo
    """
    if dom.graphics and not dom.videos:
        dom.videos.append(DomainVideoDef())
    if not dom.videos:
        return
    for second in [video for video in dom.videos if video.primary][1:]:
        raise ConfigUnsupportedError("A guest can have at most one primary video", line=second.line)
    primary = next((video for video in dom.videos if video.primary), dom.videos[0])
    dom.videos.sort(key=lambda video: video is not primary)
    if primary.model_type == "none":
        dom.videos[0] = DomainVideoDef(model_type="none")
        dom.videos[0].info.alias = primary.info.alias
        return
    for video in dom.videos[1:]:
        video.primary = None
    primary.primary = True
    hypervisor.fill_device(dom, primary)
    fill_video(primary)
