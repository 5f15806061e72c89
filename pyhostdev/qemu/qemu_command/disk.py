# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Disks on the command line.

Mirrors: qemuBuildDisksCommandLine (src/qemu/qemu_command.c), src/qemu/qemu_block.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.bus_address_conf import DriveAddress
from pyhostdev.qemu.qemu_alias import scsi_model
from pyhostdev.qemu.qemu_command.builder import (
    on_off,
    plain_value,
    unsupported,
    virtio_driver,
    virtio_options,
)
from pyhostdev.qemu.qemu_command.chr import reconnect_option
from pyhostdev.qemu.qemu_command.cpu import thread_mapping
from pyhostdev.qemu.qemu_command.images import build_images, cache_mode, node_count
from pyhostdev.qemu.qemu_domain import is_q35

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_NARROW_SCSI = ("lsilogic", "am53c974", "dc390", "ncr53c90")  # one unit per target


def build_disks(build: CommandBuilder) -> None:
    """Add the disks; nodes are numbered from the last disk to the first, and from the top of each chain down."""
    first, numbers = 1, dict[int, int]()
    for disk in reversed(build.dom.disks):
        numbers[id(disk)] = first
        first += node_count(disk)
    build.block_nodes = first - 1
    _build_floppy_controller(build)
    for disk in build.dom.disks:
        if disk.transient_share:
            continue  # libvirt plugs it after it has made the overlay
        with build.collecting():
            node = build_images(build, disk, numbers[id(disk)])
            if disk.model == "usb-bot":
                build.add_device({"driver": "usb-bot", "id": disk.info.alias, **build.address(disk)})
            build.add_device(_device(build, disk, node))


def _build_floppy_controller(build: CommandBuilder) -> None:
    """
    Set the boot index of each floppy drive; on q35, add the floppy controller.

    Mirrors: qemuBuildFloppyCommandLineControllerOptions
    """
    floppies = [disk for disk in build.dom.disks if disk.bus == "fdc"]
    units = {f"bootindex{'AB'[_drive(disk).unit & 1]}": build.bootindex(disk) for disk in floppies}
    if floppies and is_q35(build.dom):
        build.add_json("-device", {"driver": "isa-fdc", **units})
    elif floppies:
        for name, index in units.items():
            if index is not None:
                build.add("-global", f"isa-fdc.{name}={index}")


def _device(build: CommandBuilder, disk: Any, node: str | None) -> Properties:
    """
    Return the properties of the disk that the guest sees.

    Mirrors: qemuBuildDiskDeviceProps (src/qemu/qemu_command.c)
    """
    return {
        **_frontend(build, disk),
        "share-rw": True if disk.shareable else None,
        "drive": node,
        "id": f"{disk.info.alias}-device" if disk.model == "usb-bot" else disk.info.alias,
        "bootindex": None if disk.bus == "fdc" else build.bootindex(disk),
        **_identity(disk),
        "write-cache": _write_cache(disk),
        **_geometry(disk),
        "serial": _serial(disk),
        **_error_policies(disk),
        "dpofua": disk.dpofua,
        "migrate-pr": _migrates_reservations(disk),
        "stats-intervals": [row.interval for row in disk.statistics] or None,
    }


def _identity(disk: Any) -> Properties:
    """Return the properties that describe a disk: block sizes, names and kind."""
    return {
        "logical_block_size": disk.logical_block_size,
        "physical_block_size": disk.physical_block_size,
        "discard_granularity": disk.discard_granularity,
        "wwn": None if disk.wwn is None else int(disk.wwn, 16),
        "rotation_rate": disk.rotation_rate,
        "vendor": disk.vendor,
        "product": disk.product,
        "removable": bool(disk.removable) if disk.bus == "usb" and disk.model != "usb-bot" else None,
    }


def _write_cache(disk: Any) -> str | None:
    mode = cache_mode(disk)
    return None if mode is None or disk.device == "lun" else on_off(mode[0])  # a lun has its own cache


def _serial(disk: Any) -> str | None:
    """Return the serial number with libvirt's escape; None for an NVMe namespace, whose controller has it."""
    return None if disk.serial is None or disk.bus == "nvme" else str(disk.serial).replace(" ", "\\ ")


def _geometry(disk: Any) -> Properties:
    if not disk.cyls:
        return {}
    trans = disk.trans if disk.trans != "auto" else None
    return {"cyls": disk.cyls, "heads": disk.heads, "secs": disk.secs, "bios-chs-trans": trans}


