# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's defaults of a definition: machine, CPU model, and the devices that every machine has.

Mirrors: qemuDomainDefPostParse, qemuDomainDeviceDefPostParse (src/qemu/qemu_domain.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf import domain_postparse
from pyhostdev.conf.board_conf import DomainPanicDef, DomainWatchdogDef
from pyhostdev.conf.cpu_conf import CPUDef
from pyhostdev.conf.domain_controllers import (
    add_controller,
    add_usb_controller,
    find_controller,
    maybe_add_controller,
)
from pyhostdev.conf.graphics_conf import DomainAudioDef
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.conf.small_device_conf import DomainInputDef
from pyhostdev.conf.virtio_conf import DomainMemballoonDef
from pyhostdev.conf.xml.xmlcodec import set_text
from pyhostdev.errors import VIR_ERR_INVALID_ARG, XMLError
from pyhostdev.qemu.qemu_domain import PPC64, X86, is_arm_virt, is_i440fx, is_pseries, is_q35
from pyhostdev.qemu.qemu_postparse.device import fill_device, name_usb_disk, name_virtio_video
from pyhostdev.qemu.qemu_postparse.iommu import fill_iommus, refuse_several_iommus

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities

_EMULATOR = "/usr/bin/qemu-system-{}"
_TARGETS = {"i686": "i386", "armv7l": "arm", "ppc64le": "ppc64"}


def post_parse(
    dom: DomainDef, capabilities: QEMUCapabilities | None = None, release: LibvirtRelease = DEFAULT_RELEASE
) -> DomainDef:
    """
    Return a copy with all defaults but guest addresses filled in.

    Args:
        capabilities: of the domain's emulator; None uses stored ones.
        release: the libvirt release whose defaults apply.

    Raises:
        XMLError, ConfigUnsupportedError: the definition contradicts a default.
    """
    filled = domain_postparse.post_parse(dom, QEMUDefaults(dom, capabilities, release))
    for video in filled.videos if release.has("video-device") else ():
        name_virtio_video(filled, video)
    for disk in filled.disks if release.has("usb-disk-model") else ():
        name_usb_disk(disk)
    return filled


_WITHOUT_SOUND = ("sdl", "dbus", "egl-headless")  # SDL chooses its own from QEMU's environment


def _drop_idle_words(disk: Any, release: LibvirtRelease) -> None:
    """Drop a closed tray, and that a SCSI disk is removable: libvirt does not print them."""
    if disk.tray == "closed" and (disk.device in ("cdrom", "floppy") or not release.has("disk-idle-words")):
        disk.tray = None
    if disk.bus == "scsi" and disk.device == "disk" and release.has("disk-product"):
        disk.removable = None


class QEMUDefaults:
    """QEMU's part of ``domain_postparse``, for one emulator."""

    def __init__(
        self, dom: DomainDef, capabilities: QEMUCapabilities | None, release: LibvirtRelease = DEFAULT_RELEASE
    ) -> None:
        if capabilities is None:
            from pyhostdev.qemu.qemu_capabilities import load

            capabilities = load(dom.os.arch or host_arch(), release.qemu)
        self.capabilities = capabilities
        self.release = release

    def fill_domain(self, dom: DomainDef) -> None:
        """
        Fill in all defaults that are not those of a single device.

        Mirrors: qemuDomainDefPostParseBasic, qemuDomainDefPostParse
        """
        if not self.release.has("several-iommus"):
            refuse_several_iommus(dom)
        self._fill_machine(dom)
        self._add_default_devices(dom)
        self._fill_cpu(dom)
        self._fill_gic(dom)
        fill_numa(dom, self.release)
        if self.release.has("iommu-defaults"):
            fill_iommus(dom)

    def fill_device(self, dom: DomainDef, device: ElementDef) -> None:
        """Fill in one device."""
        fill_device(dom, device, self.capabilities)
        if device.tag == "disk":
            _drop_idle_words(device, self.release)

    def _fill_gic(self, dom: DomainDef) -> None:
        if is_arm_virt(dom) and not dom.features.gic:
            dom.features.gic = True
        if dom.features.gic and dom.features.gic_version is None:
            dom.features.gic_version = "2"

    def _fill_machine(self, dom: DomainDef) -> None:
        if dom.os.type is None:
            raise XMLError("<os> needs a <type>", line=dom.os.line or dom.line)
        dom.os.arch = dom.os.arch or host_arch()
        dom.emulator = dom.emulator or default_emulator(dom.os.arch)
        machine = dom.os.machine or self.capabilities.default_machine()
        if machine is None:
            raise XMLError("<type> of <os> needs a machine", line=dom.os.line, libvirt_code=VIR_ERR_INVALID_ARG)
        dom.os.machine = self.capabilities.canonical_machine(machine)

    def _add_default_devices(self, dom: DomainDef) -> None:
        """
        Add the devices that the machine always has.

        Mirrors: qemuDomainDefAddDefaultDevices (src/qemu/qemu_domain.c)
        """
        arch = dom.os.arch
        if arch in X86 and dom.features.ps2 is not False:
            for kind in ("mouse", "keyboard"):
                _maybe_add_input(dom, kind, "ps2")
        has_devices = arch in PPC64 or (arch in X86 and dom.os.machine != "isapc")
        if has_devices and find_controller(dom, "usb", 0) is None:
            self._add_usb(dom)
        if is_q35(dom):
            maybe_add_controller(dom, self.release, "sata", 0)
        root = _root_model(dom)
        if root is not None:
            _check_root(dom, self.release, root)
        if has_devices and dom.memballoon is None:
            dom.memballoon = DomainMemballoonDef(model="virtio")
        if arch in PPC64 and dom.graphics:
            _add_usb_inputs(dom)
        if is_pseries(dom) and all(panic.model not in (None, "pseries") for panic in dom.panics):
            dom.panics.append(DomainPanicDef())
        if is_q35(dom) and self.release.has("itco-watchdog"):
            _add_itco_watchdog(dom)
        if not dom.audios and not (dom.graphics and dom.graphics[0].type in _WITHOUT_SOUND):
            dom.audios.append(_default_audio(dom))

    def _add_usb(self, dom: DomainDef) -> None:
        """Add the default USB controller; on q35, one for USB 3 if the emulator has it, or none."""
        if not is_q35(dom):
            add_usb_controller(dom, self.release, 0, None)
            return
        models = {"qemu-xhci": "qemu-xhci", "nec-usb-xhci": "nec-xhci", "ich9-usb-ehci1": "ich9-ehci1"}
        model = next((m for d, m in models.items() if self.capabilities.has_device(d)), None)
        if model is not None:
            add_usb_controller(dom, self.release, 0, model)

    def _fill_cpu(self, dom: DomainDef) -> None:
        """
        Fill in the CPU model and its check.

        Mirrors: qemuDomainDefSetDefaultCPU, qemuDomainDefCPUPostParse (src/qemu/qemu_domain.c)
        """
        cpu = dom.cpu
        if cpu is not None and cpu.mode is None and cpu.model is not None:
            cpu.mode = "custom"
        if cpu is None or (cpu.mode in (None, "custom") and cpu.model is None):
            self._default_cpu(dom)
        cpu = dom.cpu
        if cpu is not None and cpu.sockets is not None:
            cpu.dies = cpu.dies or 1
            cpu.clusters = (cpu.clusters or 1) if self.release.has("cpu-clusters") else None
        if cpu is None or cpu.mode is None:
            return
        if cpu.mode == "custom":
            cpu.match = cpu.match or "exact"
        else:
            cpu.match = None
        if cpu.mode == "host-passthrough":
            cpu.model = cpu.vendor_id = None
        if cpu.mode in ("custom", "host-model", "host-passthrough"):
            cpu.fallback = cpu.fallback or "allow" if cpu.model else None
        if cpu.mode == "host-passthrough" and cpu.migratable is None and dom.os.arch in X86:
            cpu.migratable = True
        if cpu.check is None:
            is_partial = cpu.mode == "host-model" or (cpu.mode == "custom" and dom.type != "qemu")
            cpu.check = "partial" if is_partial else "none"

    def _default_cpu(self, dom: DomainDef) -> None:
        if dom.os.arch not in X86 + PPC64 and dom.type != "qemu":
            return
        model = self.capabilities.default_cpu(dom.os.machine or "")
        if model is None:
            return
        dom.cpu = dom.cpu or CPUDef()
        dom.cpu.mode, dom.cpu.match, dom.cpu.check = "custom", "exact", "none"
        dom.cpu.model, dom.cpu.fallback = model, "forbid"


def default_emulator(arch: str) -> str:
    """Return the path of the default emulator of an architecture."""
    return _EMULATOR.format(_TARGETS.get(arch, arch))


def host_arch() -> str:
    """Return libvirt's name of this machine's architecture."""
    import os

    machine = os.uname().machine
    return "i686" if machine in ("i386", "i486", "i586") else machine


def _root_model(dom: DomainDef) -> str | None:
    """Return the model of the machine's PCI root, None for another machine."""
    if is_i440fx(dom) or dom.os.arch in PPC64:
        return "pci-root"
    return "pcie-root" if is_q35(dom) or is_arm_virt(dom) else None


def _check_root(dom: DomainDef, release: LibvirtRelease, model: str) -> None:
    root = find_controller(dom, "pci", 0)
    if root is None:
        add_controller(dom, release, "pci", 0, model)
    elif root.model != model:
        raise XMLError(
            f"PCI controller 0 of machine '{dom.os.machine}' is a {model}, not a {root.model}",
            line=root.line,
        )


def _maybe_add_input(dom: DomainDef, kind: str, bus: str) -> None:
    if not any(part.type == kind and part.bus == bus for part in dom.inputs):
        dom.inputs.append(DomainInputDef(type=kind, bus=bus))


def _add_usb_inputs(dom: DomainDef) -> None:
    """Add a USB keyboard, and a USB mouse unless there is a tablet."""
    _maybe_add_input(dom, "keyboard", "usb")
    if not any(part.type == "tablet" and part.bus == "usb" for part in dom.inputs):
        _maybe_add_input(dom, "mouse", "usb")


def _add_itco_watchdog(dom: DomainDef) -> None:
    """Add the watchdog of the chipset; all watchdogs of a guest have the same action."""
    if all(watchdog.model != "itco" for watchdog in dom.watchdogs):
        action = dom.watchdogs[0].action if dom.watchdogs else "reset"
        dom.watchdogs.append(DomainWatchdogDef(model="itco", action=action))


def _default_audio(dom: DomainDef) -> DomainAudioDef:
    """
    Return the default audio backend: that of the first graphics if it carries sound, otherwise none.

    The caller adds no backend if the first graphics is one of ``_WITHOUT_SOUND``.

    Mirrors: qemuDomainDefAddDefaultAudioBackend (src/qemu/qemu_domain.c)
    """
    first = dom.graphics[0].type if dom.graphics else ""
    return DomainAudioDef(id=1, type="spice" if first == "spice" else "none")


def fill_numa(dom: DomainDef, release: LibvirtRelease) -> None:
    """
    Number the NUMA cells, and give the first one the virtual CPUs that no cell has.

    Memory that can be hot-plugged needs a cell; the releases that allow a definition without one add it.

    Mirrors: qemuDomainDefNumaCPUsPostParse (src/qemu/qemu_domain.c)
    """
    if dom.has_memory_hotplug and not (dom.cpu and dom.cpu.cells) and release.has("memory-slots"):
        _add_cell(dom)
    cells: list[Any] = dom.cpu.cells if dom.cpu is not None else []
    used = {cell.id for cell in cells if cell.id is not None}
    unused = (number for number in range(len(cells)) if number not in used)
    for cell in cells:
        if cell.id is None:
            cell.id = next(unused)
    cells.sort(key=lambda cell: int(cell.id))
    if cells and any(cell.id != place for place, cell in enumerate(cells)):
        raise XMLError("NUMA cells must be numbered from 0 without gaps", line=dom.line)
    unlisted = set(range(dom.vcpus if cells else 0)).difference(*(cell.cpu_numbers for cell in cells))
    if unlisted:
        cells[0].cpus = set_text(cells[0].cpu_numbers | unlisted)


def _add_cell(dom: DomainDef) -> None:
    from pyhostdev.conf.cpu_conf import NumaCell

    memory = dom.memory_kib - sum(module.size_kib for module in dom.memories)
    if memory <= 0:
        raise XMLError("The domain has no memory except its memory devices", line=dom.line)
    for module in dom.memories:
        if module.target_node is None and module.model in ("dimm", "nvdimm", "virtio-mem"):
            module.target_node = 0
    dom.cpu = dom.cpu or CPUDef()
    cpus = f"0-{dom.vcpus - 1}" if dom.vcpus > 1 else "0"
    dom.cpu.cells = [NumaCell(id=0, cpus=cpus, memory=memory, unit="KiB")]
