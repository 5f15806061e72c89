# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The checks right before a start: missing host devices, mediated devices and files.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pyhostdev.conf.hostdev_conf import MdevSource
from pyhostdev.errors import ConfigError, RefusedError
from pyhostdev.qemu.qemu_capabilities.choice import has_qmp
from pyhostdev.qemu.qemu_command.smbios import has_no_tables
from pyhostdev.qemu.qemu_firmware import has_no_descriptors, is_undescribed, read_firmwares
from pyhostdev.qemu.qemu_process.access import image_obstacles
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.virfile import is_directory
from pyhostdev.util.virxml import nearest_words, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities


def missing_mdevs(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """Yield a finding for each mediated device that the host lacks."""
    for hostdev in dom.hostdevs:
        uuid = hostdev.source_def.uuid if isinstance(hostdev.source_def, MdevSource) else None
        if uuid is not None and not is_directory(host.root, host.root.mdev_device(uuid)):
            yield Finding("device-missing", ERROR, uuid, f"Mediated device {uuid} is not on this host", hostdev.line)


def missing_extra(host: Host) -> Iterator[Finding]:
    """Yield a finding if this machine is the host and lacks the library that ``start`` needs."""
    if host.root.is_live and not has_qmp():
        message = "start needs the extra 'start', which is not installed: pip install 'pyhostdev[start]'"
        yield Finding("extra-missing", ERROR, None, message)


def unknown_cpu_model(dom: DomainDef, capabilities: QEMUCapabilities) -> Iterator[Finding]:
    """Yield a finding if the definition names a processor that the emulator does not have."""
    cpu, known = dom.cpu, capabilities.cpus
    if cpu is not None and cpu.mode in (None, "custom") and cpu.model is not None and known and cpu.model not in known:
        near = ", ".join(nearest_words(cpu.model, sorted(known), 3))
        message = f"The emulator has no CPU model '{shown(cpu.model)}'; the nearest are {near}"
        yield Finding("unsupported", ERROR, None, message, cpu.line)


def refuse_missing(dom: DomainDef, host: Host) -> None:
    """
    Refuse a domain with PCI devices that the host lacks.

    Raises:
        RefusedError: has one finding per device.
    """
    findings = missing_functions(dom, host)
    if findings:
        raise RefusedError(findings)


def missing_functions(dom: DomainDef, host: Host) -> list[Finding]:
    """Return a finding for each PCI device that the host lacks."""
    missing = [(h.pci_address, h.line) for h in dom.host_functions() if host.pci_device(h.pci_address) is None]
    return [Finding("device-missing", ERROR, a, f"Device {a} is not on this host", line) for a, line in missing]


def as_findings(errors: list[ConfigError]) -> list[Finding]:
    """Return a finding for each error of a definition, the further ones in ``others`` included; each once."""
    parts = [part for error in errors for part in (error, *error.others)]
    addresses = [None if part.address is None else str(part.address) for part in parts]
    found = [
        Finding(part.reason or "unsupported", ERROR, address, part.message, part.line)
        for part, address in zip(parts, addresses, strict=True)
    ]
    return list(dict.fromkeys(found))


def root_notes(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """Yield a note for each fact that the command line needs and a directory in place of ``/`` does not show."""
    if dom.os.firmware is not None and dom.os.loader is None and has_no_descriptors(host.root):
        message = "This root has no firmware descriptors: the files of firmware are those of Debian's packages"
        yield Finding("root-lacks", NOTE, None, message, dom.os.line)
    elif dom.os.loader is not None and not has_no_descriptors(host.root):
        with suppress(ConfigError):  # a damaged descriptor is an error of the command line
            if is_undescribed(dom.os, read_firmwares(host.root)):
                message = f"No firmware descriptor of this host names '{shown(dom.os.loader)}', as libvirt requires"
                yield Finding("firmware-unknown", NOTE, None, message, dom.os.line)
    if dom.os.smbios_mode == "host" and has_no_tables(host.root):
        message = "This root has no SMBIOS tables: the command line is without those of the host"
        yield Finding("root-lacks", NOTE, None, message, dom.os.line)


def refuse_unstartable(dom: DomainDef, host: Host, plan: Plan) -> None:
    """
    Refuse a domain for the start obstacles of its plan, and for missing mediated devices.

    Raises:
        RefusedError: holds one finding per fact.
    """
    found = [*plan.start_obstacles, *missing_mdevs(dom, host)]
    if found:
        raise RefusedError(list(dict.fromkeys(found)), plan)


def refuse_missing_storage(dom: DomainDef, host: Host) -> None:
    """
    Refuse a domain whose disk images or other files are missing.

    For a root other than ``/`` only devices are checked, not files.

    Raises:
        RefusedError: has one finding per file.
    """
    missing = [finding for finding in image_obstacles(dom, host, None) if finding.reason == "image-missing"]
    if missing:
        raise RefusedError(missing)
