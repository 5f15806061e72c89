# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The QEMU driver: plan a domain, find what prevents its start, and run it.

Mirrors: src/qemu/qemu_driver.c
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.conf.newer_words import newer_word_notes
from pyhostdev.conf.unknown_words import repeated_words
from pyhostdev.errors import ConfigError, ConfigUnsupportedError, OperationError, RefusedError, raise_all
from pyhostdev.hypervisor.network_pool import pool_notes, reading_networks_once, with_pool_functions
from pyhostdev.hypervisor.vf_network import VFNetwork, vf_consents, vf_obstacles
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
from pyhostdev.qemu.qemu_command import build_command_line
from pyhostdev.qemu.qemu_command.ignored import start_findings
from pyhostdev.qemu.qemu_command.namespace import environment_of
from pyhostdev.qemu.qemu_command.paths import DomainPaths
from pyhostdev.qemu.qemu_domain import memlock_limit
from pyhostdev.qemu.qemu_domain.define import define as define_domain
from pyhostdev.qemu.qemu_driver.native import as_started, capabilities_of, define, domain_to_native
from pyhostdev.qemu.qemu_driver.refusals import (
    as_findings,
    missing_extra,
    missing_mdevs,
    refuse_missing,
    refuse_missing_storage,
    refuse_unstartable,
    root_notes,
    unknown_cpu_model,
)
from pyhostdev.qemu.qemu_firmware import choose_at_start
from pyhostdev.qemu.qemu_hostdev import absent_usb, without_absent_usb
from pyhostdev.qemu.qemu_process.access import image_obstacles
from pyhostdev.qemu.qemu_process.interface import interface_obstacles
from pyhostdev.qemu.qemu_process.iommufd import functions_by_iommufd, iommufd_obstacles, vfio_nodes
from pyhostdev.qemu.qemu_process.lifecycle import lifecycle_actions
from pyhostdev.qemu.qemu_process.listeners import choose_ports, listener_obstacles
from pyhostdev.qemu.qemu_process.optional_media import absent_media, without_absent_media
from pyhostdev.qemu.qemu_process.resources import resource_obstacles
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_command.builder import VFIODescriptor
    from pyhostdev.qemu.qemu_process.descriptors import DeviceDescriptors
    from pyhostdev.qemu.qemu_process.iommufd import FDGroups
    from pyhostdev.qemu.qemu_process.process import GuestOutcome
    from pyhostdev.qemu.qemu_process.sockets import ListeningSockets
    from pyhostdev.qemu.qemu_process.vfiofds import VFIODescriptors
    from pyhostdev.util.ownership import Ownership
    from pyhostdev.util.pciaddress import PCIDeviceAddress

__all__ = [
    "Guest",
    "capabilities_of",
    "define",
    "domain_to_native",
    "guest_addresses",
    "plan",
    "refuse_missing",
    "refuse_missing_storage",
    "refuse_unstartable",
    "start_obstacles",
    "unsupported_namespace_errors",
]


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
    fd_groups: FDGroups | None = None,
) -> Plan:
    """
    Return the plan for a domain's host devices, with the findings for which ``start`` would refuse the domain.

    Args:
        capabilities: of the emulator; None uses those of the domain's own emulator.
        ownership: the user that QEMU would run as; None means the current user.
        fd_groups: the descriptors that the caller would pass, by the name of their group.

    Raises:
        ConfigError, ConfigUnsupportedError: the request is invalid for any host.
        SysfsError: the host cannot be read.
    """
    host = reading_networks_once(host)
    with_functions = with_pool_functions(dom, host, owner)
    accept = [*accept, *vf_consents(with_functions)]
    made = host.plan(with_functions, policy, owner=owner, accept=accept, release=release)
    found = start_obstacles(
        dom,
        host,
        capabilities,
        keep_together=keep_together,
        ownership=ownership,
        release=release,
        fd_groups=fd_groups,
    )
    addresses = guest_addresses(dom, host, capabilities, keep_together=keep_together, release=release)
    made = made.with_start_findings(found).with_guest_addresses(addresses)
    return made.with_nodes(vfio_nodes(with_functions, host, release))


