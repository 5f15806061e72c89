# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Disks on the command line.

Mirrors: qemuBuildDisksCommandLine (src/qemu/qemu_command.c), src/qemu/qemu_block.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.device_conf import DriveAddress
from pyhostdev.conf.xml.xmlcodec import unit_factor
from pyhostdev.qemu.qemu_alias import scsi_model
from pyhostdev.qemu.qemu_command.block import storage_properties
from pyhostdev.qemu.qemu_command.builder import (
    NULL,
    on_off,
    plain_value,
    unsupported,
    virtio_driver,
    virtio_options,
)
from pyhostdev.qemu.qemu_command.chr import reconnect_option
from pyhostdev.qemu.qemu_command.cpu import thread_mapping
from pyhostdev.qemu.qemu_domain import is_q35
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_NARROW_SCSI = ("lsilogic", "am53c974", "dc390", "ncr53c90")  # one unit per target
_FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "dmg", "bochs", "cloop")
_BACKED_FORMATS = ("qcow", "qcow2", "qed", "vmdk")  # formats that can have a backing image

# cache mode: write back, bypass the host's cache, ignore flushes
_CACHE_MODES = {
    "none": (True, True, False),
    "writethrough": (False, False, False),
    "writeback": (True, False, False),
    "directsync": (False, True, False),
    "unsafe": (True, False, True),
}


class Image(NamedTuple):
    """One image of a disk's backing chain: its location and its format."""

    type: str
    source: Any
    format: str
    readonly: bool


def build_disks(build: CommandBuilder) -> None:
    """Add the disks; nodes are numbered from the last disk to the first, and from the top of each chain down."""
    first, numbers = 1, dict[int, int]()
    for disk in reversed(build.dom.disks):
        numbers[id(disk)] = first
        first += _node_count(disk)
    build.block_nodes = first - 1
    _build_floppy_controller(build)
    for disk in build.dom.disks:
        with build.collecting():
            node = _build_images(build, disk, numbers[id(disk)])
            if disk.model == "usb-bot":
                build.add_device({"driver": "usb-bot", "id": disk.info.alias, **build.address(disk)})
            build.add_device(_device(build, disk, node))


def _node_count(disk: Any) -> int:
    """Return how many node numbers a disk uses up; a drive without a medium uses up one."""
    return 0 if disk.type == "vhostuser" else max(1, len(_chain(disk)))


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


def has_image(disk: Any) -> bool:
    """False for a drive without a medium."""
    source = disk.source
    return source is not None and any(
        (source.file, source.dev, source.dir, source.name, source.protocol, source.pool, source.path, source.address)
    )


def _chain(disk: Any) -> list[Image]:
    """Return the images of a disk that are in the definition, from the top down."""
    if not has_image(disk) or disk.type == "vhostuser":
        return []
    images = [Image(disk.type, disk.source, disk.driver_type or "raw", is_readonly(disk))]
    below = disk.backing_store
    while below is not None and below.type is not None:
        images.append(Image(below.type, below.source, below.image_format or "raw", True))
        below = below.backing_store
    return images


def _ends(disk: Any) -> bool:
    """True if the definition ends the backing chain explicitly, with an empty <backingStore>."""
    below = disk.backing_store
    while below is not None and below.type is not None:
        below = below.backing_store
    return below is not None


def _build_images(build: CommandBuilder, disk: Any, first: int) -> str | None:
    """
    Add the images of a disk, the lowest first; return the node that the device uses, None without a medium.

    Raises:
        ConfigUnsupportedError: the kind of an image is not supported.
    """
    _refuse(disk)
    images = _chain(disk)
    node: str | None = None
    for place, image in reversed(list(enumerate(images))):
        backing: Properties = {"backing": node}
        if node is None and _ends(disk) and image.format in _BACKED_FORMATS:
            backing = {"backing": NULL}
        node = _build_image(build, disk, image, f"libvirt-{first + place}", backing)
    if node is not None and disk.copy_on_read:
        below, node = node, f"libvirt-CoR-{disk.target}"
        build.add_json("-blockdev", {"driver": "copy-on-read", "node-name": node, "file": below, "discard": "unmap"})
    return node


def _build_image(build: CommandBuilder, disk: Any, image: Image, node: str, backing: Properties) -> str:
    """
    Add the nodes for the location and the format of an image; return the upper one.

    Raises:
        ConfigUnsupportedError: the kind of image is not supported.
    """
    if image.format not in _FORMATS and image.type != "dir":
        raise unsupported(f"A disk image of format '{image.format}'", disk)
    storage, top = f"{node}-storage", f"{node}-format"
    cache = _cache(disk)
    content: Properties = {
        "read-only": image.readonly,
        "discard": disk.discard,
        "detect-zeroes": _detect_zeroes(disk),
        "cache": cache,
    }
    place = storage_properties(build, image.type, image.source, device=disk.device, aio=disk.io)
    if image.format == "raw" and image.type != "dir" and build.release.has("raw-image-one-node"):
        build.add_json("-blockdev", {**place, "node-name": storage, **content})
        return storage
    plain: Properties = {"auto-read-only": True, "discard": "unmap"}
    common = {**plain, "cache": cache} if build.release.has("storage-cache-last") else {"cache": cache, **plain}
    build.add_json("-blockdev", {**place, "node-name": storage, **common})
    driver = "raw" if image.type == "dir" else image.format
    own = _qcow2(disk, image) if image.format == "qcow2" else {}
    build.add_json("-blockdev", {"node-name": top, **content, "driver": driver, **own, "file": storage, **backing})
    return top


