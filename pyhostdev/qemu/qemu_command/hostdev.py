# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Host devices on the command line.

Mirrors: qemuBuildHostdevCommandLine, qemuBuildPCIHostdevDevProps (src/qemu/qemu_command.c)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.address_conf import PCIGuestAddress
from pyhostdev.conf.bus_address_conf import DriveAddress
from pyhostdev.conf.xml.xmlcodec import nodes_of
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError
from pyhostdev.qemu.qemu_command.block import iscsi_properties
from pyhostdev.qemu.qemu_command.builder import unsupported
from pyhostdev.qemu.qemu_command.disk import scsi_place
from pyhostdev.qemu.qemu_command.namespace import USB_HOSTDEVICE
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties


IOMMUFD = "iommufd0"  # one for all functions of a guest: the functions of one group must share it


def build_hostdevs(build: CommandBuilder) -> None:
    """
    Add the assigned host devices, after the iommufd that they share.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of host device, or a part of it.
    """
    with build.collecting():
        _build_iommufd(build)
    for hostdev in build.dom.guest_visible_hostdevs():
        with build.collecting():
            kind = hostdev.type if hostdev.mode == "subsystem" else hostdev.mode
            if kind not in _RULES:
                raise unsupported(f"A <hostdev> of type {kind}", hostdev)
            build.add_device(_RULES[kind](build, hostdev))
            _build_generic_initiators(build, hostdev)


def _build_iommufd(build: CommandBuilder) -> None:
    """
    Add the object through which QEMU reaches ``/dev/iommu``.

    Mirrors: qemuBuildIOMMUFDCommandLine (src/qemu/qemu_command.c)
    """
    if build.dom.needs_iommufd():
        build.add_object("iommufd", IOMMUFD, fd=build.vfio_descriptor(None))


def hotplug_properties(build: CommandBuilder, hostdev: Any) -> Properties:
    """
    Return the arguments of ``device_add`` for a PCI function, each with the JSON type that QEMU requires.

    Raises:
        ConfigUnsupportedError: the emulator lacks a property, or the device cannot be hot-plugged.
    """
    if hostdev.ramfb or hostdev.info.acpi_nodeset is not None:
        what = "<acpi nodeset=>" if hostdev.info.acpi_nodeset is not None else "ramfb"
        raise unsupported(f"{what} of a <hostdev> for a running guest", hostdev)
    build.add_device(_pci(build, hostdev))
    properties: Properties = json.loads(build.args[-1])
    return properties


def _build_generic_initiators(build: CommandBuilder, hostdev: Any) -> None:
    """Add an ACPI generic initiator for each NUMA node of the device."""
    for node in nodes_of(hostdev.info.acpi_nodeset or ""):
        number = sum('"acpi-generic-initiator"' in word for word in build.args)
        place = {"pci-dev": hostdev.info.alias, "node": node}
        build.add_object("acpi-generic-initiator", f"gi{number}", **place)


def _scsi(build: CommandBuilder, hostdev: Any) -> Properties:
    """
    Add the block node of an iSCSI unit and return the properties of the device.

    Raises:
        ConfigUnsupportedError: the unit belongs to a host adapter: its device node is not known here.

    Mirrors: qemuBuildSCSIHostdevDevProps
    """
    source = hostdev.source
    if source.protocol != "iscsi" or source.auth is not None or not isinstance(hostdev.info.address, DriveAddress):
        raise unsupported("A SCSI <hostdev> of a host adapter, or with <auth>,", hostdev)
    return {
        "driver": "scsi-generic",
        "drive": _build_iscsi(build, hostdev),
        "id": hostdev.info.alias,
        "bootindex": build.bootindex(hostdev),
        **scsi_place(build, hostdev.info.address),
    }


def _build_iscsi(build: CommandBuilder, hostdev: Any) -> str:
    """Add the block node of an iSCSI unit; return its name."""
    source = hostdev.source
    storage = iscsi_properties(source.host, source.port, source.name, source.initiator)
    build.block_nodes += 1
    node = f"libvirt-{build.block_nodes}-backend"
    build.add_json("-blockdev", {**storage, "node-name": node, "read-only": bool(hostdev.readonly)})
    return node


