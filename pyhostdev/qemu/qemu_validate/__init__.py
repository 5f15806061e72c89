# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's rules for a definition, in addition to those of all hypervisors.

Every rule yields errors instead of raising them, so that the user sees all errors at once.

Mirrors: src/qemu/qemu_validate.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_XML_DETAIL,
    ConfigError,
    ConfigUnsupportedError,
    XMLError,
)
from pyhostdev.qemu.qemu_alias import is_builtin_ide
from pyhostdev.qemu.qemu_domain import (
    ARM,
    X86,
    has_pci_root,
    has_pcie_root,
    is_arm_virt,
    is_i440fx,
    is_pseries,
    is_q35,
    lacks_pci,
    tpm_driver,
)
from pyhostdev.qemu.qemu_domain.namespace import namespace_of
from pyhostdev.qemu.qemu_validate.board import board_errors
from pyhostdev.qemu.qemu_validate.display import graphics_errors, video_errors
from pyhostdev.qemu.qemu_validate.firmware import firmware_errors
from pyhostdev.qemu.qemu_validate.net import net_errors
from pyhostdev.qemu.qemu_validate.pci import pci_controller_errors
from pyhostdev.qemu.qemu_validate.peripheral import peripheral_errors
from pyhostdev.qemu.qemu_validate.storage import disk_errors, thread_errors
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities

    Errors = Iterator[ConfigError]

_USB_PORTS_MAX = 15  # of an xHCI controller, per speed
_XHCI_MODELS = ("nec-xhci", "qemu-xhci")
_GRANULES_KIB = (4, 8, 16, 64)


