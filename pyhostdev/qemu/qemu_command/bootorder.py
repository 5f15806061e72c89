# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The order in which a guest tries its devices when it boots.

Mirrors: qemuProcessPrepareDeviceBootorder (src/qemu/qemu_process.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef


def boot_order(dom: DomainDef) -> dict[int, int]:
    """
    Return the boot indices by the identity of a device's info.

    A device says its own, or <os> names kinds of devices and the first of each kind boots.

    Mirrors: qemuProcessPrepareDeviceBootorder (src/qemu/qemu_process.c)
    """
    found = {id(info): info.boot_order for _, info in dom.device_infos() if info.boot_order}
    for order, kind in enumerate(dom.os.boot_devs, 1):
        device = _first_to_boot(dom, kind)
        if device is not None:
            found.setdefault(id(device.info), order)
    return found


def _first_to_boot(dom: DomainDef, kind: str) -> Any:
    """Return the first device of a kind that <os> names."""
    if kind == "network":
        return _first_network(dom)
    kinds = {"hd": ("disk", "lun"), "cdrom": ("cdrom",), "fd": ("floppy",)}[kind]
    return next((disk for disk in dom.disks if disk.device in kinds), None)


def _first_network(dom: DomainDef) -> Any:
    """Return the first interface; of those that are host devices, the first that the guest gets."""
    first = next(iter(dom.interfaces), None)
    if first is None or first.type != "hostdev":
        return first
    hostdevs = (net.hostdev for net in dom.interfaces if net.hostdev is not None)
    return next((hostdev for hostdev in hostdevs if hostdev.is_assigned), None)
