# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Controllers on the command line.

Mirrors: qemuBuildControllersCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.os_conf import unit_factor
from pyhostdev.qemu.qemu_alias import is_builtin_ide
from pyhostdev.qemu.qemu_command.builder import on_off, unsupported, virtio_driver, virtio_options
from pyhostdev.qemu.qemu_command.cpu import thread_mapping
from pyhostdev.qemu.qemu_domain import is_i440fx, is_q35

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

# QEMU must create a controller before the devices on its bus
_BEHIND_HUBS = ("ccid",)
_TYPE_ORDER = ("pci", "usb", "scsi", "ide", "sata", "virtio-serial", "nvme")

_USB_DRIVERS = {
    "piix3-uhci": "piix3-usb-uhci",
    "piix4-uhci": "piix4-usb-uhci",
    "ehci": "usb-ehci",
    "ich9-ehci1": "ich9-usb-ehci1",
    "ich9-uhci1": "ich9-usb-uhci1",
    "ich9-uhci2": "ich9-usb-uhci2",
    "ich9-uhci3": "ich9-usb-uhci3",
    "vt82c686b-uhci": "vt82c686b-usb-uhci",
    "pci-ohci": "pci-ohci",
    "nec-xhci": "nec-usb-xhci",
    "qemu-xhci": "qemu-xhci",
}
_SCSI_DRIVERS = {
    "lsilogic": "lsi",
    "lsisas1068": "mptsas1068",
    "lsisas1078": "megasas",
    "vmpvscsi": "pvscsi",
    "ibmvscsi": "spapr-vscsi",
    "am53c974": "am53c974",
    "dc390": "dc390",
}


def build_global_controllers(build: CommandBuilder) -> None:
    """Set the properties of host bridges, which are part of the machine."""
    for controller in build.dom.controllers:
        with build.collecting():
            if controller.pcihole64:
                kib = controller.pcihole64 * unit_factor(controller.pcihole64_unit) // 1024
                build.add("-global", f"{_host_bridge(build, controller)}.pci-hole64-size={kib}K")
            if controller.is_pci_root and controller.hotplug is not None:
                build.add("-global", f"PIIX4_PM.acpi-root-pci-hotplug={on_off(controller.hotplug)}")


def _host_bridge(build: CommandBuilder, controller: Any) -> str:
    if controller.is_pci_root and is_i440fx(build.dom):
        return "i440FX-pcihost"
    if controller.is_pci_root and is_q35(build.dom):
        return "q35-pcihost"
    raise unsupported("<pcihole64> of this controller", controller)


def build_controllers(build: CommandBuilder) -> None:
    """Add all controllers but card readers, kind by kind."""
    _build_kinds(build, _TYPE_ORDER)
    known = (*_TYPE_ORDER, *_BEHIND_HUBS, "fdc", "isa")
    for controller in [c for c in build.dom.controllers if c.type not in known]:
        with build.collecting():
            raise unsupported(f"A controller of type {controller.type}", controller)


def build_card_readers(build: CommandBuilder) -> None:
    """Add the card readers, which can be behind a USB hub."""
    _build_kinds(build, _BEHIND_HUBS)


