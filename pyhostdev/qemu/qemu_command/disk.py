# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Disks and file systems on the command line.

Mirrors: qemuBuildDisksCommandLine (src/qemu/qemu_command.c), src/qemu/qemu_block.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.device_conf import DriveAddress
from pyhostdev.qemu.qemu_alias import scsi_model
from pyhostdev.qemu.qemu_command.block import storage_properties
from pyhostdev.qemu.qemu_command.builder import on_off, unsupported, virtio_driver, virtio_options

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels", "dmg", "bochs", "cloop")

# cache mode: write back, bypass the host's cache, ignore flushes
_CACHE_MODES = {
    "none": (True, True, False),
    "writethrough": (False, False, False),
    "writeback": (True, False, False),
    "directsync": (False, True, False),
    "unsafe": (True, False, True),
}


def build_disks(build: CommandBuilder) -> None:
    """Add the disks; image nodes are numbered from the last disk to the first."""
    disks = build.dom.disks
    with_image = [disk for disk in reversed(disks) if has_image(disk)]
    numbers = {id(disk): number for number, disk in enumerate(with_image, 1)}
    for disk in disks:
        with build.collecting():
            number = numbers.get(id(disk))
            node = None if number is None else _build_image(build, disk, f"libvirt-{number}")
            build.add_device(_device(build, disk, node))


def has_image(disk: Any) -> bool:
    """False for a drive without a medium."""
    source = disk.source
    return source is not None and any((source.file, source.dev, source.name, source.protocol, source.pool))


def _build_image(build: CommandBuilder, disk: Any, node: str) -> str:
    """
    Define where an image is, and how its contents are read; return the node that a device reads.

    Raises:
        ConfigUnsupportedError: the kind of image is not supported, or its format is not given.
    """
    _refuse(disk)
    image_format = disk.driver_type or "raw"
    if image_format not in _FORMATS:
        raise unsupported(f"A disk image of format '{image_format}'", disk)
    storage, top = f"{node}-storage", f"{node}-format"
    cache = _cache(disk)
    content: Properties = {
        "read-only": is_readonly(disk),
        "discard": disk.discard,
        "detect-zeroes": disk.detect_zeroes,
        "cache": cache,
    }
    if image_format == "raw" and build.release.has("raw-image-one-node"):
        build.add_json("-blockdev", {**storage_properties(disk), "node-name": storage, **content})
        return storage
    plain: Properties = {"auto-read-only": True, "discard": "unmap"}
    common = {**plain, "cache": cache} if build.release.has("storage-cache-last") else {"cache": cache, **plain}
    build.add_json("-blockdev", {**storage_properties(disk), "node-name": storage, **common})
    build.add_json("-blockdev", {"node-name": top, **content, "driver": image_format, "file": storage})
    return top


def _refuse(disk: Any) -> None:
    """
    Refuse parts of a disk that need more than two block nodes.

    Raises:
        ConfigUnsupportedError: naming the element.
    """
    elements = ("mirror", "transient", "encryption", "iotune", "auth", "backend_domain", "metadata_cache")
    for name in elements:
        if getattr(disk, name) is not None:
            raise unsupported(f"<{name.replace('_', '')}> of a <disk>", disk)
    source = disk.source
    for name in ("encryption", "reservations", "slices", "ssl", "cookies", "auth", "readahead", "timeout"):
        if getattr(source, name) is not None:
            raise unsupported(f"<{name}> of a disk's <source>", disk)
    if disk.copy_on_read:
        raise unsupported("copy_on_read of a <disk>", disk)


def is_readonly(disk: Any) -> bool:
    """True for a medium that cannot be written."""
    return bool(disk.readonly or disk.device == "cdrom")


def _cache(disk: Any) -> Properties | None:
    if disk.cache in (None, "default"):
        return None
    _, direct, no_flush = _CACHE_MODES[disk.cache]
    return {"direct": direct, "no-flush": no_flush}