def _qcow2(disk: Any, image: Image) -> Properties:
    """Return the properties that only a qcow2 image has."""
    if image.source is not disk.source:
        return {}
    size = disk.metadata_cache
    return {
        "cache-size": size * unit_factor(disk.metadata_cache_unit or "bytes") if size else None,
        "discard-no-unref": disk.discard_no_unref,
    }


def _detect_zeroes(disk: Any) -> str | None:
    """Return the treatment of written zeroes; QEMU unmaps them only if it also may discard."""
    if disk.detect_zeroes == "unmap" and disk.discard != "unmap":
        return "on"
    return None if disk.detect_zeroes is None else str(disk.detect_zeroes)


def _refuse(disk: Any) -> None:
    """
    Refuse a disk of another guest; elements that need secrets, overlays or a block job are refused as unknown words.

    Raises:
        ConfigUnsupportedError: the disk has such an element; the message names it.
    """
    if disk.backend_domain is not None:
        raise unsupported("<backenddomain> of a <disk>", disk)


def is_readonly(disk: Any) -> bool:
    """True if the guest cannot write to the medium."""
    return bool(disk.readonly or disk.device == "cdrom")


def _cache_mode(disk: Any) -> tuple[bool, bool, bool] | None:
    """Return the mode of a disk's cache, None for QEMU's default; guests that share a disk do without a cache."""
    name = "none" if disk.cache in (None, "default") and disk.shareable else disk.cache
    return _CACHE_MODES.get(name)


def _cache(disk: Any) -> Properties | None:
    mode = _cache_mode(disk)
    if mode is None:
        return None
    _, direct, no_flush = mode
    return {"direct": direct, "no-flush": no_flush}


def _device(build: CommandBuilder, disk: Any, node: str | None) -> Properties:
    """
    Return the properties of the disk that the guest sees.

    Mirrors: qemuBuildDiskDeviceProps (src/qemu/qemu_command.c)
    """
    write_cache = None
    mode = _cache_mode(disk)
    if mode is not None and disk.device != "lun":  # a lun has its own cache
        write_cache = on_off(mode[0])
    share = True if disk.shareable else None
    return {
        **_frontend(build, disk),
        "share-rw": share,
        "drive": node,
        "id": f"{disk.info.alias}-device" if disk.model == "usb-bot" else disk.info.alias,
        "bootindex": None if disk.bus == "fdc" else build.bootindex(disk),
        "logical_block_size": disk.logical_block_size,
        "physical_block_size": disk.physical_block_size,
        "discard_granularity": disk.discard_granularity,
        "wwn": None if disk.wwn is None else int(disk.wwn, 16),
        "rotation_rate": disk.rotation_rate,
        "vendor": disk.vendor,
        "product": disk.product,
        "removable": bool(disk.removable) if disk.bus == "usb" and disk.model != "usb-bot" else None,
        "write-cache": write_cache,
        **_geometry(disk),
        "serial": _serial(disk),
        **_error_policies(disk),
    }


def _serial(disk: Any) -> str | None:
    """Return the serial number with libvirt's escape; None for an NVMe namespace, whose controller has it."""
    return None if disk.serial is None or disk.bus == "nvme" else str(disk.serial).replace(" ", "\\ ")


def _geometry(disk: Any) -> Properties:
    if not disk.cyls:
        return {}
    trans = disk.trans if disk.trans != "auto" else None
    return {"cyls": disk.cyls, "heads": disk.heads, "secs": disk.secs, "bios-chs-trans": trans}


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
    if disk.bus == "usb" and disk.model == "usb-bot":
        bus = {"bus": f"{disk.info.alias}.0", "scsi-id": 0, "lun": 0}
        return {"driver": "scsi-cd" if disk.device == "cdrom" else "scsi-hd", **bus}
    if disk.bus == "usb":
        return {"driver": "usb-storage", **build.address(disk)}
    if disk.bus == "nvme":
        address = _drive(disk)
        alias = build.controller("nvme", address.controller).info.alias
        return {"driver": "nvme-ns", "bus": alias, "nsid": address.unit + 1}
    if disk.bus == "fdc":
        return {"driver": "floppy", "unit": _drive(disk).unit}
    raise unsupported(f"A disk on the bus '{disk.bus}'", disk)


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
