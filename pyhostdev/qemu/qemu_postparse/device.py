# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's defaults of single devices.

Mirrors: qemuDomainDeviceDefPostParse (src/qemu/qemu_domain.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigUnsupportedError, XMLError
from pyhostdev.qemu.qemu_domain import ARM, PPC64, X86, is_arm_virt, is_i440fx, is_pseries, is_q35
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.board_conf import DomainPanicDef, DomainPstoreDef, DomainTPMDef
    from pyhostdev.conf.chr_conf import DomainChrDef
    from pyhostdev.conf.controller_conf import DomainControllerDef
    from pyhostdev.conf.disk_conf import DomainDiskDef
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.graphics_conf import DomainSoundDef, DomainVideoDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.net_conf import DomainNetDef
    from pyhostdev.conf.small_device_conf import DomainShmemDef, DomainVsockDef
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities

QXL_VGAMEM_KIB = 16384
XHCI_PORTS_MAX = 15
VIRTIO_STREAMS = 2
_SERIAL_MODELS = {
    "isa-serial": "isa-serial",
    "usb-serial": "usb-serial",
    "pci-serial": "pci-serial",
    "spapr-vio-serial": "spapr-vty",
    "system-serial": "pl011",
    "sclp-serial": "sclpconsole",
    "isa-debug": "isa-debugcon",
}


def fill_device(dom: DomainDef, device: ElementDef, capabilities: QEMUCapabilities) -> None:
    """
    Fill in the defaults of one device.

    Raises:
        XMLError, ConfigUnsupportedError: the device is invalid, or QEMU does not support it.
    """
    fill = _FILLERS.get(device.tag)
    if fill is not None:
        fill(dom, device, capabilities)


def _fill_net(dom: DomainDef, device: DomainNetDef, capabilities: QEMUCapabilities) -> None:
    if device.model is not None or device.hostdev is not None:
        return
    if device.type in ("vdpa", "vhostuser") or is_arm_virt(dom):
        device.model = "virtio"
    elif dom.os.arch in ARM:
        device.model = "lan9118"
    else:
        models = {"rtl8139": "rtl8139", "e1000": "e1000", "virtio-net-pci": "virtio"}
        found = (model for name, model in models.items() if capabilities.has_device(name))
        device.model = next(found, "rtl8139")


def _fill_disk(dom: DomainDef, device: DomainDiskDef, capabilities: QEMUCapabilities) -> None:
    device.driver_name = device.driver_name or "qemu"
    if device.driver_type is None and device.type != "volume":
        device.driver_type = "raw"


def _fill_video(dom: DomainDef, device: DomainVideoDef, capabilities: QEMUCapabilities) -> None:
    if device.model_type == "default":
        device.model_type = _default_video(dom, capabilities)
    if device.model_type == "qxl" and not device.vgamem:
        device.vgamem = QXL_VGAMEM_KIB


def name_virtio_video(dom: DomainDef, video: DomainVideoDef) -> None:
    """Fill in QEMU's device of a virtio video card; the primary one on x86 has VGA."""
    if video.model_type != "virtio" or video.device is not None:
        return
    has_vga = bool(video.primary) and dom.os.arch in X86
    kind = "vhost-user" if video.driver_name == "vhostuser" else "virtio"
    suffix = "-gl" if kind == "virtio" and video.accel3d else ""
    video.device = f"{kind}-{'vga' if has_vga else 'gpu'}{suffix}"


def name_usb_disk(disk: DomainDiskDef) -> None:
    """Fill in QEMU's device of a USB disk; a CD is a SCSI drive behind a USB bridge."""
    if disk.bus == "usb" and disk.model is None:
        disk.model = "usb-bot" if disk.device == "cdrom" else "usb-storage"


def _default_video(dom: DomainDef, capabilities: QEMUCapabilities) -> str:
    if dom.os.arch in PPC64:
        return "vga"
    if is_arm_virt(dom):
        return "virtio"
    return "cirrus" if capabilities.has_device("cirrus-vga") else "vga"


def _fill_panic(dom: DomainDef, device: DomainPanicDef, capabilities: QEMUCapabilities) -> None:
    if device.model is None:
        device.model = "pseries" if is_pseries(dom) else "isa"


def _fill_controller(dom: DomainDef, device: DomainControllerDef, capabilities: QEMUCapabilities) -> None:
    if device.type == "scsi" and device.model in (None, "auto"):
        device.model = _default_scsi(dom, capabilities)
    elif device.type == "usb":
        _fill_usb(dom, device, capabilities)
    elif device.type == "pci":
        _check_pci(dom, device)


def _default_scsi(dom: DomainDef, capabilities: QEMUCapabilities) -> str:
    """Mirrors: qemuDomainDefaultSCSIControllerModel (src/qemu/qemu_domain.c)"""
    if is_pseries(dom):
        return "ibmvscsi"
    if is_arm_virt(dom) or not capabilities.has_device("lsi53c895a"):
        return "virtio-scsi"
    return "lsilogic"


def _fill_usb(dom: DomainDef, device: DomainControllerDef, capabilities: QEMUCapabilities) -> None:
    if device.model is None:
        device.model = _default_usb(dom, capabilities)
    if device.model == "none":
        device.info.address = device.info.alias = device.info.master_startport = None
    if device.model in ("qusb1", "qusb2"):
        raise ConfigUnsupportedError(f"QEMU has no USB controller '{device.model}'", line=device.line)
    if device.model in ("nec-xhci", "qemu-xhci") and (device.ports or 0) > XHCI_PORTS_MAX:
        raise ConfigUnsupportedError(
            f"A '{device.model}' controller can have at most {XHCI_PORTS_MAX} ports", line=device.line
        )


def _default_usb(dom: DomainDef, capabilities: QEMUCapabilities) -> str | None:
    """Return the default model of a USB controller; on x86 an old one that every guest supports."""
    if dom.os.arch in PPC64 or dom.os.arch == "aarch64":
        models = {"qemu-xhci": "qemu-xhci", "nec-usb-xhci": "nec-xhci", "pci-ohci": "pci-ohci"}
    else:
        models = {"piix3-usb-uhci": "piix3-uhci"}
    return next((model for name, model in models.items() if capabilities.has_device(name)), None)


def _check_pci(dom: DomainDef, device: DomainControllerDef) -> None:
    """
    Refuse PCI controllers that the machine cannot have.

    Mirrors: qemuDomainControllerDefPostParse (src/qemu/qemu_domain.c)
    """
    model = device.model
    if device.is_pci_root and device.index != 0 and not is_pseries(dom):
        raise XMLError("A PCI root must have index 0", line=device.line)
    if model == "pci-expander-bus" and not is_i440fx(dom):
        raise ConfigUnsupportedError("Only i440fx machines have a pci-expander-bus", line=device.line)
    if model == "pcie-expander-bus" and not (is_q35(dom) or is_arm_virt(dom)):
        raise ConfigUnsupportedError("Only q35 and ARM virt machines have a pcie-expander-bus", line=device.line)
    cells = len(dom.cpu.cells) if dom.cpu is not None else 0
    if device.numa_node is not None and device.numa_node >= cells:
        text = f"NUMA node {device.numa_node} of PCI controller {device.index} does not exist"
        raise XMLError(text, line=device.line)


def _fill_chr(dom: DomainDef, device: DomainChrDef, capabilities: QEMUCapabilities) -> None:
    if device.tag == "serial":
        _fill_serial(dom, device)
    if device.source.type == "unix":
        drop_generated_path(dom, device)


def _fill_serial(dom: DomainDef, device: DomainChrDef) -> None:
    if device.target_type in (None, "isa-serial"):
        if dom.os.arch in X86:
            device.target_type = "isa-serial"
        elif is_pseries(dom):
            device.target_type = "spapr-vio-serial"
        elif is_arm_virt(dom):
            device.target_type = "system-serial"
    if device.target_model is None and (device.target_type != "system-serial" or is_arm_virt(dom)):
        device.target_model = _SERIAL_MODELS.get(str(device.target_type))


def drop_generated_path(dom: DomainDef, device: DomainChrDef) -> None:
    """
    Remove a socket path that libvirt generated for an earlier run.

    Mirrors: qemuDomainChrDefDropDefaultPath (src/qemu/qemu_domain.c)
    """
    import re

    generated = r"/var/lib/libvirt/qemu/channel/(?:target/)?(?:[^/]+\.|domain-[^/]+/)" + re.escape(
        device.target_name or ""
    )
    for part in device.source.sources:
        if device.target_name and part.path is not None and re.fullmatch(generated, part.path):
            part.path = None
    device.source.sources = [
        part for part in device.source.sources if part.path is not None or part.reconnect_enabled is not None
    ]


def _fill_shmem(dom: DomainDef, device: DomainShmemDef, capabilities: QEMUCapabilities) -> None:
    device.model = device.model or "ivshmem"
    if device.model == "ivshmem-doorbell" and device.has_server:
        device.server_path = device.server_path or f"/var/lib/libvirt/shmem-{device.name}-sock"
        device.msi_ioeventfd = True if device.msi_ioeventfd is None else device.msi_ioeventfd
    if device.model != "ivshmem-doorbell" and device.size is None:
        device.size, device.size_unit = 4, "M"
    if device.model == "ivshmem":
        return
    is_doorbell = device.model == "ivshmem-doorbell"
    if is_doorbell != device.has_server:
        raise ConfigUnsupportedError(
            f"shmem model '{device.model}' {'needs' if is_doorbell else 'cannot have'} a server",
            line=device.line,
        )
    if is_doorbell and device.size is not None:
        raise ConfigUnsupportedError(f"shmem model '{device.model}' has no size", line=device.line)


def _fill_pstore(dom: DomainDef, device: DomainPstoreDef, capabilities: QEMUCapabilities) -> None:
    device.path = device.path or f"{HostRoot.NVRAM}/{dom.name}_PSTORE.raw"


def _fill_vsock(dom: DomainDef, device: DomainVsockDef, capabilities: QEMUCapabilities) -> None:
    device.model = device.model or "virtio"


def _fill_sound(dom: DomainDef, device: DomainSoundDef, capabilities: QEMUCapabilities) -> None:
    """
    Drop what a card of this model does not have, and give a virtio card its two streams.

    Mirrors: virDomainSoundDefParseXML (src/conf/domain_conf.c), qemuDomainDefaultSoundStreams
    """
    if device.model not in ("ich6", "ich9"):
        device.codecs = []
    if device.model != "usb":
        device.multichannel = None
    device.streams = device.streams or VIRTIO_STREAMS if device.model == "virtio" else None


def _fill_hostdev(dom: DomainDef, device: DomainHostdevDef, capabilities: QEMUCapabilities) -> None:
    if device.mode == "subsystem" and device.type == "mdev" and device.model == "vfio-pci":
        device.display = bool(device.display)


def _fill_tpm(dom: DomainDef, device: DomainTPMDef, capabilities: QEMUCapabilities) -> None:
    if device.model is None:
        device.model = "tpm-spapr" if dom.os.arch in PPC64 else "tpm-tis"
    if device.backend_type == "emulator" and device.backend_version is None:
        is_old = device.model == "tpm-tis" and dom.os.arch in X86
        device.backend_version = "1.2" if is_old else "2.0"


_FILLERS: dict[str, Callable[..., None]] = {
    "interface": _fill_net,
    "disk": _fill_disk,
    "video": _fill_video,
    "panic": _fill_panic,
    "controller": _fill_controller,
    "serial": _fill_chr,
    "parallel": _fill_chr,
    "console": _fill_chr,
    "channel": _fill_chr,
    "shmem": _fill_shmem,
    "vsock": _fill_vsock,
    "pstore": _fill_pstore,
    "hostdev": _fill_hostdev,
    "sound": _fill_sound,
    "tpm": _fill_tpm,
}
