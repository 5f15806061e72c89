# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Build QEMU's command line from a domain definition.

The arguments and their order are those that the selected libvirt release prints for the same definition. A part of the
definition that we cannot build is refused by name and never left out.

Mirrors: qemuBuildCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.domain_limits import refuse_too_large
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.conf.unknown_words import other_words, words_with_paths
from pyhostdev.errors import ConfigError, ConfigUnsupportedError, XMLError, raise_all
from pyhostdev.qemu.qemu_alias import assign_aliases
from pyhostdev.qemu.qemu_command import (
    audio,
    clock,
    controller,
    cpu,
    disk,
    filesystem,
    firmware,
    graphics,
    images,
    iommu,
    machine,
    memory,
    memory_device,
    misc,
    tpm,
)
from pyhostdev.qemu.qemu_command import chr as chr_
from pyhostdev.qemu.qemu_command.builder import CommandBuilder
from pyhostdev.qemu.qemu_command.hostdev import build_hostdevs
from pyhostdev.qemu.qemu_command.namespace import KNOWN_PATHS, build_arguments
from pyhostdev.qemu.qemu_command.net import build_interfaces
from pyhostdev.qemu.qemu_command.paths import DomainPaths
from pyhostdev.qemu.qemu_command.refused import unbuilt_errors
from pyhostdev.qemu.qemu_domain.define import define
from pyhostdev.qemu.qemu_hostdev import find_usb_devices
from pyhostdev.util.finding import ERROR
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
    from pyhostdev.qemu.qemu_command.builder import VFIODescriptor
    from pyhostdev.util.finding import Finding

_SECRET = ": libvirt's secret driver keeps its key, and pyhostdev has no such store"  # noqa: S105 - a sentence
# elements of libvirt's grammar that we do not know -> the end of the sentence that refuses them
_ADVICE = {
    "domain/devices/hostdev/source/auth": _SECRET,
    "domain/devices/tpm/backend/encryption": _SECRET,
}
_BEFORE_MONITOR = (
    machine.build_name,
    machine.build_deprecation,
    machine.build_master_key,
    images.build_reservations,
    firmware.build_firmware_blockdevs,
    machine.build_machine,
    machine.build_tseg,
    cpu.build_cpu,
    firmware.build_loader,
    memory.build_memory,
    cpu.build_smp,
    cpu.build_iothreads,
    images.build_throttle_groups,
    memory.build_numa,
    machine.build_identity,
)
_AFTER_MONITOR = (
    clock.build_clock,
    machine.build_power,
    machine.build_boot,
    memory_device.build_modules,
    iommu.build_iommus_first,
    controller.build_global_controllers,
    controller.build_controllers,
    iommu.build_iommus_last,
    memory_device.build_virtio_memories,
    misc.build_hubs,
    controller.build_card_readers,
    disk.build_disks,
    filesystem.build_filesystems,
    build_interfaces,
    chr_.build_smartcards,
    chr_.build_serials,
    chr_.build_parallels,
    chr_.build_channels,
    chr_.build_consoles,
    tpm.build_tpms,
    graphics.build_inputs,
    audio.build_audios,
    graphics.build_graphics,
    graphics.build_videos,
    graphics.build_sounds,
    misc.build_watchdogs,
    chr_.build_redirdevs,
    build_hostdevs,
    misc.build_memballoon,
    misc.build_rngs,
    misc.build_nvram,
    misc.build_vmcoreinfo,
    build_arguments,
    machine.build_sandbox,
    machine.build_teardown,
    misc.build_panics,
    misc.build_shmems,
    misc.build_vsock,
    misc.build_cryptos,
    misc.build_pstore,
    machine.build_messages,
)