def _migrates_reservations(disk: Any) -> bool | None:
    reservations = disk.source.reservations if disk.source is not None else None
    return None if reservations is None else reservations.migration


def _error_policies(disk: Any) -> Properties:
    write = {"enospace": "enospc"}.get(disk.error_policy, disk.error_policy)
    read = disk.rerror_policy
    if read is None and disk.error_policy != "enospace":  # which QEMU has for writes only
        read = disk.error_policy
    return {"werror": write, "rerror": read}


def _frontend(build: CommandBuilder, disk: Any) -> Properties:
    if disk.bus == "virtio":
        return _virtio(build, disk)
    if disk.bus in ("ide", "sata"):
        return _ide(build, disk)
    if disk.bus == "scsi":
        return _scsi(build, disk)
    if disk.bus == "usb":
        return _usb(build, disk)
    if disk.bus == "nvme":
        address = _drive(disk)
        alias = build.controller("nvme", address.controller).info.alias
        return {"driver": "nvme-ns", "bus": alias, "nsid": address.unit + 1}
    if disk.bus == "fdc":
        return {"driver": "floppy", "unit": _drive(disk).unit}
    raise unsupported(f"A disk on the bus '{disk.bus}'", disk)


def _usb(build: CommandBuilder, disk: Any) -> Properties:
    if disk.model != "usb-bot":
        return {"driver": "usb-storage", **build.address(disk)}
    bus = {"bus": f"{disk.info.alias}.0", "scsi-id": 0, "lun": 0}
    return {"driver": "scsi-cd" if disk.device == "cdrom" else "scsi-hd", **bus}


def _virtio(build: CommandBuilder, disk: Any) -> Properties:
    if disk.type == "vhostuser":
        return _vhostuser(build, disk)
    return {
        "driver": virtio_driver("blk", disk.model),
        **virtio_options(disk),
        "iothread": None if disk.iothread is None else f"iothread{disk.iothread}",
        "ioeventfd": disk.ioeventfd,
        "event_idx": disk.event_idx,
        "num-queues": disk.queues,
        "queue-size": disk.queue_size,
        "iothread-vq-mapping": thread_mapping(disk),
        **build.address(disk),
    }


def _vhostuser(build: CommandBuilder, disk: Any) -> Properties:
    """Add the socket of the vhost-user process that serves the disk; return the properties of the device."""
    chardev = f"chr-vu-{disk.info.alias}"
    path = plain_value(str(disk.source.path), "The path of a socket", disk)
    reconnect = reconnect_option(build, disk.source)
    build.add("-chardev", ",".join(["socket", f"id={chardev}", f"path={path}", *reconnect]))
    return {
        "driver": "vhost-user-blk-pci",
        **virtio_options(disk),
        "num-queues": disk.queues,
        "queue-size": disk.queue_size,
        **build.address(disk),
        "chardev": chardev,
    }


def _drive(disk: Any) -> DriveAddress:
    address = disk.info.address
    if not isinstance(address, DriveAddress):
        raise unsupported(f"A {disk.bus} disk without a drive address", disk)
    return address


def _ide(build: CommandBuilder, disk: Any) -> Properties:
    """Return the address of a disk on IDE, where a bus has two units, or on SATA, where each port is a bus."""
    address = _drive(disk)
    alias = build.controller(disk.bus, address.controller).info.alias
    driver = "ide-cd" if disk.device == "cdrom" else "ide-hd"
    if disk.bus == "sata":
        return {"driver": driver, "bus": f"{alias}.{address.unit}"}
    return {"driver": driver, "bus": f"{alias}.{address.bus}", "unit": address.unit}


def _scsi(build: CommandBuilder, disk: Any) -> Properties:
    if disk.device == "lun":
        return {"driver": "scsi-block", **scsi_place(build, _drive(disk))}
    driver = "scsi-cd" if disk.device == "cdrom" else "scsi-hd"
    device_id = f"drive-{disk.info.alias}" if disk.serial is None else disk.serial
    return {"driver": driver, **scsi_place(build, _drive(disk)), "device_id": device_id}


def scsi_place(build: CommandBuilder, address: DriveAddress) -> Properties:
    """Return the address of a unit on a SCSI controller; lsilogic has one unit per target."""
    bus = f"{build.controller('scsi', address.controller).info.alias}.0"
    if scsi_model(build.dom, address.controller) in _NARROW_SCSI:
        return {"bus": bus, "scsi-id": address.unit}
    return {"bus": bus, "channel": address.bus, "scsi-id": address.target, "lun": address.unit}