def guest_addresses(
    dom: DomainDef,
    host: Host,
    capabilities: QEMUCapabilities | None = None,
    *,
    keep_together: bool = False,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> dict[PCIDeviceAddress, PCIDeviceAddress]:
    """
    Return the guest address of each assigned PCI host device, by its host address.

    If the definition cannot be completed, only the addresses that it contains are returned.
    """
    with suppress(ConfigError, OperationError):  # start_obstacles reports the error
        dom = define(dom, host, capabilities=capabilities, keep_together=keep_together, release=release)
    dom = with_pool_functions(dom, host)
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
    fd_groups: FDGroups | None = None,
) -> list[Finding]:
    """
    Return the findings for which ``start`` would refuse the domain, and notes; PCI host devices are left to the plan.

    Reason ``unsupported`` names a part of the definition that we cannot build, or that a guest must not run without. A
    missing image, a missing mediated device and an image that ``ownership`` cannot open have separate reasons. A note
    ``ignored`` names a part that has no effect.
    """
    host = reading_networks_once(host)
    found = [
        *_build_errors(dom, host, capabilities, keep_together, release),
        *host_obstacles(dom, host, ownership=ownership, release=release, fd_groups=fd_groups),
    ]
    return list(dict.fromkeys(found))


def host_obstacles(
    dom: DomainDef,
    host: Host,
    *,
    ownership: Ownership | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
    fd_groups: FDGroups | None = None,
) -> list[Finding]:
    """Return those of ``start_obstacles`` that need not know the emulator's capabilities."""
    host = reading_networks_once(host)
    started = with_pool_functions(dom, host)
    found = [*_validation_findings(dom, host), *_unsupported_namespace(dom), *start_findings(started)]
    found += [*newer_word_notes(dom, release), *repeated_words(dom)]
    found += image_obstacles(dom, host, ownership)
    found += iommufd_obstacles(dom, host, release, fd_groups)
    found += [*missing_extra(host), *missing_mdevs(dom, host)]
    found += [*interface_obstacles(started, host), *vf_obstacles(started, host), *absent_usb(dom, host)]
    found += [*pool_notes(started), *root_notes(dom, host), *absent_media(dom, host)]
    found += [*resource_obstacles(dom, host), *listener_obstacles(dom, host, ownership)]
    return list(dict.fromkeys(found))


def _build_errors(
    dom: DomainDef, host: Host, capabilities: QEMUCapabilities | None, keep_together: bool, release: LibvirtRelease
) -> Iterator[Finding]:
    """Yield the errors of building the command line."""
    errors: list[ConfigError] = []
    try:
        capabilities = capabilities or capabilities_of(dom, host, release=release)
        build_command_line(
            as_started(dom, host, capabilities, keep_together=keep_together, release=release),
            capabilities,
            host=host,
            state_dir=host.shown(host.state_dir),
            keep_together=keep_together,
            release=release,
        )
    except ConfigError as err:
        errors.append(err)
    except OperationError as err:
        yield Finding("unsupported", ERROR, None, str(err))
    if capabilities is not None:
        yield from unknown_cpu_model(dom, capabilities)
    yield from as_findings(errors)


def _validation_findings(dom: DomainDef, host: Host) -> list[Finding]:
    try:
        dom.validate(host)
    except ConfigError as err:
        return as_findings([err])
    return []


def unsupported_namespace_errors(dom: DomainDef) -> list[ConfigError]:
    """Return an error for each setting that ``start`` does not implement and that a guest must not run without."""
    refused = (finding for finding in [*_unsupported_namespace(dom), *start_findings(dom)] if finding.severity == ERROR)
    return [ConfigUnsupportedError(finding.message, line=finding.line, reason=finding.reason) for finding in refused]