def build_command_line(
    dom: DomainDef,
    capabilities: QEMUCapabilities | None = None,
    *,
    host: HostFacts | None = None,
    state_dir: str = HostRoot("/").state_dir,
    domain_id: int = -1,
    monitor_fd: int | None = None,
    keep_together: bool = False,
    tap_fd: Callable[[Any], int] | None = None,
    device_fd: Callable[[str, Any], int | None] | None = None,
    socket_fd: Callable[[str], int] | None = None,
    vfio_fd: VFIODescriptor | None = None,
    file_fd: Callable[[str], int | None] | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
    usb_may_be_absent: bool = False,
) -> list[str]:
    """
    Return the emulator and its arguments; missing defaults and addresses are filled in on a copy of the definition.

    Args:
        capabilities: of the domain's emulator; None uses the stored ones.
        monitor_fd: a listening socket that QEMU inherits; None lets QEMU create the socket.
        keep_together: True puts the assigned functions of one host device into one guest slot.
        tap_fd: the part of ``device_fd`` for purpose "tap".
        host, device_fd, socket_fd, vfio_fd, file_fd: see ``CommandBuilder``.
        usb_may_be_absent: True lets QEMU look for a USB device that the host lacks at present.

    Raises:
        ConfigError: the definition is invalid, or we cannot build a part of it; ``others`` has further errors.

    Mirrors: qemuBuildCommandLine (src/qemu/qemu_command.c)
    """
    refuse_too_large(dom)
    errors = unmodelled_errors(dom)
    capabilities = capabilities or stored_capabilities(dom, release)
    dom = _complete(dom, errors, capabilities, partial(define, host=host, keep_together=keep_together, release=release))
    paths = DomainPaths.of(state_dir, dom.name or "", domain_id)
    opener = device_fd or _require_taps(tap_fd)
    build = CommandBuilder(dom, capabilities, paths, opener, socket_fd, release, vfio_fd, file_fd, host)
    _build_all(build, monitor_fd, usb_may_be_absent)
    raise_all([*errors, *build.errors])
    return build.args


def _complete(
    dom: DomainDef, errors: list[ConfigError], capabilities: QEMUCapabilities, define_: Callable[..., DomainDef]
) -> DomainDef:
    """
    Return the complete definition with aliases; append the errors of fields that are not built to ``errors``.

    Raises:
        ConfigError: the definition is invalid; ``others`` has the further errors.
    """
    try:
        dom = define_(dom, capabilities)
    except ConfigError as err:
        raise_all([*errors, err, *unbuilt_errors(dom)])
    errors += unbuilt_errors(dom)
    assign_aliases(dom)
    return dom


def _build_all(build: CommandBuilder, monitor_fd: int | None, usb_may_be_absent: bool) -> None:
    """Build all parts of the command line, in libvirt's order."""
    with build.collecting():
        find_usb_devices(build.dom, build.host, may_be_absent=usb_may_be_absent)
    build.add(str(build.dom.emulator))
    _build(build, _BEFORE_MONITOR)
    machine.build_monitor(build, monitor_fd)
    _build(build, _AFTER_MONITOR)


def _require_taps(tap_fd: Callable[[Any], int] | None) -> Callable[[str, Any], int | None] | None:
    """Return a device_fd that opens taps only, with tap_fd; None without tap_fd."""
    return None if tap_fd is None else lambda purpose, device: None if purpose == "usb" else tap_fd(device)


def _build(build: CommandBuilder, parts: tuple[Callable[[CommandBuilder], None], ...]) -> None:
    for part in parts:
        with build.collecting():
            part(build)


def stored_capabilities(dom: DomainDef, release: LibvirtRelease = DEFAULT_RELEASE) -> QEMUCapabilities:
    """
    Return the stored capabilities for a domain's architecture, of the QEMU release that belongs to a libvirt release.

    Raises:
        ConfigUnsupportedError: no capabilities are stored for the architecture.
    """
    from pyhostdev.qemu.qemu_capabilities import load
    from pyhostdev.qemu.qemu_postparse import host_arch

    return load((dom.os.arch if dom.os is not None else None) or host_arch(), release.qemu)


def unmodelled_errors(dom: DomainDef) -> list[ConfigError]:
    """
    Return an error, with its line, for each element and attribute of a definition that we do not know.

    An unknown name that is like a known one is reported with it. On a host device the error has the text of the plan's
    finding; a finding that is only a note is not an error.
    """
    unmodelled = [word for word in dom.unmodelled() if word[0] not in KNOWN_PATHS]
    if not unmodelled:
        return []
    reported = {(path, finding.line): finding for path, finding in words_with_paths(dom)}
    others = other_words(dom)
    found: list[ConfigError] = []
    for path, line in unmodelled:
        finding = reported.get((path, line))
        if finding is not None:
            found += _finding_errors(finding, line)
        else:
            message = others.get((path, line), f"<{path}> is not supported") + _ADVICE.get(path, "")
            found.append(ConfigUnsupportedError(message, line=line))
    return found


def _finding_errors(finding: Finding, line: int | None) -> list[ConfigError]:
    """Return a finding about an unknown name as an error; none for a note."""
    if finding.severity == ERROR:
        return [XMLError(finding.message, line=line, reason=finding.reason, address=finding.address)]
    return [ConfigUnsupportedError(finding.message, line=line)] if finding.reason == "unsupported" else []
