# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules for disks that all hypervisors share.

Mirrors: virDomainDiskDefValidate and its parts (src/conf/domain_validate.c)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_NO_SOURCE,
    VIR_ERR_NO_TARGET,
    VIR_ERR_OPERATION_UNSUPPORTED,
    ConfigError,
    ConfigUnsupportedError,
    XMLError,
)
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.disk_conf import DomainDiskDef, IOTuneDef
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.storage_source_conf import StorageSource

    Errors = Iterator[ConfigError]

# RFC 6265 4.1.1, a token
_COOKIE_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~")
# RFC 6265 4.1.1, cookie-octet: the printable characters except these five
_COOKIE_VALUE = frozenset(map(chr, range(0x21, 0x7F))).difference('",;\\')
_VENDOR_MAX = 8  # SPC-4 6.4.2, INQUIRY: characters of vendor and product
_PRODUCT_MAX = 16
_DRIVE_BUSES = ("ide", "scsi", "sata", "fdc", "nvme")
_VIRTIO_DISK_ADDRESSES = ("pci", "ccw", "virtio-s390", "virtio-mmio")
_LOCAL_TYPES = ("file", "block", "dir", "vhostuser")
_NAMED_PROTOCOLS_EXCEPT = ("nbd",)
_POOLED_PROTOCOLS = ("gluster", "rbd")  # their names are POOL/IMAGE
_VHOSTUSER_WORDS = (
    *("cache", "error_policy", "rerror_policy", "io", "ioeventfd", "copy_on_read", "discard", "iothread"),
    *("detect_zeroes", "metadata_cache", "iotune", "encryption", "readonly", "shareable", "transient", "serial"),
    *("wwn", "vendor", "product", "auth", "cyls", "trans", "logical_block_size", "physical_block_size"),
)


def disk_errors(dom: DomainFields, device: DomainDiskDef) -> Errors:
    """Yield the errors of one disk."""
    if device.target is None:
        yield XMLError("A disk has no target", line=device.line, libvirt_code=VIR_ERR_NO_TARGET)
        return
    yield from _source_errors(device)
    yield from _bus_errors(device)
    yield from _lun_errors(device)
    yield from _kind_errors(device)
    yield from _name_errors(device)
    yield from _iotune_errors(device.iotune)
    yield from _throttle_errors(dom, device)
    if device.device == "disk" and device.is_empty:
        name = shown(str(device.target))
        yield XMLError(f"Disk '{name}' has no source", line=device.line, libvirt_code=VIR_ERR_NO_SOURCE)


def _internal(message: str, line: int | None) -> ConfigError:
    """Return an error that libvirt reports as internal."""
    return ConfigUnsupportedError(message, line=line, libvirt_code=VIR_ERR_INTERNAL_ERROR)


def _source_errors(device: DomainDiskDef) -> Errors:
    """Mirrors: virDomainDiskSourceNetworkParse, virDomainDiskVhostUserValidate"""
    source, line = device.source, device.line
    if source is None:
        return
    if device.type == "network":
        yield from _network_errors(source, line)
    for kind, image in device.images():
        if kind == "nvme":
            yield from _nvme_errors(image)
    if device.type == "vhostuser":
        yield from _vhostuser_errors(device)
    if device.type == "vhostvdpa" and source.dev is None:
        yield XMLError("A vhostvdpa disk's <source> lacks 'dev'", line=line)
    for _, image in device.images():
        yield from _cookie_errors(image)
    yield from _startup_errors(device, source.startup_policy)


def _cookie_errors(source: StorageSource) -> Errors:
    """Mirrors: virStorageSourceNetCookiesValidate (src/conf/storage_source_conf.c)"""
    for cookie in source.cookies:
        value = cookie.value or ""
        if not cookie.name or not _COOKIE_NAME.issuperset(cookie.name):
            yield XMLError("The name of a <cookie> is empty or has invalid characters", line=cookie.line)
        if not value or not _COOKIE_VALUE.issuperset(re.sub('^"(.*)"$', r"\1", value)):
            yield XMLError("The value of a <cookie> is empty or has invalid characters", line=cookie.line)
    if len({cookie.name for cookie in source.cookies}) < len(source.cookies):
        yield XMLError("Two cookies of a disk have the same name", line=source.line)


