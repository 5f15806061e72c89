# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's rules for disks.

Mirrors: qemuValidateDomainDeviceDefDisk and its parts (src/qemu/qemu_validate.c)
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.tuning_postparse import iothread_numbers
from pyhostdev.errors import VIR_ERR_ARGUMENT_UNSUPPORTED, VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError
from pyhostdev.qemu.qemu_validate.peripheral import shares_memory
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pyhostdev.conf.domain_conf import DomainDef

    Errors = Iterator[ConfigError]

_SERIAL_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_ .+")
_IOTUNE_MAX = 1000000000000000  # THROTTLE_VALUE_MAX of QEMU's include/qemu/throttle.h
_ROTATING_BUSES = ("scsi", "ide", "sata")
_SHARED_FORMATS = (None, "raw", "none")


def _unsupported(message: str, where: Any, code: int | None = None) -> ConfigError:
    return ConfigUnsupportedError(message, line=where.line, libvirt_code=code)


def disk_errors(dom: DomainDef, disk: Any) -> Errors:
    """Yield the errors of one disk."""
    yield from _address_errors(disk)
    yield from _bus_errors(disk)
    yield from _dpofua_errors(disk)
    yield from _copy_errors(disk)
    yield from _lun_errors(disk)
    yield from _io_errors(dom, disk)
    yield from _iotune_errors(dom, disk)
    yield from _transient_errors(disk)
    yield from _image_errors(dom, disk)
    if disk.shareable and not disk.readonly and disk.driver_type not in _SHARED_FORMATS:
        yield _unsupported(f"A {disk.driver_type} image cannot be shared", disk)
    if disk.driver_name not in (None, "qemu"):
        yield _unsupported(f"QEMU does not support the disk driver '{shown(str(disk.driver_name))}'", disk)
    if re.search(r"p[0-9]+$" if disk.nvme_place() is not None else r"[0-9]$", disk.target or ""):
        yield _unsupported(f"The target '{shown(str(disk.target))}' of a disk names a partition", disk)


_NO_FORMATS = ("cow", "dir", "iso")
_NO_PROTOCOLS = ("tftp", "vxhs")
_LUKS_FORMATS = ("raw", "qcow2", None)
_SECRET_TYPES = {"iscsi": "iscsi", "rbd": "ceph"}


def _image_errors(dom: DomainDef, disk: Any) -> Errors:
    """
    Yield the errors of an image's format, place and secrets.

    Mirrors: qemuDomainValidateStorageSource (src/qemu/qemu_domain.c), virDomainDiskDefValidateSourceChainOne
    """
    if disk.driver_type in _NO_FORMATS or (disk.driver_type == "fat" and disk.type not in ("dir", "volume")):
        yield _unsupported(f"QEMU does not support a disk image of format {disk.driver_type}", disk)
    if disk.type == "dir" and not disk.readonly:
        yield _unsupported("A disk of type dir must be read-only", disk)
    if disk.type == "vhostuser" and not shares_memory(dom):
        yield _unsupported("A vhostuser disk needs shared memory", disk)
    if disk.type == "vhostvdpa":
        yield from _vdpa_errors(dom, disk)
    if disk.source is not None:
        yield from _store_errors(disk)
        yield from _server_errors(disk, disk.source)
    yield from _secret_errors(disk, disk.source)
    for layer in _layers(disk):
        yield from _layer_errors(disk, layer)
    yield from _qcow2_errors(disk)


class _Layer(NamedTuple):
    """An image of a disk's chain."""

    kind: str | None  # the type of its source
    image_format: str | None
    source: Any
    encryption: Any


def _layers(disk: Any) -> Iterator[_Layer]:
    """Yield the images of a disk from the top down; the encryption of the first may be the disk's."""
    source = disk.source
    yield _Layer(disk.type, disk.driver_type, source, disk.encryption or (source and source.encryption))
    below = disk.backing_store
    while below is not None and below.source is not None:
        yield _Layer(below.type, below.image_format, below.source, below.source.encryption)
        below = below.backing_store


def _layer_errors(disk: Any, layer: _Layer) -> Errors:
    protocol = layer.source.protocol if layer.source is not None and layer.kind == "network" else None
    if layer.kind == "dir" and layer.image_format != "fat" and layer.source is not None:
        yield _unsupported("An image of type dir must have format fat", disk)
    if protocol not in (None, "nbd") and layer.source.tls_hostname is not None:
        yield _unsupported(f"A disk of protocol {protocol} cannot have tlsHostname", disk)
    if layer.encryption is not None:
        yield from _encryption_errors(disk, layer, protocol)


