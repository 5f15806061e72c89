# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a user asks of the QEMU driver: a definition, a command line, a running guest.

Mirrors: src/qemu/qemu_driver.c
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pyhostdev.errors import RefusedError, SysfsError
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities, for_emulator
from pyhostdev.qemu.qemu_command import build_command_line
from pyhostdev.qemu.qemu_command_builder import DomainPaths
from pyhostdev.qemu.qemu_define import define as define_domain
from pyhostdev.qemu.qemu_domain import memlock_limit
from pyhostdev.qemu.qemu_postparse import default_emulator, host_arch
from pyhostdev.util.finding import ERROR, Finding

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_process import GuestOutcome


def capabilities_of(dom: DomainDef) -> QEMUCapabilities:
    """
    Ask the domain's emulator what it can do; stored answers serve where it is not installed.

    Raises:
        ConfigUnsupportedError: it is not installed, and nothing is stored for its architecture.
        OperationError: it does not answer.
    """
    arch = (dom.os.arch if dom.os is not None else None) or host_arch()
    return for_emulator(dom.emulator or default_emulator(arch), arch)


def define(dom: DomainDef, host: Host | None = None, *, keep_together: bool = False) -> DomainDef:
    """
    Return a copy with defaults and guest addresses, valid for its emulator.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is wrong, or the emulator cannot do it.

    Mirrors: qemuDomainDefineXMLFlags (src/qemu/qemu_driver.c)
    """
    return define_domain(dom, capabilities_of(dom), host, keep_together=keep_together)


def domain_to_native(dom: DomainDef, host: Host, *, keep_together: bool = False) -> list[str]:
    """
    Return the command line of a domain that could be started on this host.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is wrong, or the emulator cannot do it.
        RefusedError: a host device is missing.

    Mirrors: qemuConnectDomainXMLToNative (src/qemu/qemu_driver.c)
    """
    refuse_missing(dom, host)
    dom.validate(host)
    return build_command_line(
        dom, capabilities_of(dom), host=host, state_dir=host.state_dir, keep_together=keep_together
    )


def refuse_missing(dom: DomainDef, host: Host) -> None:
    """
    Refuse host devices that the host does not have.

    Raises:
        RefusedError: with one finding a device.
    """
    missing = [h.pci_address for h in dom.pci_hostdevs() if host.pci_device(h.pci_address) is None]
    if missing:
        findings = [Finding("device-missing", ERROR, a, f"Device {a} is not on this host") for a in missing]
        raise RefusedError(findings)


def refuse_missing_storage(dom: DomainDef, host: Host) -> None:
    """
    Refuse disks whose file or block device is not there, before QEMU finds out.

    A directory in the place of ``/`` has the host's devices; files it need not have.

    Raises:
        SysfsError: naming the first of them (ENOENT).
    """
    for disk in dom.disks:
        path = None
        if disk.source is not None and disk.type == "block":
            path = disk.source.dev
        elif disk.source is not None and disk.type == "file" and host.root.is_live:
            path = disk.source.file
        if path is not None and not os.path.exists(host.root.join(path.lstrip("/"))):
            raise SysfsError(errno.ENOENT, path, f"find what is behind disk '{disk.target}'")


class Guest:
    """
    One guest to be run in the foreground: its full definition, and how QEMU is told about it.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is wrong, or the emulator cannot do it.
        RefusedError: a host device is missing.
    """

    def __init__(self, dom: DomainDef, host: Host, *, keep_together: bool = False) -> None:
        refuse_missing(dom, host)
        dom.validate(host)
        self.host = host
        self.capabilities = capabilities_of(dom)
        self.definition = define_domain(dom, self.capabilities, host, keep_together=keep_together)
        self.domain_id = os.getpid()
        self.argv(None)  # what cannot be told to QEMU is refused now, before a device is touched

    def argv(self, monitor_fd: int | None) -> list[str]:
        """Return QEMU's command line with the monitor on this descriptor."""
        return build_command_line(
            self.definition,
            self.capabilities,
            host=self.host,
            state_dir=self.host.state_dir,
            domain_id=self.domain_id,
            monitor_fd=monitor_fd,
        )

    def run(self, manager: HostdevManager, plan: Plan, *, log_path: str | None = None) -> GuestOutcome:
        """
        Detach the devices, run QEMU to its end, and give the devices back, whatever happens in between.

        Raises:
            RefusedError: the plan does not hold any more; nothing was touched.
            OperationError, SysfsError: a disk is missing, a device could not be detached or given back, or QEMU did
                not start.

        Mirrors: qemuProcessStart, qemuProcessStop (src/qemu/qemu_process.c)
        """
        from pyhostdev.qemu.qemu_process import run_guest

        refuse_missing_storage(self.definition, self.host)
        paths = DomainPaths.of(self.host.state_dir, self.definition.name, self.domain_id)
        with manager.prepared(plan):
            return run_guest(
                self.argv,
                dom=self.definition,
                runtime_dir=paths.lib_dir,
                memlock_limit=memlock_limit(self.definition),
                log_path=log_path,
            )
