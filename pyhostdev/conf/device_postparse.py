# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The defaults of single devices, the same for all hypervisors.

Mirrors: virDomainDeviceDefPostParseCommon (src/conf/domain_postparse.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.address_conf import DeviceAddress
from pyhostdev.conf.bus_address_conf import DriveAddress
from pyhostdev.conf.domain_limits import CONTROLLERS_MAX
from pyhostdev.conf.hostdev_conf import USBSource
from pyhostdev.conf.storage_source_conf import DEFAULT_PORTS
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS
from pyhostdev.conf.xml.xmlcodec import unit_factor
from pyhostdev.errors import ConfigUnsupportedError, XMLError
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.board_conf import DomainMemoryDef
    from pyhostdev.conf.chr_conf import DomainChrDef, DomainRedirdevDef, DomainSmartcardDef
    from pyhostdev.conf.controller_conf import DomainControllerDef
    from pyhostdev.conf.disk_conf import DomainDiskDef
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.fs_conf import DomainFSDef
    from pyhostdev.conf.graphics_conf import DomainVideoDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.net_conf import DomainNetDef
    from pyhostdev.conf.rng_conf import DomainRNGDef
    from pyhostdev.conf.small_device_conf import DomainInputDef, DomainShmemDef, DomainVsockDef
    from pyhostdev.conf.storage_source_conf import StorageSource
    from pyhostdev.conf.xml.xmldef import ElementDef

X86 = ("x86_64", "i686")
_VRAM_KIB = {"vga": 16384, "cirrus": 16384, "vmvga": 16384, "bochs": 16384, "qxl": 65536, "xen": 4096}
_BUS_OF_NAME = {"hd": "ide", "sd": "scsi", "vd": "virtio", "xvd": "xen", "ubd": "uml", "fd": "fdc"}
_FILTERED_NETS = ("ethernet", "network", "bridge")  # types with a tap device
_SCSI_UNITS_MAX = 7  # of a narrow SCSI bus; the controller is the eighth


def fill_device(dom: DomainDef, device: ElementDef) -> None:
    """
    Fill in the defaults of one device.

    Raises:
        XMLError, ConfigUnsupportedError: a default does not exist, or contradicts the definition.
    """
    fill = _FILLERS.get(device.tag)
    if fill is not None:
        fill(dom, device)


def _fill_chr(dom: DomainDef, device: DomainChrDef) -> None:
    if device.tag == "console" and device.target_type is None:
        device.target_type = "serial"
    if device.tag == "serial" and device.target_type == "isa-debug" and dom.os.arch not in X86:
        raise ConfigUnsupportedError("Only x86 machines can have isa-debug serial ports", line=device.line)
    if device.target_port is None and device.tag in ("serial", "parallel", "console"):
        others: list[Any] = getattr(dom, f"{device.tag}s")
        ports = [other.target_port for other in others if other.target_port is not None]
        device.target_port = max(ports, default=-1) + 1
    device.source.type = device.source.type or "pty"
    device.source.normalise()
    device.target_state = None


def _fill_rng(dom: DomainDef, device: DomainRNGDef) -> None:
    backend = device.backend
    if backend is not None and backend.model == "egd":
        backend.chardev.normalise()
    if backend is not None and backend.model == "random" and not backend.path:
        backend.path = "/dev/random"


def _fill_disk(dom: DomainDef, device: DomainDiskDef) -> None:
    if device.target is not None:
        device.target = device.target.removeprefix("ioemu:")
    if device.device == "cdrom":
        device.readonly = True
    if device.bus is None:
        device.bus = _default_bus(device)
    device.transient_share = device.transient_share or None
    if device.snapshot == "no" and device.readonly:
        device.snapshot = None
    if device.type == "vhostuser":
        device.snapshot = device.snapshot or "no"
    if device.source is not None and device.type == "network":
        _fill_network(device.source)
    store = device.source.data_store if device.source is not None else None
    if store is not None and store.source is not None and store.type == "network":
        _fill_network(store.source)
    for source in device.nvme_sources():
        source.managed = source.managed is not False
    if device.info.address is None and device.target is not None:
        assign_disk_address(dom, device)


def _fill_network(source: StorageSource) -> None:
    """
    Fill in the port of each server of a network disk, and the unit of an iSCSI target.

    Mirrors: virStorageSourceNetworkAssignDefaultPorts (src/conf/storage_source_conf.c)
    """
    for host in source.hosts:
        if host.transport in (None, "tcp") and host.port is None:
            host.port = DEFAULT_PORTS.get(str(source.protocol))
    if source.protocol == "iscsi" and source.name is not None and "/" not in source.name:
        source.name = f"{source.name}/0"


def _default_bus(device: DomainDiskDef) -> str:
    if device.device == "floppy":
        return "fdc"
    name = device.target or ""
    return next((bus for prefix, bus in _BUS_OF_NAME.items() if name.startswith(prefix)), "ide")


def assign_disk_address(dom: DomainDef, device: DomainDiskDef) -> None:
    """
    Give a disk the drive address that follows from its target name.

    Raises:
        XMLError: a SCSI host device has this address.

    Mirrors: virDomainDiskDefAssignAddress (src/conf/domain_conf.c)
    """
    place = _named_place(device)
    if place is None:
        return
    controller, bus, unit = place
    if controller >= CONTROLLERS_MAX:
        raise ConfigUnsupportedError(
            f"The name of disk '{device.target}' asks for {device.bus} controller {controller}, more than the limit "
            f"of {CONTROLLERS_MAX - 1}",
            line=device.line,
        )
    address = DriveAddress(controller=controller, bus=bus, target=0, unit=unit)
    if device.bus == "scsi" and any(h.type == "scsi" and _is_at(h.info.address, place) for h in dom.hostdevs):
        raise ConfigUnsupportedError(f"A SCSI host device has the address of disk '{device.target}'", line=device.line)
    device.info.address = address


def _named_place(device: DomainDiskDef) -> tuple[int, int, int] | None:
    """
    Return controller, bus and unit of a disk by its name; None for buses without such addresses.

    Raises:
        XMLError: the name is invalid.
    """
    index, nvme = device.name_index(), device.nvme_place()
    if index < 0 and nvme is None:
        raise XMLError(f"Invalid disk name '{shown(str(device.target))}'", line=device.line)
    if device.bus == "nvme":
        return None if nvme is None else (nvme[0], 0, nvme[1])
    return _drive_place(device.bus, index)


def _is_at(address: DeviceAddress | None, place: tuple[int, int, int]) -> bool:
    """Return True if an address is this controller, bus and unit; faster than a comparison of definitions."""
    return (
        isinstance(address, DriveAddress)
        and not address.target
        and place
        == (
            address.controller,
            address.bus,
            address.unit,
        )
    )


def _drive_place(bus: str | None, index: int) -> tuple[int, int, int] | None:
    """Return controller, bus and unit; None for buses without such addresses."""
    if bus == "scsi":
        return index // _SCSI_UNITS_MAX, 0, index % _SCSI_UNITS_MAX
    if bus == "ide":
        return index // 4, index % 4 // 2, index % 2
    if bus == "sata":
        return index // 6, 0, index % 6
    if bus == "fdc":
        return index // 2, 0, index % 2
    return None


def fill_video(device: DomainVideoDef) -> None:
    """
    Fill in video memory.

    Mirrors: virDomainVideoDefPostParse (src/conf/domain_postparse.c)
    """
    kind = device.model_type
    if device.ram is None and kind == "qxl":
        device.ram = _VRAM_KIB["qxl"]
    if not device.vram:
        device.vram = _VRAM_KIB.get(kind)
    device.ram = _power_of_two(device.ram)
    device.vram = _power_of_two(device.vram)
    if device.heads is None and kind != "none":
        device.heads = 1


def _power_of_two(value: int | None) -> int | None:
    return 1 << (value - 1).bit_length() if value else None


def _fill_video(dom: DomainDef, device: DomainVideoDef) -> None:
    fill_video(device)


def _fill_scsi_address(dom: DomainDef, device: DomainHostdevDef) -> None:
    if device.info.address is None:
        _assign_hostdev_address(dom, device)
    address = device.info.address
    place = (address.controller, address.bus, address.unit) if isinstance(address, DriveAddress) else (-1, 0, 0)
    if any(d.bus == "scsi" and _is_at(d.info.address, place) for d in dom.disks):
        raise XMLError("A SCSI disk has the address of a SCSI host device", line=device.line)


def _fill_hostdev(dom: DomainDef, device: DomainHostdevDef) -> None:
    """
    Give SCSI units an address, check those of mediated devices, and drop an empty source.

    Mirrors: virDomainHostdevDefPostParse (src/conf/domain_postparse.c)
    """
    if device.mode != "subsystem":
        return
    if isinstance(device.source_def, USBSource) and device.source_def.is_empty:
        device.source_def = None  # libvirt accepts it, prints nothing, and refuses to start the domain
    if device.type == "scsi":
        _fill_scsi_address(dom, device)
    else:
        device.readonly = device.shareable = False
    if device.type != "pci":
        device.driver_name = device.host_driver.model = None
    if device.type not in ("pci", "mdev"):
        device.display = device.ramfb = None
    if device.type == "mdev":
        _check_mdev_address(device)


def _assign_hostdev_address(dom: DomainDef, device: DomainHostdevDef) -> None:
    """Give a SCSI host device the first free unit, adding controllers as needed."""
    users: list[Any] = [*(disk for disk in dom.disks if disk.bus == "scsi"), *dom.hostdevs]
    addresses = (user.info.address for user in users)
    used = {(a.controller, a.unit) for a in addresses if isinstance(a, DriveAddress) and a.bus == a.target == 0}
    places = (divmod(number, _SCSI_UNITS_MAX) for number in range(len(used) + 1))
    controller, unit = next(place for place in places if place not in used)
    device.info.address = DriveAddress(controller=controller, unit=unit)


def _check_mdev_address(device: DomainHostdevDef) -> None:
    address = device.info.address
    wanted = {"vfio-pci": "pci", "vfio-ccw": "ccw"}.get(str(device.model))
    if address is not None and wanted is not None and address.kind != wanted:
        raise XMLError(
            f"A mediated device of model {device.model} cannot have an address of type {address.kind}",
            line=device.line,
        )


def _fill_controller(dom: DomainDef, device: DomainControllerDef) -> None:
    if device.iothread is not None and not str(device.model).startswith("virtio"):
        raise XMLError("Only virtio SCSI controllers can have an iothread", line=device.line)
    if device.pcihole64 is not None:
        device.pcihole64, device.pcihole64_unit = device.pcihole64_kib, "KiB"


def _fill_vsock(dom: DomainDef, device: DomainVsockDef) -> None:
    if device.cid_auto is None:
        device.cid_auto = not device.cid_address


def _fill_memory(dom: DomainDef, device: DomainMemoryDef) -> None:
    device.target_size, device.target_size_unit = device.size_kib, "KiB"
    if device.model == "virtio-pmem":
        device.access = device.access or "shared"


def _fill_fs(dom: DomainDef, device: DomainFSDef) -> None:
    if device.accessmode is None and device.source_socket is None:
        device.accessmode = "passthrough"


def _fill_input(dom: DomainDef, device: DomainInputDef) -> None:
    if device.bus is not None:
        return
    if device.type in ("mouse", "keyboard") and dom.os.arch in X86:
        device.bus = "ps2"
    else:
        device.bus = {"passthrough": "virtio", "evdev": "none"}.get(device.type, "usb")


def _fill_net(dom: DomainDef, device: DomainNetDef) -> None:
    """Drop what this type of interface does not use, and add a MAC address."""
    device.managed = True if device.managed and device.hostdev is not None else None
    if device.type not in _FILTERED_NETS:
        device.filterref = None
    device.ifname = device.chosen_ifname
    if device.hostdev is not None or device.model not in VIRTIO_MODELS:
        device.drop_virtio_driver()
    if device.type == "direct" and device.source is not None:
        device.source.mode = device.source.mode or "vepa"
    if device.mac is None:
        device.mac, device.mac_is_made = _derived_mac(dom, device), True


def _derived_mac(dom: DomainDef, device: DomainNetDef) -> str:
    """
    Return a MAC address derived from the domain and the interface's position.

    libvirt generates a random one when it defines a domain; here the same file must give the same guest.
    """
    import hashlib

    place = next(i for i, net in enumerate(dom.interfaces) if net is device)
    digits = hashlib.sha256(f"{dom.uuid} {place}".encode()).hexdigest()
    return f"52:54:00:{digits[:2]}:{digits[2:4]}:{digits[4:6]}"


def _fill_redirected(dom: DomainDef, device: DomainRedirdevDef | DomainSmartcardDef) -> None:
    device.source.normalise()


def _fill_shmem(dom: DomainDef, device: DomainShmemDef) -> None:
    """Normalise the size to MiB; the default unit is bytes."""
    if device.size is not None:
        device.size, device.size_unit = device.size * unit_factor(device.size_unit or "bytes") >> 20, "M"


_FILLERS: dict[str, Callable[..., None]] = {
    "serial": _fill_chr,
    "parallel": _fill_chr,
    "console": _fill_chr,
    "channel": _fill_chr,
    "rng": _fill_rng,
    "disk": _fill_disk,
    "video": _fill_video,
    "hostdev": _fill_hostdev,
    "controller": _fill_controller,
    "vsock": _fill_vsock,
    "memory": _fill_memory,
    "filesystem": _fill_fs,
    "input": _fill_input,
    "interface": _fill_net,
    "redirdev": _fill_redirected,
    "smartcard": _fill_redirected,
    "shmem": _fill_shmem,
}