def _unsupported_namespace(dom: DomainDef) -> Iterator[Finding]:
    """Yield an error for the lifecycle actions that ``start`` does not implement."""
    try:
        lifecycle_actions(dom)
    except ConfigUnsupportedError as err:
        yield Finding("unsupported", ERROR, None, err.message, dom.line)


class _Opened(NamedTuple):
    """The descriptors that were opened for QEMU."""

    sockets: ListeningSockets
    devices: DeviceDescriptors
    vfio: VFIODescriptors
    lock_fds: tuple[int, ...]

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors that QEMU inherits."""
        return (*self.sockets.fds, *self.devices.fds, *self.lock_fds, *self.vfio.fds)


class Guest:
    """
    One guest to run in the foreground: its complete definition, and all that is needed to start QEMU.

    Args:
        ownership: the user that QEMU runs as, without any privilege; None keeps the current user.
        fd_groups: descriptors that the caller passes, by the name of their group; the caller closes them.

    ``notes`` has a sentence for each port that differs from the one that ``argv`` prints.

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
        fd_groups: FDGroups | None = None,
    ) -> None:
        refuse_missing(dom, host)
        self.fd_groups = dict(fd_groups or {})
        self.host = host
        self.ownership = ownership
        self.release = release
        self.capabilities = capabilities or capabilities_of(dom, host, release=release)
        errors = unsupported_namespace_errors(dom)
        try:  # a definition that cannot be built is refused now, before a device is touched
            domain_to_native(dom, host, keep_together=keep_together, capabilities=self.capabilities, release=release)
        except ConfigError as err:
            errors.insert(0, err)
        raise_all(errors)
        defined = define_domain(dom, self.capabilities, host, keep_together=keep_together, release=release)
        choose_at_start(defined, host, release)
        present = without_absent_media(without_absent_usb(defined, host), host)
        self.definition = with_pool_functions(present, host)
        self.notes = choose_ports(self.definition, host)
        self.domain_id = os.getpid()
        self.sockets: list[str] = []
        self.argv(None, self._note_socket)

    def _note_socket(self, path: str) -> int:
        self.sockets.append(path)
        return -1

    def argv(
        self,
        monitor_fd: int | None,
        socket_fd: Callable[[str], int] | None = None,
        device_fd: Callable[[str, Any], int | None] | None = None,
        vfio_fd: VFIODescriptor | None = None,
    ) -> list[str]:
        """Return QEMU's command line, with inherited descriptors for the monitor, other sockets and iommufd."""
        return build_command_line(
            self.definition,
            self.capabilities,
            host=self.host,
            state_dir=os.path.abspath(self.host.state_dir),
            domain_id=self.domain_id,
            monitor_fd=monitor_fd,
            socket_fd=socket_fd,
            device_fd=device_fd,
            vfio_fd=vfio_fd,
            release=self.release,
        )

    def run(self, manager: HostdevManager, plan: Plan, *, log_path: str | None = None) -> GuestOutcome:
        """
        Detach the devices, run QEMU until it ends or this process gets a signal, and reattach the devices.

        Raises:
            RefusedError: the plan is outdated, or QEMU would fail; nothing was touched.
            OperationError, SysfsError: a socket cannot be created, a device cannot be detached or reattached, or QEMU
                did not start.

        Mirrors: qemuProcessStart, qemuProcessStop (src/qemu/qemu_process.c)
        """
        from pyhostdev.qemu.qemu_process.daemons import daemons_of
        from pyhostdev.qemu.qemu_process.descriptors import DeviceDescriptors
        from pyhostdev.qemu.qemu_process.process import held_signals
        from pyhostdev.qemu.qemu_process.sockets import GuestFiles, ListeningSockets
        from pyhostdev.qemu.qemu_process.variables import make_variables

        self._refuse(plan, log_path)
        owner = self.definition.name or ""
        paths = DomainPaths.of(os.path.abspath(self.host.state_dir), owner, self.domain_id)
        daemons = daemons_of(self.definition, paths, self.ownership, self.host)
        make_variables(self.definition.os, self.ownership)
        node_owner = None if self.ownership is None else (self.ownership.uid, self.ownership.gid)
        with (
            held_signals(),
            GuestFiles(self.host, owner, self.sockets, [paths.lib_dir, paths.channels]) as files,
            ListeningSockets(self.sockets, paths.channels) as sockets,
            DeviceDescriptors(self.definition, self.host) as devices,
            daemons,
            manager.prepared(plan, node_owner=node_owner, by_descriptor=functions_by_iommufd(self.definition)),
            self._vfio_descriptors() as vfio,  # closed before the devices are reattached
            ExitStack() as undo,
        ):
            networks = VFNetwork(self.host, owner, undo)
            networks.set_all(self.definition)
            opened = _Opened(sockets, devices, vfio, (*files.lock_fds, *daemons.lock_fds, *networks.lock_fds))
            try:
                return self._run_qemu(paths.lib_dir, opened, node_owner, log_path)
            except OperationError as err:
                err.message = "; ".join([err.message, *daemons.failures()])
                raise

    def _run_qemu(
        self, runtime_dir: str, opened: _Opened, node_owner: tuple[int, int] | None, log_path: str | None
    ) -> GuestOutcome:
        """Run QEMU with the descriptors that were opened for it."""
        from pyhostdev.qemu.qemu_hotplug.owner import GuestOwner
        from pyhostdev.qemu.qemu_process.process import run_guest
        from pyhostdev.qemu.qemu_process.tuning import apply_tuning, guest_environment

        return run_guest(
            lambda monitor_fd: self.argv(monitor_fd, opened.sockets.fd, opened.devices.fd, opened.vfio.fd),
            dom=self.definition,
            runtime_dir=runtime_dir,
            memlock_limit=memlock_limit(self.definition),
            log_path=log_path,
            ownership=self.ownership,
            pass_fds=opened.fds,
            on_spawned=opened.vfio.close,
            environment={**guest_environment(self.definition), **environment_of(self.definition)},
            links_down=opened.devices.links_down,
            control=GuestOwner(self.definition, self.host, self.capabilities, self.release, node_owner),
            before_running=partial(apply_tuning, self.definition),
        )

    def _refuse(self, plan: Plan, log_path: str | None) -> None:
        """
        Refuse a start with which QEMU would fail, for reasons that the plan does not cover.

        Raises:
            RefusedError: holds one finding per fact.
            OperationError: the log cannot be opened.
        """
        from pyhostdev.qemu.qemu_process.log import RollingLog

        refuse_unstartable(self.definition, self.host, plan)
        obstacles = image_obstacles(self.definition, self.host, self.ownership)
        obstacles += iommufd_obstacles(self.definition, self.host, self.release, self.fd_groups)
        found = [*interface_obstacles(self.definition, self.host), *vf_obstacles(self.definition, self.host)]
        obstacles += (finding for finding in found if finding.severity == ERROR)
        obstacles += resource_obstacles(self.definition, self.host)
        obstacles += listener_obstacles(self.definition, self.host, self.ownership)
        if obstacles:
            raise RefusedError(obstacles)
        if log_path is not None:
            RollingLog(log_path).close()

    def _vfio_descriptors(self) -> VFIODescriptors:
        from pyhostdev.qemu.qemu_process.vfiofds import VFIODescriptors

        handed_over = self.fd_groups.get(self.definition.iommufd_fdgroup or "", ())
        return VFIODescriptors(
            self.host,
            functions_by_iommufd(self.definition),
            iommufd=next(iter(handed_over), None) if self.definition.iommufd_fdgroup is not None else None,
            needed=self.definition.needs_iommufd(),
        )
