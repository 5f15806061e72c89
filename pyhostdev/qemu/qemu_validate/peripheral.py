# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's rules for small devices: file systems, memory, watchdogs, sound, shared memory.

Mirrors: qemuValidateDomainDeviceDef and its parts (src/qemu/qemu_validate.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.os_conf import unit_factor
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError, XMLError
from pyhostdev.qemu.qemu_domain import X86, is_i440fx, is_q35
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities

    Errors = Iterator[ConfigError]

_MIB = 1 << 20


class Rules(NamedTuple):
    """The emulator and the release that a rule asks."""

    capabilities: QEMUCapabilities
    release: LibvirtRelease


def peripheral_errors(dom: DomainDef, device: Any, capabilities: QEMUCapabilities, release: LibvirtRelease) -> Errors:
    """Yield the errors of one small device."""
    rule = _RULES.get(device.tag)
    if rule is not None:
        yield from rule(dom, device, Rules(capabilities, release))


def _unsupported(message: str, where: Any) -> ConfigError:
    return ConfigUnsupportedError(message, line=where.line)


def _filesystem_errors(dom: DomainDef, device: Any, rules: Rules) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefFS"""
    if device.type != "mount":
        yield _unsupported(f"QEMU does not support a file system of type {device.type}", device)
    if device.driver_type in ("loop", "nbd", "ploop"):
        text = f"QEMU does not support a file system with the driver {device.driver_type}"
        yield ConfigUnsupportedError(text, line=device.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    if device.driver_type == "handle" and rules.release.has("fs-handle-is-gone"):
        yield _unsupported("QEMU does not support a file system with the driver handle", device)
    if (device.fmode or device.dmode) and device.accessmode != "mapped":
        yield _unsupported("fmode and dmode need accessmode='mapped'", device)
    limits = [limit for limit in (device.space_hard_limit, device.space_soft_limit) if limit is not None]
    if any(limit.value for limit in limits) and rules.release.has("fs-limits"):
        yield _unsupported("QEMU does not support limits of a file system", device)
    if device.is_mtp and device.accessmode not in (None, "passthrough"):
        yield _unsupported("An mtp file system can have only accessmode='passthrough'", device)
    if not device.is_virtiofs:
        return
    if device.accessmode not in (None, "passthrough") or device.wrpolicy is not None:
        yield _unsupported("virtiofs can have only accessmode='passthrough', and no wrpolicy", device)
    if device.model not in (None, "virtio") or device.multidevs not in (None, "default"):
        yield _unsupported("virtiofs can have only model='virtio', and no multidevs", device)
    if device.fmode is not None or device.dmode is not None:
        yield _unsupported("virtiofs cannot have fmode or dmode", device)
    if not shares_memory(dom):
        yield _unsupported("virtiofs needs <memoryBacking> with <access mode='shared'/>", device)


def shares_memory(dom: DomainDef) -> bool:
    """Return True if the guest's memory is shared, so that another process can map it."""
    cells = dom.cpu.cells if dom.cpu is not None else []
    default = dom.memory_backing.access_mode
    return all((access or default) == "shared" for access in [cell.mem_access for cell in cells] or [None])


def _watchdog_errors(dom: DomainDef, device: Any, rules: Rules) -> Errors:
    """Mirrors: qemuValidateDomainWatchdogDef"""
    if device.model == "itco" and not is_q35(dom):
        yield _unsupported("Only a q35 machine can have the watchdog itco", device)
    if device.model == "diag288" and dom.os.arch not in ("s390", "s390x"):
        yield _unsupported("Only machines of s390x can have the watchdog diag288", device)
    if device.model == "ib700" and dom.os.arch in X86 and not is_i440fx(dom) and rules.release.has("ib700-machine"):
        yield _unsupported(f"The machine '{dom.os.machine}' does not support the watchdog ib700", device)
    kind = device.info.address.kind if device.info.address is not None else None
    if device.model == "i6300esb" and kind not in (None, "pci"):
        yield _unsupported("The watchdog i6300esb needs a PCI address", device)
    if device.model == "ib700" and kind not in (None, "isa"):
        yield _unsupported("The watchdog ib700 needs an ISA address", device)


def _memory_errors(_dom: DomainDef, device: Any, _rules: Rules) -> Errors:
    """Mirrors: qemuDomainDefValidateMemoryHotplugDevice (src/qemu/qemu_domain.c)"""
    if device.model == "sgx-epc":
        yield _unsupported("QEMU's capabilities do not tell whether the host has SGX", device)
    if device.model in ("dimm", "nvdimm", "virtio-mem") and device.target_node is None:
        yield _unsupported(f"Memory of model {device.model} needs the <node> of its <target>", device)


def _smartcard_errors(dom: DomainDef, device: Any, _rules: Rules) -> Errors:
    """Mirrors: qemuValidateDomainSmartcardDef"""
    if len(dom.smartcards) > 1:
        yield _unsupported("QEMU supports at most one smartcard", device)


def _audio_errors(dom: DomainDef, device: Any, _rules: Rules) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefAudio"""
    if device.type == "spice" and all(graphics.type != "spice" for graphics in dom.graphics):
        yield _unsupported("Audio of type spice needs SPICE graphics", device)


def _shmem_errors(_dom: DomainDef, device: Any, rules: Rules) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefShmem"""
    if device.model == "ivshmem":
        yield _unsupported("QEMU no longer supports shared memory of model ivshmem", device)
    size = (device.size or 0) * unit_factor(device.size_unit or "bytes")
    if device.size is not None and (size < _MIB or size & (size - 1)) and rules.release.has("shmem-sizes"):
        yield XMLError("The size of shared memory must be a power of two and at least 1 MiB", line=device.line)
    if device.info.address is not None and device.info.address.kind != "pci":
        yield _unsupported("Shared memory needs a PCI address", device)


def _pstore_errors(_dom: DomainDef, device: Any, _rules: Rules) -> Errors:
    """Mirrors: virDomainPstoreDefParseXML"""
    if not device.size_kib:
        yield XMLError("A <pstore> needs a <size>", line=device.line)


def _crypto_errors(_dom: DomainDef, device: Any, rules: Rules) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefCrypto"""
    if device.backend_model == "lkcf" and not rules.capabilities.has_object("cryptodev-backend-lkcf"):
        yield _unsupported("QEMU does not support the crypto backend lkcf", device)


def _interface_errors(dom: DomainDef, device: Any, rules: Rules) -> Errors:
    """Mirrors: qemuValidateDomainDeviceDefNetwork"""
    if device.port_forwards and device.backend_type != "passt" and rules.release.has("port-forward-rule"):
        yield _unsupported("<portForward> needs <backend type='passt'>", device)
    if any(route.address is None for route in device.routes) and not rules.release.has("route-to-all"):
        yield XMLError("A <route> needs an address", line=device.line)
    names = device.backend_hostname or device.backend_fqdn
    if names and device.backend_type != "passt" and rules.release.has("passt-names"):
        yield _unsupported("A host name of an interface needs <backend type='passt'>", device)
    if device.type == "vhostuser" and not shares_memory(dom) and rules.release.has("vhostuser-memory"):
        yield _unsupported("An interface of type vhostuser needs shared memory", device)


def _disk_errors(_dom: DomainDef, disk: Any, rules: Rules) -> Errors:
    """Yield the errors of a disk that depend on the release."""
    has_product = rules.release.has("disk-product")
    named = ("scsi", "sata", "ide") if has_product else ("scsi",)
    if (disk.vendor is not None and disk.bus != "scsi") or (disk.product is not None and disk.bus not in named):
        yield _unsupported(f"A disk on bus {disk.bus} cannot have a vendor or a product", disk)
    is_scsi_disk = disk.bus == "scsi" and disk.device == "disk"
    if disk.removable is not None and disk.bus != "usb" and not (is_scsi_disk and has_product):
        yield XMLError(f"A {disk.device} on bus {disk.bus} cannot be removable", line=disk.line)
    if rules.release.has("disk-idle-words"):
        yield from _idle_word_errors(disk)
    if disk.device == "lun" and disk.bus == "virtio" and rules.release.has("lun-needs-scsi"):
        yield _unsupported("QEMU does not support a lun on the bus virtio", disk)


def _idle_word_errors(disk: Any) -> Errors:
    """Yield the errors of settings without an effect on this kind of disk."""
    has_sizes = bool(disk.logical_block_size or disk.physical_block_size) or disk.discard_granularity is not None
    if disk.device == "lun" and has_sizes:
        yield _unsupported("A lun cannot have <blockio>", disk)
    if disk.bus in ("fdc", "sd") and (disk.statistics or disk.histograms):
        yield _unsupported(f"A disk on bus {disk.bus} cannot have <statistics>", disk)


_RULES: dict[str, Callable[[DomainDef, Any, Rules], Errors]] = {
    "filesystem": _filesystem_errors,
    "watchdog": _watchdog_errors,
    "memory": _memory_errors,
    "smartcard": _smartcard_errors,
    "audio": _audio_errors,
    "shmem": _shmem_errors,
    "pstore": _pstore_errors,
    "crypto": _crypto_errors,
    "interface": _interface_errors,
    "disk": _disk_errors,
}