def _network_errors(source: StorageSource, line: int | None) -> Errors:
    if source.protocol is None:
        yield XMLError("A network disk's <source> lacks 'protocol'", line=line)
    elif source.name is None and source.protocol not in _NAMED_PROTOCOLS_EXCEPT:
        yield XMLError(f"A disk of protocol {source.protocol} lacks the name of its image", line=line)
    elif source.protocol in _POOLED_PROTOCOLS and "/" not in str(source.name)[1:]:
        yield XMLError(f"The name of a disk of protocol {source.protocol} needs a pool and an image", line=line)


def _startup_errors(device: DomainDiskDef, policy: str | None) -> Errors:
    line = device.line
    if policy is not None and device.type not in (*_LOCAL_TYPES, "volume"):
        yield XMLError(f"A disk of type {device.type} cannot have a startupPolicy", line=line)
    elif policy == "requisite" and device.device not in ("cdrom", "floppy"):
        yield XMLError("Only cdrom and floppy can have startupPolicy='requisite'", line=line)


def _nvme_errors(source: StorageSource) -> Errors:
    """Mirrors: virDomainDiskSourceNVMeParse"""
    line = source.line
    if source.type != "pci":
        yield XMLError("The <source> of an NVMe disk must have type='pci'", line=line)
    elif source.namespace is None:
        yield XMLError("The <source> of an NVMe disk lacks 'namespace'", line=line)
    elif source.address is None:
        yield XMLError("The <source> of an NVMe disk lacks the <address> of its controller", line=line)
    elif source.namespace == 0:
        yield ConfigUnsupportedError("The namespace of an NVMe disk must be at least 1", line=line)


def _vhostuser_errors(device: DomainDiskDef) -> Errors:
    source, line = device.source, device.line
    assert source is not None
    if source.path is None or source.type is None:
        yield XMLError("A vhostuser disk's <source> lacks 'type' or 'path'", line=line)
    elif source.type != "unix":
        yield XMLError("The <source> of a vhostuser disk must have type='unix'", line=line)
    present = [name for name in _VHOSTUSER_WORDS if getattr(device, name) not in (None, False, "default")]
    if device.bus not in (None, "virtio"):
        yield ConfigUnsupportedError("A vhostuser disk must be on bus virtio", line=line)
    if device.snapshot not in (None, "no"):
        present.append("snapshot")
    if present:
        yield ConfigUnsupportedError(f"A vhostuser disk cannot have {present[0].replace('_', ' ')}", line=line)


def _bus_errors(device: DomainDiskDef) -> Errors:
    line, bus, kind = device.line, device.bus, device.info.address and device.info.address.kind
    is_wrong = (kind is not None and kind != "drive" and bus in _DRIVE_BUSES) or (
        kind is not None and kind not in _VIRTIO_DISK_ADDRESSES and bus == "virtio"
    )
    if is_wrong:
        yield ConfigUnsupportedError(f"A disk on bus {bus} cannot have an address of type {kind}", line=line)
    if bus not in (None, "virtio"):
        for name in ("queues", "event_idx", "ioeventfd"):
            if getattr(device, name) is not None:
                yield ConfigUnsupportedError(f"Only a virtio disk can have {name}", line=line)
        for name in ("iommu", "ats", "packed", "page_per_vq"):
            if getattr(device.virtio, name, None) is not None:
                yield ConfigUnsupportedError(f"Only a virtio disk can have {name}", line=line)
    if device.rerror_policy == "enospace":
        yield ConfigUnsupportedError("Only the error_policy of a disk can be enospace", line=line)
    tune = device.iotune
    if tune is not None and tune.group_name is not None and not tune.limits():
        yield ConfigUnsupportedError("A group of <iotune> needs limits", line=line)
    if device.model is not None and bus is not None and device.model.startswith("virtio") != (bus == "virtio"):
        yield ConfigUnsupportedError(f"A disk on bus {bus} cannot have model {device.model}", line=line)


def _product_errors(device: DomainDiskDef) -> Errors:
    for name, most in (("vendor", _VENDOR_MAX), ("product", _PRODUCT_MAX)):
        text = getattr(device, name) or ""
        if not text.isprintable():
            yield XMLError(f"The {name} of a disk is not printable", line=device.line)
        elif len(text) > most:
            yield ConfigUnsupportedError("Vendor or product of a disk is too long", line=device.line)


