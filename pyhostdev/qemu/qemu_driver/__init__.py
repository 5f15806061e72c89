# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a user asks of the QEMU driver: a definition, a command line, a running guest.

Mirrors: src/qemu/qemu_driver.c
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pyhostdev.conf.hostdev_conf import MdevSource
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import ConfigError, ConfigUnsupportedError, OperationError, RefusedError, raise_all
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
from pyhostdev.qemu.qemu_capabilities.choice import choose
from pyhostdev.qemu.qemu_command import build_command_line
from pyhostdev.qemu.qemu_command.builder import DomainPaths
from pyhostdev.qemu.qemu_command.ignored import start_words
from pyhostdev.qemu.qemu_domain import memlock_limit
from pyhostdev.qemu.qemu_domain.define import define as define_domain
from pyhostdev.qemu.qemu_postparse import default_emulator, host_arch
from pyhostdev.qemu.qemu_process.access import image_obstacles
from pyhostdev.qemu.qemu_process.lifecycle import lifecycle_actions
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.virfile import is_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_process.process import GuestOutcome
    from pyhostdev.util.ownership import Ownership
    from pyhostdev.util.pciaddress import PCIDeviceAddress


def capabilities_of(
    dom: DomainDef, host: Host | None = None, choice: str | None = None, release: LibvirtRelease = DEFAULT_RELEASE
) -> QEMUCapabilities:
    """
    Return what the domain's emulator can do; ``origin`` of the answer says who said so.

    A trusted emulator of the live host is asked, or was before; stored answers serve everywhere else.

    Args:
        host: of the domain; None stands for the machine that runs this.
        choice: a stored release, a file, or "probe"; see ``qemu_capabilities.choice``.
        release: the libvirt whose QEMU's stored answers serve where the emulator cannot be asked.

    Raises:
        ConfigError: the choice cannot be had.
        ConfigUnsupportedError: the emulator cannot be asked, and nothing is stored for its architecture.
        OperationError: it does not answer.
    """
    arch = (dom.os.arch if dom.os is not None else None) or host_arch()
    may_run = host is None or host.root.is_live
    return choose(dom.emulator or default_emulator(arch), arch, choice=choice, may_run=may_run, stored=release.qemu)


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
        capabilities: of the emulator; asked for when None.
        release: the libvirt whose defaults, order and rules are meant.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is wrong, or the emulator cannot do it.

    Mirrors: qemuDomainDefineXMLFlags (src/qemu/qemu_driver.c)
    """
    capabilities = capabilities or capabilities_of(dom, host, release=release)
    return define_domain(dom, capabilities, host, keep_together=keep_together, release=release)


def domain_to_native(
    dom: DomainDef,
    host: Host,
    *,
    keep_together: bool = False,
    capabilities: QEMUCapabilities | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> list[str]:
    """
    Return the command line of a domain that could be started on this host.

    Args:
        capabilities: of the emulator; asked for when None.
        release: the libvirt whose defaults, order and rules are meant.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is wrong, or the emulator cannot do it.
        RefusedError: a host device is missing.

    Mirrors: qemuConnectDomainXMLToNative (src/qemu/qemu_driver.c)
    """
    refuse_missing(dom, host)
    capabilities = capabilities or capabilities_of(dom, host, release=release)
    errors: list[ConfigError] = []
    argv: list[str] = []
    try:
        dom.validate(host)
    except ConfigError as err:
        errors.append(err)
    try:
        argv = build_command_line(
            dom, capabilities, host=host, state_dir=host.shown_state_dir, keep_together=keep_together, release=release
        )
    except ConfigError as err:
        errors.append(err)
    raise_all(errors)
    return argv


def plan(
    host: Host,
    dom: DomainDef,
    policy: str = "auto",
    *,
    owner: str | None = None,
    accept: Iterable[str] = (),
    capabilities: QEMUCapabilities | None = None,
    keep_together: bool = False,
    ownership: Ownership | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> Plan:
    """
    Plan what happens to a domain's host devices, and tell whether ``start`` would run it.

    Args:
        capabilities: of the emulator; None uses those of the domain's own emulator.
        ownership: the user that QEMU would run as; None stands for the current user.

    Raises:
        ConfigError, ConfigUnsupportedError: the request is invalid for any host.
        SysfsError: the host cannot be read.
    """
    made = host.plan(dom, policy, owner=owner, accept=accept)
    found = start_obstacles(dom, host, capabilities, keep_together=keep_together, ownership=ownership, release=release)
    addresses = guest_addresses(dom, host, capabilities, keep_together=keep_together, release=release)
    return made.with_start_findings(found).with_guest_addresses(addresses)


def guest_addresses(
    dom: DomainDef,
    host: Host,
    capabilities: QEMUCapabilities | None = None,
    *,
    keep_together: bool = False,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> dict[PCIDeviceAddress, PCIDeviceAddress]:
    """
    Return the guest address that each assigned PCI host device gets, by its host address.

    If the definition cannot be completed, only the addresses that it contains are returned.
    """
    with suppress(ConfigError, OperationError):  # start_obstacles tells why
        dom = define(dom, host, capabilities=capabilities, keep_together=keep_together, release=release)
    places = ((hostdev.pci_address, hostdev.info.pci) for hostdev in dom.pci_hostdevs() if hostdev.is_assigned)
    return {address: place.pci for address, place in places if place is not None}


def start_obstacles(
    dom: DomainDef,
    host: Host,
    capabilities: QEMUCapabilities | None = None,
    *,
    keep_together: bool = False,
    ownership: Ownership | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> list[Finding]:
    """
    Return the findings for which ``start`` would refuse the domain, except those of its PCI host devices; and notes.

    Reason ``unsupported`` names a part of the definition that is not built, or that a guest must not run without. A
    missing image, a missing mediated device and an image that ``ownership`` cannot open have reasons of their own. A
    note ``ignored`` names a part that has no effect.
    """
    found = [*_unbuildable(dom, host, capabilities, keep_together, release), *_unfollowed(dom), *start_words(dom)]
    found += image_obstacles(dom, host, ownership)
    found += _missing_mdevs(dom, host)
    return list(dict.fromkeys(found))


def _unbuildable(
    dom: DomainDef, host: Host, capabilities: QEMUCapabilities | None, keep_together: bool, release: LibvirtRelease
) -> Iterator[Finding]:
    """Yield what makes the definition invalid on this host, and what keeps a command line from being built."""
    errors: list[ConfigError] = []
    try:
        dom.validate(host)
    except ConfigError as err:
        errors += (err, *err.others)
    try:
        build_command_line(
            dom,
            capabilities or capabilities_of(dom, host, release=release),
            host=host,
            state_dir=host.shown_state_dir,
            keep_together=keep_together,
            release=release,
        )
    except ConfigError as err:
        errors += (err, *err.others)
    except OperationError as err:
        yield Finding("unsupported", ERROR, None, str(err))
    for part in errors:
        address = None if part.address is None else str(part.address)
        yield Finding(part.reason or "unsupported", ERROR, address, part.message, part.line)


def unfollowed_errors(dom: DomainDef) -> list[ConfigError]:
    """Return an error for each setting that QEMU does not handle, and that a guest must not run without."""
    refused = (finding for finding in [*_unfollowed(dom), *start_words(dom)] if finding.severity == ERROR)
    return [ConfigUnsupportedError(finding.message, line=finding.line) for finding in refused]


def _unfollowed(dom: DomainDef) -> Iterator[Finding]:
    """Yield the words that a running guest would need and that ``start`` does not follow."""
    try:
        lifecycle_actions(dom)
    except ConfigUnsupportedError as err:
        yield Finding("unsupported", ERROR, None, err.message, dom.line)


def _missing_mdevs(dom: DomainDef, host: Host) -> Iterator[Finding]:
    for hostdev in dom.hostdevs:
        uuid = hostdev.source_def.uuid if isinstance(hostdev.source_def, MdevSource) else None
        if uuid is not None and not is_directory(host.root, host.root.mdev_device(uuid)):
            yield Finding("device-missing", ERROR, uuid, f"Mediated device {uuid} is not on this host", hostdev.line)


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


def refuse_unstartable(dom: DomainDef, host: Host, plan: Plan) -> None:
    """
    Refuse what a plan leaves to the starter of the guest, and with which QEMU would fail.

    Raises:
        RefusedError: holds one finding per fact.
    """
    found = [*plan.start_obstacles, *_missing_mdevs(dom, host)]
    if found:
        raise RefusedError(list(dict.fromkeys(found)), plan)


def refuse_missing_storage(dom: DomainDef, host: Host) -> None:
    """
    Refuse disks and other files that are not there, before QEMU finds out.

    A directory in the place of ``/`` has the host's devices; files it need not have.

    Raises:
        RefusedError: with one finding a file.
    """
    missing = [finding for finding in image_obstacles(dom, host, None) if finding.reason == "image-missing"]
    if missing:
        raise RefusedError(missing)


class Guest:
    """
    One guest to be run in the foreground: its full definition, and the means to start QEMU with it.

    Args:
        ownership: the user that QEMU runs as, without any privilege; None keeps the current user.

    Raises:
        ConfigError, ConfigUnsupportedError: the definition is invalid, or the emulator or pyhostdev does not support
            it; the first error, with the rest in ``others``.
        RefusedError: a host device is missing.
    """

    def __init__(
        self,
        dom: DomainDef,
        host: Host,
        *,
        keep_together: bool = False,
        capabilities: QEMUCapabilities | None = None,
        ownership: Ownership | None = None,
        release: LibvirtRelease = DEFAULT_RELEASE,
    ) -> None:
        refuse_missing(dom, host)
        self.host = host
        self.ownership = ownership
        self.release = release
        self.capabilities = capabilities or capabilities_of(dom, host, release=release)
        errors = unfollowed_errors(dom)
        try:  # what cannot be told to QEMU is refused now, before a device is touched
            domain_to_native(dom, host, keep_together=keep_together, capabilities=self.capabilities, release=release)
        except ConfigError as err:
            errors.insert(0, err)
        raise_all(errors)
        self.definition = define_domain(dom, self.capabilities, host, keep_together=keep_together, release=release)
        self.domain_id = os.getpid()
        self.sockets: list[str] = []
        self.argv(None, self._note_socket)

    def _note_socket(self, path: str) -> int:
        self.sockets.append(path)
        return -1

    def argv(self, monitor_fd: int | None, socket_fd: Callable[[str], int] | None = None) -> list[str]:
        """Return QEMU's command line with the monitor, and what else listens, on inherited descriptors."""
        return build_command_line(
            self.definition,
            self.capabilities,
            host=self.host,
            state_dir=os.path.abspath(self.host.state_dir),
            domain_id=self.domain_id,
            monitor_fd=monitor_fd,
            socket_fd=socket_fd,
            release=self.release,
        )

    def run(self, manager: HostdevManager, plan: Plan, *, log_path: str | None = None) -> GuestOutcome:
        """
        Detach the devices, run QEMU to its end, and give the devices back, whatever happens in between.

        Signals that ask us to end are held back but while QEMU runs, whose end they are then.

        Raises:
            RefusedError: the plan does not hold any more, or QEMU would fail with it; nothing was touched.
            OperationError, SysfsError: a socket cannot be made, a device could not be detached or given back, or QEMU
                did not start.

        Mirrors: qemuProcessStart, qemuProcessStop (src/qemu/qemu_process.c)
        """
        from pyhostdev.qemu.qemu_process.process import held_signals, run_guest
        from pyhostdev.qemu.qemu_process.sockets import ListeningSockets

        refuse_unstartable(self.definition, self.host, plan)
        obstacles = image_obstacles(self.definition, self.host, self.ownership)
        if obstacles:
            raise RefusedError(obstacles)
        paths = DomainPaths.of(os.path.abspath(self.host.state_dir), self.definition.name or "", self.domain_id)
        node_owner = None if self.ownership is None else (self.ownership.uid, self.ownership.gid)
        with (
            held_signals(),
            ListeningSockets(self.sockets, paths.channels) as sockets,
            manager.prepared(plan, node_owner=node_owner),
        ):
            return run_guest(
                lambda monitor_fd: self.argv(monitor_fd, sockets.fd),
                dom=self.definition,
                runtime_dir=paths.lib_dir,
                memlock_limit=memlock_limit(self.definition),
                log_path=log_path,
                ownership=self.ownership,
                pass_fds=sockets.fds,
            )
