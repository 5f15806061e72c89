# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The name of each device in QEMU.

A name chosen by the user is kept; the others count from 0 per kind of device. A host device with ``assigned='no'`` is
not given to QEMU: it has no name and uses up no number.

Mirrors: src/qemu/qemu_alias.c
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.device_conf import DriveAddress
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError
from pyhostdev.qemu.qemu_domain import is_i440fx, is_q35

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.conf.domain_conf import DomainDef

_DISK_PREFIXES = {"fdc": "fdc", "ide": "ide", "sata": "sata", "scsi": "scsi"}
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
    Name every device that has no name yet.

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
    """Return one more than the highest number that a device of these has behind prefix."""
    pattern = re.compile(re.escape(prefix) + r"([0-9]+)", re.ASCII)
    matches = (pattern.match(device.info.alias or "") for device in devices)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def hostdev_alias(dom: DomainDef) -> str:
    """
    Return the name of the next host device; interfaces that are host devices count as such.

    Mirrors: qemuAssignDeviceHostdevAlias (src/qemu/qemu_alias.c)
    """
    return f"hostdev{next_number([*dom.all_hostdevs(), *dom.interfaces], 'hostdev')}"


def _name_interfaces_and_hostdevs(dom: DomainDef) -> None:
    """Name interfaces before host devices: an interface that is one gets the lower number."""
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
        _name(module, f"{prefix}{number}")


def _share_serial_console(dom: DomainDef) -> None:
    """Give the first console the serial port's name where it is that serial port."""
    if dom.consoles and dom.serials and dom.consoles[0].target_type == "serial":
        dom.consoles[0].info.alias = dom.serials[0].info.alias


def disk_index(target: str) -> int:
    """
    Return the number of a disk's target: vda is 0, vdz 25, vdaa 26.

    Raises:
        ConfigError: the target has no number.

    Mirrors: virDiskNameToIndex (src/util/virutil.c)
    """
    match = re.fullmatch(r"(?:fd|hd|vd|sd|xvd|ubd)([a-z]{1,6})[0-9]*", target, re.ASCII)
    if match is None:
        raise ConfigError(f"Disk target '{target}' does not say which disk it is", libvirt_code=VIR_ERR_INTERNAL_ERROR)
    number = 0
    for letter in match[1]:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def disk_alias(dom: DomainDef, disk: Any) -> str:
    """
    Return the name of a disk: by its place on its controller, or by its target.

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
    """Return the model of a SCSI controller."""
    return next((c.model for c in dom.controllers if c.type == "scsi" and c.index == index), None)


def controller_alias(dom: DomainDef, controller: Any) -> str:
    """
    Return the name of a controller; QEMU has fixed ones for those of the chipset.

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
    """True for the disk controller that the chipset has, which no ``-device`` adds."""
    if controller.index != 0:
        return False
    return (controller.type == "ide" and is_i440fx(dom)) or (controller.type == "sata" and is_q35(dom))