def _kind_errors(device: DomainDiskDef) -> Errors:
    line, kind = device.line, device.device
    if kind != "lun" and (device.rawio is not None or device.sgio is not None):
        yield ConfigUnsupportedError("Only a lun can have rawio or sgio", line=line)
    if device.sgio == "unfiltered":
        yield ConfigUnsupportedError("sgio='unfiltered' is no longer supported", line=line)
    if kind != "lun" and device.source is not None and device.source.reservations is not None:
        yield ConfigUnsupportedError("Only a lun can have <reservations>", line=line)
    if device.tray is not None and kind not in ("floppy", "cdrom"):
        yield ConfigUnsupportedError("Only cdrom and floppy can have a tray", line=line)
    yield from _product_errors(device)
    if device.bus is not None and (kind == "floppy") != (device.bus == "fdc"):
        yield _internal(f"A {kind} cannot be on bus {device.bus}", line)


def _lun_errors(device: DomainDiskDef) -> Errors:
    """Mirrors: virDomainDiskDefSourceLUNValidate"""
    if device.device != "lun":
        return
    source, line = device.source, device.line
    if device.type == "network":
        if source is not None and source.protocol != "iscsi":
            yield ConfigUnsupportedError(f"A lun cannot be of protocol {source.protocol}", line=line)
    elif device.type not in ("block", "volume"):
        yield ConfigUnsupportedError("A lun must be a block device", line=line)
    if device.driver_type not in (None, "raw", "none"):
        yield ConfigUnsupportedError("A lun must have format raw", line=line)
    if device.encryption is not None or (source is not None and (source.slices or source.encryption is not None)):
        yield ConfigUnsupportedError("A lun cannot have slices or encryption", line=line)


def _name_errors(device: DomainDiskDef) -> Errors:
    line, kind, name = device.line, device.device, device.target or ""
    prefixes = ("nvme",) if device.bus == "nvme" else ("hd", "sd", "vd", "xvd", "ubd")
    if kind in ("disk", "lun") and not name.startswith(prefixes):
        yield _internal(f"Invalid disk name '{shown(name)}'", line)
    if kind == "floppy" and not name.startswith("fd"):
        yield _internal(f"Invalid floppy name '{shown(name)}'", line)
    if device.wwn is not None and not re.fullmatch(r"(?:0x)?[0-9a-fA-F]{16}", device.wwn, re.ASCII):
        yield _internal(f"'{shown(device.wwn)}' is not a WWN of 16 hexadecimal digits", line)


def _throttle_errors(dom: DomainFields, device: DomainDiskDef) -> Errors:
    """Mirrors: virDomainDiskDefThrottleFilterParse, virDomainDiskDefValidate"""
    filters, groups = device.throttle_filters, {group.group_name for group in dom.throttle_groups}
    if not filters:
        return
    text = None
    if device.device == "cdrom":
        text = "A cdrom cannot have <throttlefilters>"
    elif device.iotune is not None:
        text = "A disk can have either <iotune> or <throttlefilters>"
    if text is not None:
        yield ConfigUnsupportedError(text, line=device.line, libvirt_code=VIR_ERR_OPERATION_UNSUPPORTED)
    for row in filters:
        if row.group not in groups:
            yield XMLError(f"The throttle group '{shown(row.group)}' is not defined", line=row.line)
    if len({row.group for row in filters}) != len(filters):
        yield XMLError("A disk can have only one filter of a throttle group", line=device.line)


def throttle_group_errors(dom: DomainFields) -> Errors:
    """
    Yield the errors of the groups of limits.

    Mirrors: virDomainDefThrottleGroupsParse (src/conf/domain_conf.c)
    """
    names = [group.group_name for group in dom.throttle_groups]
    for group in dom.throttle_groups:
        yield from _iotune_errors(group)
        if group.group_name is None:
            yield XMLError("A <throttlegroup> lacks <group_name>", line=group.line)
        elif names.count(group.group_name) > 1:
            yield XMLError(f"Two throttle groups have the name '{shown(group.group_name)}'", line=group.line)


def _iotune_errors(tune: IOTuneDef | None) -> Errors:
    if tune is None:
        return
    for what in ("bytes_sec", "iops_sec", "bytes_sec_max", "iops_sec_max"):
        total = getattr(tune, f"total_{what}")
        if total and (getattr(tune, f"read_{what}") or getattr(tune, f"write_{what}")):
            text = f"<iotune> cannot have both a total {what.replace('_', ' ')} and one for reads or writes"
            yield XMLError(text, line=tune.line)
