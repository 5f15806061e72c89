# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The order in which the guest's firmware tries to boot from devices.

Mirrors: qemuProcessPrepareDeviceBootorder (src/qemu/qemu_process.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef


def boot_order(dom: DomainDef) -> dict[int, int]:
    """
    Return boot indices by ``id()`` of a device's info.

    Either a device has its own index in <boot>, or <os> lists kinds of devices: the first device of each kind counts.

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
    """Return the first interface; if it is a host device, the first such host device that is assigned."""
    first = next(iter(dom.interfaces), None)
    if first is None or first.type != "hostdev":
        return first
    hostdevs = (net.hostdev for net in dom.interfaces if net.hostdev is not None)
    return next((hostdev for hostdev in hostdevs if hostdev.is_assigned), None)