class QEMURules:
    """The rules of one emulator; implements the hypervisor's part of ``domain_validate``."""

    def __init__(self, capabilities: QEMUCapabilities, release: LibvirtRelease = DEFAULT_RELEASE) -> None:
        self.capabilities = capabilities
        self.release = release

    def domain_errors(self, dom: DomainDef) -> Errors:
        """
        Yield the errors that concern the whole domain.

        Mirrors: qemuValidateDomainDef
        """
        if dom.os.type not in ("hvm", "exe"):
            yield _unsupported(f"QEMU does not support guests of type {dom.os.type}", dom.os)
        if dom.type not in ("qemu", "kvm"):
            yield _unsupported(f"QEMU does not support domains of type {dom.type}", dom)
        if not self.capabilities.has_machine(dom.os.machine or ""):
            yield _unsupported(self.capabilities.unknown_machine(str(dom.os.machine)), dom.os)
        yield from firmware_errors(dom, self.release)
        for rule in _DOMAIN_RULES:
            yield from rule(dom)
        yield from _watchdog_errors(dom, self.release)
        yield from self._machine_errors(dom)
        yield from board_errors(dom, self.release)

    def _machine_errors(self, dom: DomainDef) -> Errors:
        """Yield an error for each feature that the machine lacks, according to the capabilities."""
        name = dom.os.machine or ""
        if not self.capabilities.has_machine(name):
            return
        machine = self.capabilities.machine(name)
        if lacks_pci(dom) and self.release.has("pci-needs-machine"):
            for controller in (c for c in dom.controllers if c.is_pci):
                yield _unsupported(f"The machine '{name}' does not support PCI", controller)
        if dom.features.acpi and machine.acpi is False and self.release.has("acpi-needs-machine"):
            yield _unsupported(f"The machine '{name}' does not support ACPI", dom.features)
        if machine.max_cpus is not None and dom.vcpus > machine.max_cpus:
            yield _unsupported(f"The machine '{name}' supports at most {machine.max_cpus} processors", dom)

    def device_errors(self, dom: DomainDef, device: ElementDef) -> Errors:
        """
        Yield the errors of one device.

        Mirrors: qemuValidateDomainDeviceDef
        """
        info = getattr(device, "info", None)
        if info is not None and info.address is not None and info.address.kind == "ccw":
            yield _unsupported(f"The machine '{dom.os.machine}' does not support CCW addresses", device)
        rule = _DEVICE_RULES.get(device.tag)
        if rule is not None:
            yield from rule(dom, device)
        yield from peripheral_errors(dom, device, self.capabilities, self.release)
        if _has_chardev(device):
            yield from _chr_errors(dom, device, self.release)
        elif device.tag == "hostdev":
            yield from _hostdev_errors(dom, device, self.release)
        elif device.tag == "tpm":
            yield from self._tpm_errors(dom, device)
        elif device.tag == "video":
            yield from video_errors(dom, device, self.capabilities, self.release)
        else:
            yield from self._release_errors(device)

    def _release_errors(self, device: Any) -> Errors:
        """Yield the errors of a device that only some releases report."""
        if device.tag == "interface" and device.model == "usb-net" and not self.release.has("usb-nets"):
            text = "An interface of model usb-net cannot have a PCI address"
            yield ConfigUnsupportedError(text, line=device.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
        has_queue_size = device.tag == "disk" and device.queue_size is not None and device.bus != "virtio"
        if has_queue_size and self.release.has("disk-queue-size"):
            yield _unsupported("Only a virtio disk can have queue_size", device)
        if device.tag == "graphics" and len(device.listens) > 1 and self.release.has("one-listen"):
            yield _unsupported("QEMU listens at one address for each <graphics>", device)
        if device.tag == "controller" and self.release.has("usb-ports-of-xhci"):
            yield from _usb_port_errors(device)
        if device.tag == "filesystem" and not self.release.has("virtiofs-readonly"):
            yield from _readonly_virtiofs_errors(device)
        if device.tag == "disk" and self.release.has("sheepdog-is-gone"):
            yield from _sheepdog_errors(device)
        if device.tag == "disk" and self.release.has("usb-empty-disk"):
            yield from _empty_disk_errors(device)

    def _tpm_errors(self, dom: DomainDef, device: Any) -> Errors:
        source = device.backend_source if device.backend_type == "emulator" else None
        if source is not None and self.release.has("tpm-source"):
            yield from _tpm_source_errors(source)
        driver = tpm_driver(str(dom.os.arch), device.model or "")
        if device.model is not None and not self.capabilities.has_device(driver):
            yield _unsupported(f"QEMU does not support a TPM of model {device.model} for this machine", device)


def _tpm_source_errors(source: Any) -> Errors:
    """Mirrors: virDomainTPMDefParseXML"""
    if source.type == "unix":
        yield XMLError("The <source> of a TPM's emulator cannot have type='unix'", line=source.line)
    elif source.path is None:
        yield XMLError("The <source> of a TPM's emulator needs a path", line=source.line)


def _empty_disk_errors(disk: Any) -> Errors:
    if disk.is_empty and disk.bus == "usb" and disk.model in (None, "usb-storage"):
        yield _unsupported("A disk on USB cannot be empty", disk)


def _unsupported(message: str, where: Any) -> ConfigError:
    return ConfigUnsupportedError(message, line=where.line)


# feature -> the machines that have it
_FEATURE_HOMES: dict[str, Callable[[DomainDef], bool]] = {
    "ioapic_driver": lambda dom: is_q35(dom) or is_i440fx(dom),
    "hpt_resizing": is_pseries,
    "hpt_maxpagesize": is_pseries,
    "htm": is_pseries,
    "nested_hv": is_pseries,
    "ccf_assist": is_pseries,
    "cfpc": is_pseries,
    "sbbc": is_pseries,
    "ibs": is_pseries,
    "gic_version": is_arm_virt,
    "hyperv": lambda dom: dom.os.arch in (*X86, *ARM),
    "vmport_state": lambda dom: dom.os.arch in X86,
}


def _feature_errors(dom: DomainDef) -> Errors:
    """Mirrors: qemuValidateDomainDefFeatures"""
    features = dom.features
    if features is None:
        return
    for name, has in _FEATURE_HOMES.items():
        if getattr(features, name) is not None and not has(dom):
            yield _unsupported(
                f"The machine '{dom.os.machine}' does not support the feature '{name.split('_')[0]}'", features
            )
    if features.tseg is not None and not is_q35(dom):
        yield _unsupported("Only q35 machines support <tseg>", features)
    if features.kvm is not None and features.kvm.dirty_ring and dom.type != "kvm":
        yield _unsupported("A dirty ring needs KVM", features)


def _iommu_errors(dom: DomainDef) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefIOMMU"""
    has_virtio = is_q35(dom) or is_arm_virt(dom)
    homes = {"intel": is_q35(dom), "amd": is_q35(dom), "smmuv3": is_arm_virt(dom), "virtio": has_virtio}
    for iommu in dom.iommus:
        address = iommu.info.address
        if not homes[iommu.model]:
            yield _unsupported(
                f"The machine '{dom.os.machine}' does not support an IOMMU of model {iommu.model}", iommu
            )
        elif iommu.model in ("amd", "virtio") and address is not None and address.kind != "pci":
            yield _unsupported(f"An IOMMU of model {iommu.model} needs a PCI address", iommu)
        if iommu.model == "virtio" and not dom.features.acpi:
            yield _unsupported("An IOMMU of model virtio needs ACPI", iommu)
        if iommu.granule is not None and iommu.granule_kib not in _GRANULES_KIB:
            yield _unsupported(f"An IOMMU's granule cannot have {iommu.granule_kib} KiB", iommu)


def _power_errors(dom: DomainDef) -> Errors:
    """Mirrors: qemuValidateDomainDefPM"""
    said = dom.suspend_to_mem is not None or dom.suspend_to_disk is not None
    if said and not (is_q35(dom) or is_i440fx(dom)):
        yield _unsupported("<pm> is for machines with ACPI sleep states", dom)


def _clock_errors(dom: DomainDef) -> Errors:
    """Mirrors: qemuValidateDomainDefClockTimers"""
    for timer in dom.clock.timers if dom.clock is not None else ():
        x86_only = timer.name in ("kvmclock", "hypervclock", "tsc", "hpet", "pit")
        if x86_only and timer.present and dom.os.arch not in X86:
            yield _unsupported(f"Only x86 machines have the timer '{timer.name}'", timer)
        if timer.name in ("platform", "armvtimer") and not (timer.name == "armvtimer" and is_arm_virt(dom)):
            yield _unsupported(f"QEMU does not support the timer '{timer.name}'", timer)


def _usb_users(dom: DomainDef) -> Iterator[Any]:
    """
    Yield the USB devices; a ccid controller, which a smartcard needs, is one of them.

    Mirrors: virDomainDeviceIsUSB (src/conf/domain_conf.c)
    """
    yield from dom.hubs
    yield from (controller for controller in dom.controllers if controller.type == "ccid")
    yield from (hostdev for hostdev in dom.hostdevs if hostdev.mode == "subsystem" and hostdev.type == "usb")
    yield from (device for device in dom.inputs if device.bus == "usb")
    yield from (disk for disk in dom.disks if disk.bus == "usb")
    yield from (sound for sound in dom.sounds if sound.model == "usb")
    yield from (serial for serial in dom.serials if serial.target_type == "usb-serial")
    yield from (interface for interface in dom.interfaces if interface.model == "usb-net")
    yield from (filesystem for filesystem in dom.filesystems if filesystem.is_mtp)


def _usb_errors(dom: DomainDef) -> Errors:
    """
    Yield an error for each companion without an EHCI controller, and for each USB device if USB is disabled.

    Mirrors: the checks of virDomainDefParseXML (src/conf/domain_conf.c)
    """
    controllers = [c for c in dom.controllers if c.type == "usb"]
    masters = {c.index for c in controllers if c.info.master_startport is None}
    for controller in (c for c in controllers if c.info.master_startport is not None):
        if controller.model != "none" and controller.index not in masters:
            text = "A USB companion controller needs an EHCI controller with the same index"
            yield XMLError(text, line=controller.line, libvirt_code=VIR_ERR_XML_DETAIL)
    if not any(c.model == "none" for c in controllers):
        return
    for controller in controllers[1:]:
        text = "A controller needs USB, which model='none' disables"
        yield XMLError(text, line=controller.line, libvirt_code=VIR_ERR_XML_DETAIL)
    for user in _usb_users(dom):
        yield _unsupported(f"A {user.tag} needs USB, which model='none' disables", user)


def _namespace_errors(dom: DomainDef) -> Errors:
    """Mirrors: qemuDomainDefNamespaceParse (src/qemu/qemu_domain.c)"""
    yield from namespace_of(dom).errors


_DOMAIN_RULES: tuple[Callable[[DomainDef], Errors], ...] = (
    _feature_errors,
    _iommu_errors,
    _power_errors,
    _clock_errors,
    _usb_errors,
    _namespace_errors,
)


def _controller_errors(dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefController"""
    if device.type == "pci":
        yield from pci_controller_errors(dom, device)
    if device.type == "usb" and device.model != "none" and (device.ports or 0) > _USB_PORTS_MAX:
        yield _unsupported(f"A USB controller can have at most {_USB_PORTS_MAX} ports", device)
    yield from _queue_errors(device)
    if device.type == "nvme" and device.serial is None:
        yield XMLError("An NVMe controller needs a <serial>, or a disk with one", line=device.line)
    yield from thread_errors(dom, device)
    if device.type == "ide" and not is_builtin_ide(dom, device):
        yield _unsupported(f"The machine '{dom.os.machine}' has no IDE controller {device.index}", device)


def _queue_errors(device: Any) -> Errors:
    """Yield an error for each option of virtio SCSI's queues on another controller. Mirrors: as _controller_errors"""
    if device.type == "scsi" and str(device.model).startswith("virtio"):
        return
    if device.iothread_mapping:
        yield _unsupported("Only a virtio SCSI controller can have I/O threads", device)
    for name in ("queues", "cmd_per_lun", "max_sectors", "ioeventfd"):
        is_nvme = device.type == "nvme" and name in ("queues", "ioeventfd")
        if getattr(device, name) is not None and not is_nvme:
            yield _unsupported(f"Only a virtio SCSI controller can have '{name}'", device)


def _hostdev_errors(dom: DomainDef, device: Any, release: LibvirtRelease) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefHostdev"""
    if device.mode != "subsystem":
        yield _unsupported(f"QEMU does not support a hostdev of mode {device.mode}", device)
    elif device.type == "pci":
        yield from _pci_hostdev_errors(dom, device, release)
    elif device.type == "mdev":
        yield from _mdev_errors(dom, device)


def _pci_hostdev_errors(dom: DomainDef, device: Any, release: LibvirtRelease) -> Errors:
    if device.display and not dom.graphics and release.has("pci-hostdev-display"):
        yield _unsupported("display='on' of a <hostdev> needs <graphics>", device)
    if device.source_def is not None and device.source_def.write_filtering is not None:
        yield _unsupported("QEMU cannot filter writes to a device's configuration space", device)


def _mdev_errors(dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainMdevDef"""
    if device.display and not dom.graphics:
        yield _unsupported("display='on' of a <hostdev> needs <graphics>", device)
    if device.info.boot_order is not None and device.model != "vfio-ccw":
        yield _unsupported(f"A guest cannot boot from a mediated device of model {device.model}", device)
    if device.model != "vfio-pci" and dom.os.arch in (*X86, *ARM):
        yield _unsupported(f"This machine does not support a mediated device of model {device.model}", device)


def _chr_errors(dom: DomainDef, device: Any, release: LibvirtRelease) -> Errors:
    """Mirrors: qemuValidateDomainChrSourceDef"""
    source = device.backend.chardev if device.tag == "rng" else device.source
    has_spice = any(graphics.type == "spice" for graphics in dom.graphics)
    if source.type in ("spicevmc", "spiceport") and not has_spice:
        yield _unsupported(f"A character device of type {source.type} needs SPICE graphics", device)
    if source.type == "tcp" and source.protocol == "tls" and release.has("chardev-protocols"):
        yield _unsupported("A character device cannot use the protocol tls", device)


def _console_errors(_dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainChrTargetDef"""
    type_ = device.target_type
    if type_ not in (None, "serial", "virtio"):
        yield _unsupported(f"QEMU does not support a console of type {shown(type_)} on this architecture", device)


def _has_chardev(device: Any) -> bool:
    """Return True if a device has a character device of the host."""
    if device.tag == "smartcard":
        return bool(device.mode == "passthrough")
    if device.tag == "rng":
        return device.backend is not None and device.backend.model == "egd"
    return device.tag in _CHARACTER_DEVICES


_CHARACTER_DEVICES = ("serial", "parallel", "channel", "console", "redirdev")
# model of a serial port -> the machines that can have it
_SERIAL_HOMES: dict[str, Callable[[DomainDef], bool]] = {
    "isa-serial": lambda dom: dom.os.arch in X86,
    "spapr-vty": is_pseries,
    "pl011": is_arm_virt,
    "sclpconsole": lambda dom: False,
    "sclplmconsole": lambda dom: False,
}
# model of a serial port -> the type that it needs
_SERIAL_TYPES = {
    "isa-serial": "isa-serial",
    "usb-serial": "usb-serial",
    "pci-serial": "pci-serial",
    "spapr-vty": "spapr-vio-serial",
    "pl011": "system-serial",
    "16550a": "system-serial",
    "sclpconsole": "sclp-serial",
    "sclplmconsole": "sclp-serial",
    "isa-debugcon": "isa-debug",
}


_SERIAL_ADDRESSES = {
    "isa-serial": "isa",
    "isa-debug": "isa",
    "usb-serial": "usb",
    "pci-serial": "pci",
    "spapr-vio-serial": "spapr-vio",
}


def _serial_errors(dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainChrTargetDef"""
    model, type_ = device.target_model, device.target_type
    if model is not None and _SERIAL_TYPES.get(model) != type_:
        yield _unsupported(f"A serial port of type '{shown(type_)}' cannot have the model '{shown(model)}'", device)
    has = _SERIAL_HOMES.get(device.target_model)
    if has is not None and not has(dom):
        yield _unsupported(
            f"The machine '{dom.os.machine}' does not support a serial port of model {device.target_model}", device
        )
    kind = device.info.address.kind if device.info.address is not None else None
    wanted = _SERIAL_ADDRESSES.get(device.target_type)
    if kind is not None and wanted is not None and kind != wanted:
        yield _unsupported(f"A serial port of type {device.target_type} needs an address of type {wanted}", device)


def _parallel_errors(dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainChrDef"""
    if is_pseries(dom):
        yield _unsupported("pseries machines do not support parallel ports", device)


def _usb_port_errors(device: Any) -> Errors:
    """Yield an error if a controller other than XHCI has a number of ports. Mirrors: qemuBuildUSBControllerDevStr"""
    if device.type == "usb" and device.ports is not None and device.model not in (*_XHCI_MODELS, "none"):
        yield _unsupported(f"A USB controller of model {device.model} cannot have a number of ports", device)


def _watchdog_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    """Yield an error for each excess watchdog: all but the first in 9.0, later only those of model ib700."""
    if not release.has("several-watchdogs"):
        for watchdog in dom.watchdogs[1:]:
            yield XMLError(
                "A guest can have only one watchdog", line=watchdog.line, libvirt_code=VIR_ERR_INTERNAL_ERROR
            )
    for watchdog in [watchdog for watchdog in dom.watchdogs if watchdog.model == "ib700"][1:]:
        yield _unsupported("A guest can have only one watchdog of model ib700", watchdog)


def _sound_errors(_dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefSound"""
    if device.model == "ich7":
        text = "QEMU does not support a sound card of model ich7"
        yield ConfigUnsupportedError(text, line=device.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)


def _sheepdog_errors(device: Any) -> Errors:
    if device.source is not None and device.source.protocol == "sheepdog":
        yield _unsupported("QEMU no longer supports sheepdog", device)


def _memballoon_errors(_dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefMemballoon"""
    if device.model == "xen":
        yield _unsupported("QEMU does not support a memory balloon of model xen", device)


def _panic_errors(dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainDefPanic"""
    homes = {"pseries": is_pseries(dom), "isa": dom.os.arch in X86, "hyperv": dom.os.arch in X86}
    homes["pvpanic"] = has_pci_root(dom) or has_pcie_root(dom)
    if not homes.get(device.model, False):
        yield _unsupported(
            f"The machine '{dom.os.machine}' does not support a panic device of model {device.model}", device
        )


def _nvram_errors(dom: DomainDef, device: Any) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefNVRAM"""
    if not is_pseries(dom):
        yield _unsupported(f"The machine '{dom.os.machine}' does not support <nvram>", device)


def _readonly_virtiofs_errors(device: Any) -> Errors:
    if device.is_virtiofs and device.readonly:
        yield _unsupported("virtiofs cannot share a directory read-only", device)


_DEVICE_RULES: dict[str, Callable[[DomainDef, Any], Errors]] = {
    "controller": _controller_errors,
    "serial": _serial_errors,
    "parallel": _parallel_errors,
    "console": _console_errors,
    "sound": _sound_errors,
    "disk": disk_errors,
    "graphics": graphics_errors,
    "memballoon": _memballoon_errors,
    "panic": _panic_errors,
    "nvram": _nvram_errors,
    "interface": net_errors,
}