def _qcow2_errors(disk: Any) -> Errors:
    """Yield the errors of settings that only qcow2 images have."""
    if disk.metadata_cache and disk.driver_type != "qcow2":
        yield _unsupported("Only a qcow2 image can have a <metadata_cache>", disk)
    if disk.discard_no_unref and (disk.driver_type != "qcow2" or disk.readonly):
        yield _unsupported("Only a writable qcow2 image can have discard_no_unref", disk)


def _server_errors(disk: Any, source: Any) -> Errors:
    if source.protocol in _NO_PROTOCOLS:
        yield _unsupported(f"QEMU does not support a disk of protocol {source.protocol}", disk)
    if source.protocol == "nfs" and (len(source.hosts) != 1 or any(host.port for host in source.hosts)):
        yield _unsupported("An nfs disk needs exactly one server, without a port", disk)


def _vdpa_errors(dom: DomainDef, disk: Any) -> Errors:
    if not shares_memory(dom):
        yield _unsupported("A vhostvdpa disk needs shared memory", disk)
    elif disk.cache not in ("none", "directsync"):
        yield _unsupported("A vhostvdpa disk needs cache='none' or 'directsync'", disk)


def _store_errors(disk: Any) -> Errors:
    """Yield an error for each image of the chain that cannot have its content elsewhere."""
    image, kind = disk, disk.driver_type
    while image is not None and image.source is not None:
        store = image.source.data_store
        if store is not None and kind != "qcow2":
            yield _unsupported("Only a qcow2 image can have a <dataStore>", store)
        elif store is not None and store.image_format != "raw":
            yield _unsupported("The image of a <dataStore> must have format raw", store)
        image = image.backing_store
        kind = None if image is None else image.image_format


def _secret_errors(disk: Any, source: Any) -> Errors:
    for name in ("auth", "encryption"):
        if getattr(disk, name) is not None and getattr(source, name, None) is not None:
            yield _unsupported(f"A disk can have only one <{name}>", disk)
    auth = disk.auth or (source and source.auth)
    kind = auth.secret.type if auth is not None and auth.secret is not None else None
    if (
        auth is not None
        and disk.type == "network"
        and source is not None
        and kind != _SECRET_TYPES.get(source.protocol, kind)
    ):
        yield _unsupported(f"A disk of protocol {source.protocol} cannot have a secret of type {kind}", disk)
    if auth is not None and kind is None and disk.type == "network":
        yield _unsupported("The <secret> of <auth> needs a type", disk)


def _encryption_errors(disk: Any, layer: _Layer, protocol: str | None) -> Errors:
    encryption = layer.encryption
    if layer.image_format not in _LUKS_FORMATS:
        yield _unsupported(f"An image of format {layer.image_format} cannot be encrypted", disk)
    if encryption.format_ in ("default", "qcow"):
        yield _unsupported("QEMU no longer supports the encryption of qcow", disk)
    elif encryption.engine == "librbd" and protocol != "rbd":
        yield _unsupported("Only an image of protocol rbd can have the encryption engine librbd", disk)
    elif encryption.engine in (None, "qemu") and encryption.format_ != "luks":
        yield _unsupported(f"QEMU does not support the encryption {encryption.format_}", disk)
    if encryption.format_ == "luks" and encryption.cipher is not None:
        yield _unsupported("<cipher> cannot be given: the image itself contains it", disk)


def _address_errors(disk: Any) -> Errors:
    kind = disk.info.address.kind if disk.info.address is not None else None
    if disk.bus == "usb" and kind not in (None, "usb"):
        yield _unsupported(f"A disk on USB cannot have an address of type {kind}", disk, VIR_ERR_INTERNAL_ERROR)


def _geometry_errors(disk: Any) -> Errors:
    if not (disk.cyls and disk.heads and disk.secs):
        return
    if disk.bus in ("usb", "sd"):
        yield _unsupported(f"A disk on bus {disk.bus} cannot have a geometry", disk)
    elif disk.trans is not None and disk.bus != "ide":
        yield _unsupported(f"A disk on bus {disk.bus} cannot have a translation of its geometry", disk)


def _bus_errors(disk: Any) -> Errors:
    """Yield an error for each setting that a disk on this bus cannot have."""
    bus = disk.bus
    yield from _geometry_errors(disk)
    if disk.device == "cdrom" and bus in ("virtio", "sd"):
        yield _unsupported(f"A cdrom cannot be on bus {bus}", disk)
    if disk.wwn is not None and bus not in ("ide", "scsi"):
        yield _unsupported(f"A disk on bus {bus} cannot have a WWN", disk)
    if disk.rotation_rate and (bus not in _ROTATING_BUSES or disk.device != "disk"):
        yield _unsupported(f"A {disk.device} on bus {bus} cannot have a rotation rate", disk, VIR_ERR_INTERNAL_ERROR)
    if disk.readonly and disk.device == "disk" and bus in ("ide", "sata"):
        yield _unsupported(f"A disk on bus {bus} cannot be read-only", disk)
    if disk.serial is not None and not _SERIAL_CHARACTERS.issuperset(disk.serial):
        text = "The serial number of a disk can have only letters, digits, '-', '_', ' ', '.' and '+'"
        yield _unsupported(text, disk, VIR_ERR_INTERNAL_ERROR)


