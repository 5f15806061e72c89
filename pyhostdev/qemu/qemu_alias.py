# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The alias of each device: its id in QEMU.

An alias chosen by the user is kept; the others are numbered from 0 per kind of device. QEMU does not get a host device
with ``assigned='no'``, so it has no alias and uses up no number.

Mirrors: src/qemu/qemu_alias.c
"""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.bus_address_conf import DIMMAddress, DriveAddress
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError
from pyhostdev.qemu.qemu_domain import is_i440fx, is_q35

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pyhostdev.conf.domain_conf import DomainDef

_DISK_PREFIXES = {"fdc": "fdc", "ide": "ide", "sata": "sata", "scsi": "scsi", "nvme": "nvme"}
_LEGACY_SCSI = ("lsilogic",)

_NUMBERED = (
    ("filesystems", "fs"),
    ("sounds", "sound"),
    ("redirdevs", "redir"),
    ("videos", "video"),
    ("inputs", "input"),
    ("parallels", "parallel"),
    ("serials", "serial"),
    ("channels", "channel"),
    ("consoles", "console"),
    ("hubs", "hub"),
    ("shmems", "shmem"),
    ("smartcards", "smartcard"),
    ("watchdogs", "watchdog"),
    ("rngs", "rng"),
    ("tpms", "tpm"),
    ("cryptos", "crypto"),
    ("panics", "panic"),
    ("iommus", "iommu"),
)
_SINGLE = (("memballoon", "balloon0"), ("vsock", "vsock0"), ("pstore", "pstore0"))


def assign_aliases(dom: DomainDef) -> None:
    """
    Give an alias to every device that has none yet.

    Mirrors: qemuAssignDeviceAliases (src/qemu/qemu_alias.c)
    """
    for disk in dom.disks:
        _name(disk, disk_alias(dom, disk))
    _name_interfaces_and_hostdevs(dom)
    for controller in dom.controllers:
        _name(controller, controller_alias(dom, controller))
    for field, prefix in _NUMBERED:
        for number, device in enumerate(getattr(dom, field)):
            _name(device, f"{prefix}{number}")
    for field, alias in _SINGLE:
        device = getattr(dom, field)
        if device is not None:
            _name(device, alias)
    _name_memory(dom)
    _share_serial_console(dom)


def _name(device: Any, alias: str) -> None:
    if device.info.alias is None:
        device.info.alias = alias


def next_number(devices: Sequence[Any], prefix: str) -> int:
    """Return one more than the highest number that follows the prefix in the aliases of these devices."""
    pattern = re.compile(re.escape(prefix) + r"([0-9]+)", re.ASCII)
    matches = (pattern.match(device.info.alias or "") for device in devices)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def hostdev_alias(dom: DomainDef, spent: Collection[str] = ()) -> str:
    """
    Return the next alias of a host device; an interface of type hostdev uses up a number, too.

    Args:
        spent: aliases that are not used again.

    Mirrors: qemuAssignDeviceHostdevAlias (src/qemu/qemu_alias.c)
    """
    first = next_number([*dom.all_hostdevs(), *dom.interfaces], "hostdev")
    return next(alias for number in count(first) if (alias := f"hostdev{number}") not in spent)


def _name_interfaces_and_hostdevs(dom: DomainDef) -> None:
    """Name interfaces before host devices: an interface of type hostdev gets the lower number."""
    for net in dom.interfaces:
        if net.info.alias is None:
            is_hostdev = net.type == "hostdev"
            net.info.alias = hostdev_alias(dom) if is_hostdev else f"net{next_number(dom.interfaces, 'net')}"
    number = next_number([*dom.all_hostdevs(), *dom.interfaces], "hostdev")
    for hostdev in dom.all_hostdevs():
        if hostdev.info.alias is None and hostdev.assigned is not False:
            hostdev.info.alias = f"hostdev{number}"
            number += 1


def _name_memory(dom: DomainDef) -> None:
    prefixes = {"virtio-mem": "virtiomem", "virtio-pmem": "virtiopmem"}
    for number, module in enumerate(dom.memories):
        prefix = prefixes.get(module.model, module.model)
        address = module.info.address
        slot = address.slot if isinstance(address, DIMMAddress) else None
        _name(module, f"{prefix}{number if slot is None else slot}")


def _share_serial_console(dom: DomainDef) -> None:
    """Give the first console the alias of the first serial port if both are the same port."""
    if dom.consoles and dom.serials and dom.consoles[0].target_type == "serial":
        dom.consoles[0].info.alias = dom.serials[0].info.alias


def disk_index(target: str) -> int:
    """
    Return the index in the name of a disk's target: vda is 0, vdz is 25, vdaa is 26.

    Raises:
        ConfigError: the name is not a known prefix and letters.

    Mirrors: virDiskNameToIndex (src/util/virutil.c)
    """
    match = re.fullmatch(r"(?:fd|hd|vd|sd|xvd|ubd)([a-z]{1,6})[0-9]*", target, re.ASCII)
    if match is None:
        text = f"Disk target '{target}' is not a name such as 'vda' or 'sdb'"
        raise ConfigError(text, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    number = 0
    for letter in match[1]:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def disk_alias(dom: DomainDef, disk: Any) -> str:
    """
    Return the alias of a disk: from its drive address, or from its target.

    Mirrors: qemuAssignDeviceDiskAlias (src/qemu/qemu_alias.c)
    """
    address = disk.info.address
    prefix = _DISK_PREFIXES.get(disk.bus)
    if prefix is None or not isinstance(address, DriveAddress):
        return f"{disk.bus}-disk{disk_index(disk.target)}"
    if disk.bus == "scsi" and scsi_model(dom, address.controller) not in _LEGACY_SCSI:
        return f"scsi{address.controller}-{address.bus}-{address.target}-{address.unit}"
    return f"{prefix}{address.controller}-{address.bus}-{address.unit}"


def scsi_model(dom: DomainDef, index: int) -> str | None:
    """Return the model of a SCSI controller, None without a model or a controller."""
    return next((c.model for c in dom.controllers if c.type == "scsi" and c.index == index), None)


def controller_alias(dom: DomainDef, controller: Any) -> str:
    """
    Return the alias of a controller; the ids of the chipset's controllers are fixed in QEMU.

    Mirrors: qemuAssignDeviceControllerAlias (src/qemu/qemu_alias.c)
    """
    if controller.type == "pci":
        return f"pcie.{controller.index}" if controller.model == "pcie-root" else f"pci.{controller.index}"
    if is_builtin_ide(dom, controller):
        return "ide"
    if controller.type == "usb" and controller.index == 0:
        return "usb"
    return f"{controller.type}{controller.index}"


def is_builtin_ide(dom: DomainDef, controller: Any) -> bool:
    """True for the disk controller that is part of the chipset and needs no ``-device``."""
    if controller.index != 0:
        return False
    return (controller.type == "ide" and is_i440fx(dom)) or (controller.type == "sata" and is_q35(dom))