def _build_kinds(build: CommandBuilder, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        for controller in [c for c in build.dom.controllers if c.type == kind]:
            with build.collecting():
                _build_controller(build, controller)


def _build_controller(build: CommandBuilder, controller: Any) -> None:
    if is_builtin_ide(build.dom, controller) or (controller.type == "usb" and controller.model == "none"):
        return
    if controller.type == "ide":
        raise unsupported("An IDE controller besides the chipset's", controller)
    properties = _RULES[controller.type](build, controller)
    if properties is not None:
        build.add_device({**properties, **build.address(controller)})


def _pci(_build: CommandBuilder, controller: Any) -> Properties | None:
    if controller.model in _PCI_RULES:
        return {"driver": controller.model_name, **_PCI_RULES[controller.model](controller)}
    if controller.model == "pci-root" and controller.target_index:
        return {
            "driver": controller.model_name,
            "index": controller.target_index,
            "id": controller.info.alias,
            "numa_node": controller.numa_node,
        }
    return None  # the root bus is part of the machine


def _plain_bridge(controller: Any) -> Properties:
    return {"id": controller.info.alias}


def _bridge(controller: Any) -> Properties:
    reserve = _reserved_bytes(controller)
    return {"chassis_nr": controller.chassis_nr, "mem-reserve": reserve, "id": controller.info.alias}


def _reserved_bytes(controller: Any) -> int | None:
    """Return the bytes of memory that firmware reserves for devices plugged in later; None without a number."""
    return controller.mem_reserve * 1024 if controller.mem_reserve else None


def _expander(controller: Any) -> Properties:
    return {
        "bus_nr": controller.bus_nr,
        "id": controller.info.alias,
        "numa_node": controller.numa_node,
    }


def _port(controller: Any) -> Properties:
    return {
        "port": controller.port,
        "chassis": controller.chassis,
        "id": controller.info.alias,
        "hotplug": controller.hotplug,
        "mem-reserve": _reserved_bytes(controller),
    }


_PCI_RULES: dict[str, Callable[[Any], Properties]] = {
    "pci-bridge": _bridge,
    "pci-expander-bus": _expander,
    "pcie-expander-bus": _expander,
    "dmi-to-pci-bridge": _plain_bridge,
    "pcie-to-pci-bridge": _plain_bridge,
    "pcie-switch-upstream-port": _plain_bridge,
    "pcie-root-port": _port,
    "pcie-switch-downstream-port": _port,
}


def _usb(build: CommandBuilder, controller: Any) -> Properties:
    if controller.model not in _USB_DRIVERS:
        raise unsupported(f"A USB controller of model {controller.model}", controller)
    properties: Properties = {"driver": _USB_DRIVERS[controller.model]}
    if controller.ports is not None:
        if controller.model not in ("nec-xhci", "qemu-xhci"):
            raise unsupported("A number of ports for this USB controller", controller)
        properties |= {"p2": controller.ports, "p3": controller.ports}
    if controller.info.master_startport is None:
        return {**properties, "id": controller.info.alias}
    master = build.controller("usb", controller.index).info.alias
    return {**properties, "masterbus": f"{master}.0", "firstport": controller.info.master_startport}


def _scsi(_build: CommandBuilder, controller: Any) -> Properties:
    model = controller.model
    if model in ("virtio-scsi", "virtio-transitional", "virtio-non-transitional"):
        return _virtio_scsi(controller)
    if model not in _SCSI_DRIVERS:
        raise unsupported(f"A SCSI controller of model {model}", controller)
    return {"driver": _SCSI_DRIVERS[model], "id": controller.info.alias}


def _virtio_scsi(controller: Any) -> Properties:
    model, thread = controller.model, controller.iothread
    return {
        "driver": virtio_driver("scsi", None if model == "virtio-scsi" else model),
        **virtio_options(controller),
        "iothread": None if thread is None else f"iothread{thread}",
        "id": controller.info.alias,
        "ioeventfd": controller.ioeventfd,
        "num_queues": controller.queues,
        "cmd_per_lun": controller.cmd_per_lun,
        "max_sectors": controller.max_sectors,
        "iothread-vq-mapping": thread_mapping(controller),
    }


def _sata(_build: CommandBuilder, controller: Any) -> Properties:
    return {"driver": "ahci", "id": controller.info.alias}


def _virtio_serial(_build: CommandBuilder, controller: Any) -> Properties:
    return {
        "driver": virtio_driver("serial", controller.model),
        **virtio_options(controller),
        "id": controller.info.alias,
        "max_ports": controller.ports,
        "vectors": controller.vectors,
    }


def _ccid(_build: CommandBuilder, controller: Any) -> Properties:
    return {"driver": "usb-ccid", "id": controller.info.alias}


def _nvme(_build: CommandBuilder, controller: Any) -> Properties:
    return {"driver": "nvme", "id": controller.info.alias, "serial": controller.serial}


_RULES: dict[str, Callable[[CommandBuilder, Any], Properties | None]] = {
    "pci": _pci,
    "usb": _usb,
    "scsi": _scsi,
    "sata": _sata,
    "virtio-serial": _virtio_serial,
    "ccid": _ccid,
    "nvme": _nvme,
}
