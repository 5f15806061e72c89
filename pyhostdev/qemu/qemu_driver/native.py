# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A domain that is not started: its capabilities, its complete definition, its command line.

Mirrors: qemuDomainDefineXMLFlags, qemuConnectDomainXMLToNative (src/qemu/qemu_driver.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import ConfigError, RefusedError, raise_all
from pyhostdev.hypervisor.network_pool import pool_obstacles, reading_networks_once, with_pool_functions
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
from pyhostdev.qemu.qemu_capabilities.choice import choose
from pyhostdev.qemu.qemu_command import build_command_line
from pyhostdev.qemu.qemu_domain.define import define as define_domain
from pyhostdev.qemu.qemu_driver.refusals import as_findings, missing_functions
from pyhostdev.qemu.qemu_postparse import default_emulator, host_arch

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.host import Host


def capabilities_of(
    dom: DomainDef, host: Host | None = None, choice: str | None = None, release: LibvirtRelease = DEFAULT_RELEASE
) -> QEMUCapabilities:
    """
    Return the capabilities of a domain's emulator; their ``origin`` names the source.

    A trusted emulator of the live host is probed, or its cached answers are used; otherwise stored capabilities are
    used.

    Args:
        host: of the domain; None means this machine.
        choice: a stored release, a file, or "probe"; see ``qemu_capabilities.choice``.
        release: the libvirt release; it decides which stored capabilities are used.

    Raises:
        ConfigError: the choice is invalid.
        ConfigUnsupportedError: the emulator cannot be probed, and no capabilities are stored for its architecture.
        OperationError: the emulator does not answer.
    """
    arch = (dom.os.arch if dom.os is not None else None) or host_arch()
    may_run = host is None or host.root.is_live
    machine = dom.os.machine if dom.os is not None else None
    emulator = dom.emulator or default_emulator(arch)
    return choose(emulator, arch, choice=choice, may_run=may_run, stored=release.qemu, machine=machine)


def define(
    dom: DomainDef,
    host: Host | None = None,
    *,
    keep_together: bool = False,
    capabilities: QEMUCapabilities | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> DomainDef:
    """
    Return a copy with defaults and guest addresses, valid for its emulator.

    Args:
        capabilities: of the emulator; None looks them up.
        release: the libvirt release whose defaults, order and rules apply.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is invalid, or the emulator does not support it.

    Mirrors: qemuDomainDefineXMLFlags (src/qemu/qemu_driver.c)
    """
    capabilities = capabilities or capabilities_of(dom, host, release=release)
    return define_domain(dom, capabilities, host, keep_together=keep_together, release=release)


def as_started(
    dom: DomainDef, host: Host, capabilities: QEMUCapabilities, *, keep_together: bool, release: LibvirtRelease
) -> DomainDef:
    """
    Return a domain with the functions that it gets from networks' pools; unchanged without any.

    The guest addresses are chosen before: an interface keeps its address, whatever function it gets.

    Raises:
        ConfigError: the definition is invalid.
        SysfsError: the host cannot be read.
    """
    if with_pool_functions(dom, host) is dom:
        return dom
    defined = define_domain(dom, capabilities, host, keep_together=keep_together, release=release)
    return with_pool_functions(defined, host)


def domain_to_native(
    dom: DomainDef,
    host: Host,
    *,
    keep_together: bool = False,
    capabilities: QEMUCapabilities | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
    usb_may_be_absent: bool = False,
) -> list[str]:
    """
    Return the command line for starting a domain on this host.

    Args:
        capabilities: of the emulator; None looks them up.
        release: the libvirt release whose defaults, order and rules apply.
        usb_may_be_absent: True lets QEMU look for a USB device that the host lacks at present.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is invalid, or the emulator does not support it.
        RefusedError: a host device or a function of a network's pool is missing; it has the other errors, too.

    Mirrors: qemuConnectDomainXMLToNative (src/qemu/qemu_driver.c)
    """
    host = reading_networks_once(host)
    absent = [*missing_functions(dom, host), *pool_obstacles(with_pool_functions(dom, host), host)]
    capabilities = capabilities or capabilities_of(dom, host, release=release)
    errors, argv = _validation_errors(dom, host), list[str]()
    try:
        argv = build_command_line(
            as_started(dom, host, capabilities, keep_together=keep_together, release=release),
            capabilities,
            host=host,
            state_dir=host.shown(host.state_dir),
            keep_together=keep_together,
            release=release,
            usb_may_be_absent=usb_may_be_absent,
        )
    except ConfigError as err:
        errors.append(err)
    if absent:
        raise RefusedError([*absent, *as_findings(errors)])
    raise_all(errors)
    return argv


def _validation_errors(dom: DomainDef, host: Host) -> list[ConfigError]:
    """Return the error of an invalid definition, which has further ones in ``others``; empty if it is valid."""
    try:
        dom.validate(host)
    except ConfigError as err:
        return [err]
    return []