def _dpofua_errors(disk: Any) -> Errors:
    if disk.dpofua is not None and disk.bus != "scsi":
        yield _unsupported("Only a SCSI disk can have dpofua", disk)


def _copy_errors(disk: Any) -> Errors:
    if not disk.copy_on_read:
        return
    if disk.readonly:
        yield _unsupported("A read-only disk cannot copy on read", disk)
    if disk.device != "disk":
        yield _unsupported(f"A {disk.device} cannot copy on read", disk)


def _lun_errors(disk: Any) -> Errors:
    if disk.device != "lun":
        return
    if disk.bus not in ("virtio", "scsi"):
        yield _unsupported(f"A lun cannot be on bus {disk.bus}", disk)
    for name in ("wwn", "vendor", "product"):
        if getattr(disk, name) is not None:
            yield _unsupported(f"A lun cannot have a {name}: the unit reports its own", disk)
    if disk.serial is not None and disk.bus == "scsi":
        yield _unsupported("A lun cannot have a serial number: the unit reports its own", disk)


def _io_errors(dom: DomainDef, disk: Any) -> Errors:
    if disk.io == "native" and disk.cache not in ("none", "directsync"):
        yield _unsupported("io='native' needs cache='none' or 'directsync'", disk)
    if (disk.iothread is not None or disk.iothread_mapping) and disk.bus != "virtio":
        yield _unsupported(f"A disk on bus {disk.bus} cannot have an I/O thread", disk)
    else:
        yield from thread_errors(dom, disk)


def thread_errors(dom: DomainDef, device: Any) -> Errors:
    """
    Yield the errors of the I/O threads of a disk or controller.

    Mirrors: qemuDomainValidateIothreadMapping (src/qemu/qemu_validate.c)
    """
    if device.iothread is None and not device.iothread_mapping:
        return
    threads = iothread_numbers(dom)
    if device.iothread is not None and device.iothread not in threads:
        yield _unsupported(f"There is no I/O thread {device.iothread}", device)
    if device.iothread is not None and device.iothread_mapping:
        yield _unsupported("A device can have either an iothread or <iothreads>", device)
    yield from _mapping_errors(device, threads)


def _mapping_errors(device: Any, threads: Collection[int]) -> Errors:
    mapping = device.iothread_mapping
    queues = [queue.id for thread in mapping for queue in thread.queues]
    for thread in mapping:
        if thread.id not in threads:
            yield _unsupported(f"There is no I/O thread {thread.id}", thread)
        if queues and not thread.queues:
            yield _unsupported(f"I/O thread {thread.id} must have queues, because others have them", thread)
    if len({thread.id for thread in mapping}) != len(mapping):
        yield _unsupported("An I/O thread is named twice in <iothreads>", device)
    if queues and sorted(queues) != list(range(device.queues or 0)):
        yield _unsupported("<iothreads> must name each of the device's queues once, and 'queues' their number", device)


def _iotune_errors(dom: DomainDef, disk: Any) -> Errors:
    tune = disk.iotune
    if tune is None:
        return
    limits = tune.limits()
    if tune.group_name is not None and not limits:
        yield _unsupported("group_name of <iotune> needs a limit", tune)
    if any(value > _IOTUNE_MAX for name, value in limits.items() if not name.endswith("_length")):
        yield _unsupported(f"A limit of <iotune> is above {_IOTUNE_MAX}", tune, VIR_ERR_ARGUMENT_UNSUPPORTED)
    others = [d.iotune for d in dom.disks if d is not disk and d.iotune is not None]
    same = [other for other in others if tune.group_name is not None and other.group_name == tune.group_name]
    if any(other.limits() != limits for other in same):
        yield _unsupported(f"Disks of the group '{tune.group_name}' have different limits", tune)


def _transient_errors(disk: Any) -> Errors:
    if not disk.transient:
        return
    if disk.transient_share and disk.bus not in ("virtio", "usb", "scsi"):
        yield _unsupported(f"A transient disk on bus {disk.bus} cannot share its image", disk)
    if disk.readonly or disk.device != "disk":
        yield _unsupported("Only a writable disk can be transient", disk)
    if disk.type != "file":
        yield _unsupported(f"A disk of type {disk.type} cannot be transient", disk)