def _device(build: CommandBuilder, disk: Any, node: str | None) -> Properties:
    """
    Return the device that the guest sees.

    Mirrors: qemuBuildDiskDeviceProps (src/qemu/qemu_command.c)
    """
    write_cache = None
    if disk.cache not in (None, "default"):
        write_cache = on_off(_CACHE_MODES[disk.cache][0])
    if disk.rotation_rate and disk.bus not in ("ide", "sata", "scsi"):
        raise unsupported(f"rotation_rate of a {disk.bus} disk", disk)
    share = True if disk.shareable else None
    return {
        **_frontend(build, disk),
        "share-rw": share,
        "drive": node,
        "id": disk.info.alias,
        "bootindex": build.bootindex(disk),
        "logical_block_size": disk.logical_block_size,
        "physical_block_size": disk.physical_block_size,
        "wwn": None if disk.wwn is None else int(disk.wwn, 16),
        "rotation_rate": disk.rotation_rate,
        "vendor": disk.vendor,
        "product": disk.product,
        "removable": disk.removable,
        "write-cache": write_cache,
        **_geometry(disk),
        "serial": disk.serial,
        **_error_policies(disk),
    }


def _geometry(disk: Any) -> Properties:
    if not disk.cyls:
        return {}
    trans = disk.trans if disk.trans != "auto" else None
    return {"cyls": disk.cyls, "heads": disk.heads, "secs": disk.secs, "bios-chs-trans": trans}


def _error_policies(disk: Any) -> Properties:
    write = {"enospace": "enospc"}.get(disk.error_policy, disk.error_policy)
    read = disk.rerror_policy
    if read is None and disk.error_policy is not None:
        read = "report" if disk.error_policy == "enospace" else disk.error_policy
    return {"werror": write, "rerror": read}


def _frontend(build: CommandBuilder, disk: Any) -> Properties:
    if disk.bus == "virtio":
        return _virtio(build, disk)
    if disk.bus in ("ide", "sata"):
        return _ide(build, disk)
    if disk.bus == "scsi":
        return _scsi(build, disk)
    if disk.bus == "usb":
        return {"driver": "usb-storage", **build.address(disk), "removable": disk.removable}
    raise unsupported(f"A disk on the bus '{disk.bus}'", disk)


def _virtio(build: CommandBuilder, disk: Any) -> Properties:
    if disk.device not in ("disk", "lun"):
        raise unsupported(f"A virtio {disk.device}", disk)
    return {
        "driver": virtio_driver("blk", disk.model),
        **virtio_options(disk),
        "iothread": None if disk.iothread is None else f"iothread{disk.iothread}",
        "ioeventfd": disk.ioeventfd,
        "event_idx": disk.event_idx,
        "num-queues": disk.queues,
        "queue-size": disk.queue_size,
        **build.address(disk),
    }


def _drive(disk: Any) -> DriveAddress:
    address = disk.info.address
    if not isinstance(address, DriveAddress):
        raise unsupported(f"A {disk.bus} disk without a drive address", disk)
    return address


def _ide(build: CommandBuilder, disk: Any) -> Properties:
    """Return a disk on IDE, where a bus has two units, or on SATA, where each port is a bus."""
    address = _drive(disk)
    alias = build.controller(disk.bus, address.controller).info.alias
    driver = "ide-cd" if disk.device == "cdrom" else "ide-hd"
    if disk.bus == "sata":
        return {"driver": driver, "bus": f"{alias}.{address.unit}"}
    return {"driver": driver, "bus": f"{alias}.{address.bus}", "unit": address.unit}


def _scsi(build: CommandBuilder, disk: Any) -> Properties:
    if disk.device == "lun":
        raise unsupported("A SCSI lun", disk)
    driver = "scsi-cd" if disk.device == "cdrom" else "scsi-hd"
    device_id = f"drive-{disk.info.alias}" if disk.serial is None else disk.serial
    return {"driver": driver, **scsi_place(build, _drive(disk)), "device_id": device_id}


def scsi_place(build: CommandBuilder, address: DriveAddress) -> Properties:
    """Return where a unit is on a SCSI controller; the old ones have one unit a target."""
    bus = f"{build.controller('scsi', address.controller).info.alias}.0"
    if scsi_model(build.dom, address.controller) == "lsilogic":
        return {"bus": bus, "scsi-id": address.unit}
    return {"bus": bus, "channel": address.bus, "scsi-id": address.target, "lun": address.unit}