def _scsi_host(build: CommandBuilder, hostdev: Any) -> Properties:
    """
    Return the properties of a vhost adapter; QEMU opens its node itself.

    Mirrors: qemuBuildSCSIVHostHostdevDevProps
    """
    driver = "vhost-scsi-pci" + (hostdev.model or "virtio").removeprefix("virtio")
    wwpn = hostdev.source.wwpn
    bootindex = build.bootindex(hostdev)
    return {"driver": driver, "wwpn": wwpn, "bootindex": bootindex, "id": hostdev.info.alias, **build.address(hostdev)}


def _driver(hostdev: Any) -> str:
    return "vfio-pci-nohotplug" if hostdev.ramfb else "vfio-pci"


def _pci(build: CommandBuilder, hostdev: Any) -> Properties:
    """
    Return the properties of a PCI function, in libvirt's order.

    Raises:
        ConfigUnsupportedError: the backend is not VFIO, or the function has no guest address.
    """
    if hostdev.driver_name not in (None, "vfio"):
        raise unsupported(f"<driver name='{hostdev.driver_name}'> of a <hostdev>", hostdev)
    if not isinstance(hostdev.info.address, PCIGuestAddress):
        raise unsupported("A PCI <hostdev> without a PCI guest address", hostdev)
    by_iommufd = build.dom.uses_iommufd(hostdev)
    return {
        "driver": _driver(hostdev),
        "host": None if by_iommufd else str(hostdev.pci_address),
        "id": hostdev.info.alias,
        "bootindex": build.bootindex(hostdev),
        "failover_pair_id": hostdev.teaming_persistent,
        "display": _display(hostdev),
        "ramfb": hostdev.ramfb or None,
        "iommufd": IOMMUFD if by_iommufd else None,
        "fd": build.vfio_descriptor(hostdev.pci_address) if by_iommufd else None,
        **build.address(hostdev),
        **build.rom(hostdev),
    }


def _display(hostdev: Any) -> str | None:
    return None if hostdev.display is None else "on" if hostdev.display else "off"


def _mdev(build: CommandBuilder, hostdev: Any) -> Properties:
    """
    Return the properties of a mediated device.

    Mirrors: qemuBuildHostdevMediatedDevProps
    """
    if hostdev.model != "vfio-pci":
        raise unsupported(f"A mediated device of model {hostdev.model}", hostdev)
    return {
        "driver": _driver(hostdev),
        "id": hostdev.info.alias,
        "sysfsdev": HostRoot("/").mdev_device(hostdev.source.uuid),
        "display": _display(hostdev),
        "ramfb": hostdev.ramfb or None,
        "bootindex": build.bootindex(hostdev),
        **build.address(hostdev),
    }


_USB_RESETS: dict[str | None, Properties] = {
    None: {},
    "off": {"guest-reset": False},
    "on": {"guest-reset": True, "guest-resets-all": True},
    "uninitialized": {"guest-reset": True, "guest-resets-all": False},
}


def _usb(build: CommandBuilder, hostdev: Any) -> Properties:
    """
    Return the properties of a USB device.

    Mirrors: qemuBuildUSBHostdevDevProps
    """
    source = hostdev.source
    if source is None:
        text = "A USB <hostdev> needs a <source> with an address, or with a vendor and a product"
        raise ConfigError(text, line=hostdev.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    return {
        "driver": "usb-host",
        **_usb_place(build, hostdev),
        "id": hostdev.info.alias,
        **_USB_RESETS[source.guest_reset],
        "bootindex": build.bootindex(hostdev),
        **build.address(hostdev),
    }


def _usb_place(build: CommandBuilder, hostdev: Any) -> Properties:
    """Return the node of a USB device; if absent, the ids that QEMU looks for, or nothing if it is optional."""
    source = hostdev.source
    if source.bus is None or source.device is None:
        is_wanted = source.startup_policy != "optional"
        return {"vendorid": source.vendor_id, "productid": source.product_id} if is_wanted else {}
    if USB_HOSTDEVICE in build.namespace.deleted_capabilities:
        return {"hostbus": source.bus, "hostaddr": source.device}
    opened = build.opened("usb", hostdev)
    if opened is not None:
        return {"hostdevice": build.add_fdset(opened, f"{hostdev.info.alias}-usb")}
    return {"hostdevice": f"/dev/bus/usb/{source.bus:03}/{source.device:03}"}


_RULES: dict[str, Callable[[CommandBuilder, Any], Properties]] = {
    "pci": _pci,
    "mdev": _mdev,
    "usb": _usb,
    "scsi": _scsi,
    "scsi_host": _scsi_host,
}
