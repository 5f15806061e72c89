# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The manager of a host's PCI host devices: prepare them for a guest, release them, list their owners.

Mirrors: src/hypervisor/virhostdev.c. The order is libvirt's (check all, detach all, mark active, set owner). The
differences: lists are on disk, a completeness policy is part of the check, and each step can be undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import ConfigError, DeviceInUseError, HostdevError, RefusedError
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.hostdev_context import HostdevContext
from pyhostdev.util.deprecation import warn_renamed
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.journal import Journal, Record
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.transaction import deferred_signals
from pyhostdev.util.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.hypervisor.hostdev_result import RecoveryResult
    from pyhostdev.hypervisor.hostdev_status import Status


_IN_CONTEXT = ("locked", "restorer", "writer")  # attributes that older versions had on the manager


class HostdevManager:
    """
    Prepares host devices for domains and releases them.

    A prepared device keeps its owner until ``release``, even if the process ends. One object serves one thread at a
    time; processes exclude each other through the state directory. After a fork the child creates its own manager:
    this one refuses every change there.

    Args:
        journal: where records are kept; one in the host's ``state_dir`` by default.

    Raises:
        ConfigError: the host is read only.

    Mirrors: virHostdevManager (src/hypervisor/virhostdev.h)
    """

    def __init__(self, host: Host, *, journal: Journal | None = None) -> None:
        self.context = HostdevContext(host, journal)

    @property
    def host(self) -> Host:
        """The host whose devices are managed."""
        return self.context.host

    @property
    def root(self) -> HostRoot:
        """The paths of that host."""
        return self.context.root

    @property
    def journal(self) -> Journal:
        """The records."""
        return self.context.journal

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a part of the context under its old spelling, with a warning."""
            if name not in _IN_CONTEXT:
                raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
            warn_renamed(name, f"context.{name}")
            return getattr(self.context, name)

    def status(self) -> Status:
        """
        Return the lists.

        Mirrors: the activePCIHostdevs and inactivePCIHostdevs of virHostdevManager
        """
        from pyhostdev.hypervisor.hostdev_status import read_status

        return read_status(self.journal.state)

    def prepare(
        self,
        plan: Plan,
        owner: str | None = None,
        *,
        node_owner: tuple[int, int] | None = None,
        by_descriptor: Iterable[PCIDeviceAddress | str] = (),
    ) -> bool:
        """
        Execute a plan: make it again and, if it still has no obstacles, detach all devices and record the owner.

        Repeating exactly the same call is a success: hooks may be called more than once.

        Args:
            owner: the owner of the devices; the plan's domain by default.
            node_owner: uid and gid that own the guest's nodes below ``/dev/vfio`` until its release.
            by_descriptor: functions that the guest gets as open descriptors, so that their nodes are not given.

        Returns:
            False if the owner already had all of it, and nothing was done.

        Raises:
            ConfigUnsupportedError: the host's writer cannot change the owner of nodes.
            RefusedError: the plan has obstacles; nothing was touched.
            OperationError, SysfsError: a step failed; the steps before it were rolled back.

        Mirrors: virHostdevPreparePCIDevices (src/hypervisor/virhostdev.c)
        """
        return self._prepare(plan, owner or plan.owner, node_owner, may_have_it=True, by_descriptor=by_descriptor)

    def _prepare(
        self,
        plan: Plan,
        owner: str,
        node_owner: tuple[int, int] | None,
        *,
        may_have_it: bool,
        by_descriptor: Iterable[PCIDeviceAddress | str] = (),
    ) -> bool:
        from pyhostdev.hypervisor.hostdev_prepare import execute, is_prepared_already, refuse_active, replaced_since

        opened = {PCIDeviceAddress.of(address) for address in by_descriptor}
        addresses = [request.address for request in plan.requests]
        with deferred_signals() as interrupted, self.context.locked(addresses, owner):
            records, bad = self.journal.read()
            fresh = self._planned_again(plan, owner, records)
            if may_have_it and is_prepared_already(fresh, owner, node_owner, records):
                return False
            obstacles = (*fresh.obstacles, *replaced_since(plan, fresh))
            if obstacles:
                raise RefusedError(obstacles, fresh)
            refuse_active(records, addresses)
            for item in bad:
                self.journal.set_aside(item)
            execute(self.context, fresh, owner, records, interrupted, node_owner, opened)
        return True

    def _planned_again(self, plan: Plan, owner: str, records: dict[PCIDeviceAddress, Record]) -> Plan:
        from pyhostdev.hypervisor.hostdev_planner import build_plan

        if plan.definition is None:
            raise ConfigError("A plan without its domain cannot be executed")
        return build_plan(
            self.host,
            plan.definition,
            owner=owner,
            policy=plan.policy,
            records=records,
            occupied=plan.occupied,
            accept=[f"{reason}:{address}" for reason, address in plan.accepted],
            release=plan.release,
        ).with_plugs(plan.plugs)

    @contextmanager
    def prepared(
        self,
        plan: Plan,
        owner: str | None = None,
        *,
        node_owner: tuple[int, int] | None = None,
        by_descriptor: Iterable[PCIDeviceAddress | str] = (),
    ) -> Iterator[None]:
        """
        Prepare on enter, release on exit; every holder of the devices must end within the block.

        An error of the block gets ``rolled_back`` after the release, unless it already says whether all was undone.

        Args:
            node_owner: as in ``prepare``.
            by_descriptor: functions that the guest gets as open descriptors, so that their nodes are not given.

        Raises:
            RefusedError, OperationError, SysfsError: as ``prepare`` and ``release``.
        """
        owner = owner or plan.owner
        self._prepare(
            plan, owner, node_owner, may_have_it=False, by_descriptor=by_descriptor
        )  # devices of another call are not released here
        try:
            yield
        except BaseException as err:
            self.release(owner, guest_ended=True)
            if isinstance(err, HostdevError) and err.rolled_back is None:
                err.rolled_back = True
            raise
        self.release(owner, guest_ended=True)

    def release(self, owner: str, *, guest_ended: bool = False) -> list[PCIDeviceAddress]:
        """
        Release an owner's devices, and return their addresses, empty if it has none; every device is tried.

        A managed device that pyhostdev detached is bound to its driver. A managed device that already had its stub
        leaves the lists. An unmanaged device stays detached, on the inactive list. The call waits for a prepare of this
        owner in progress, and up to ten seconds for a holder that is ending.

        Args:
            guest_ended: the owner's QEMU has ended, so a remaining holder is about to release the group.

        Raises:
            DeviceInUseError: a process has a device's group open, a prepare of this owner takes too long, or a newer
                program wrote a record; nothing was touched.
            OperationError: a device could not be restored; its record stays and the call can be repeated.

        Mirrors: virHostdevReAttachPCIDevices (src/hypervisor/virhostdev.c)
        """
        from pyhostdev.hypervisor.hostdev_release import release

        return release(self.context, owner, lambda record: True, guest_ended=guest_ended)

    def recover(self, *, include_prepared: bool = False, timeout_s: float = 30.0) -> list[RecoveryResult]:
        """
        Finish or undo what a crash interrupted, and return the outcome of each record.

        Args:
            include_prepared: also release prepared devices whose group is not held open.
            timeout_s: how long to wait, in total, for writes that have not returned from the kernel.

        Raises:
            SysfsError: the state directory cannot be read.
        """
        from pyhostdev.hypervisor.guest_journal import GuestJournal
        from pyhostdev.hypervisor.hostdev_recover import recover
        from pyhostdev.hypervisor.netdev_journal import MacvtapJournal
        from pyhostdev.hypervisor.program_journal import ProgramJournal
        from pyhostdev.hypervisor.usb_journal import USBJournal
        from pyhostdev.hypervisor.vf_network import VFJournal

        others: list[RecoveryResult] = []
        if self.host.root.is_live:  # processes, sockets and interfaces belong to the live host, even with another root
            # a host driver reads the settings of its virtual function when it binds
            others = [*VFJournal(self.host).recover(), *MacvtapJournal(self.host).recover()]
            others += [*ProgramJournal(self.host).recover(), *USBJournal(self.host).recover()]
        found = recover(self.context, include_prepared=include_prepared, timeout_s=timeout_s)
        # last, because a pending change needs these files
        files = GuestJournal(self.host).recover() if self.host.root.is_live else ()
        return [*found, *others, *files]

    def prepare_pci_devices(
        self,
        driver_name: str,
        domain_name: str,
        hostdevs: Iterable[DomainHostdevDef],
        *,
        policy: str = "auto",
        accept: Iterable[str] = (),
    ) -> None:
        """
        Prepare hostdevs as libvirt's call of this name does, with a completeness policy.

        Args:
            driver_name: the hypervisor's name; only used in errors, because domains are identified by name.
            domain_name: the owner.
            hostdevs: PCI DomainHostdevDef objects; may be empty.
            accept: consents to losses of the host, each as REASON:ADDRESS or REASON:SELECTOR.

        Raises:
            DeviceInUseError: a device already belongs to a domain.
            RefusedError, OperationError, SysfsError: as ``prepare``.

        Mirrors: virHostdevPreparePCIDevices (src/hypervisor/virhostdev.c)
        """
        from pyhostdev.conf.domain_conf import DomainDef
        from pyhostdev.hypervisor.hostdev_planner import build_plan

        records, _ = self.journal.read()
        plan = build_plan(
            self.host,
            DomainDef(hostdevs=list(hostdevs)),
            owner=domain_name,
            policy=policy,
            records=records,
            accept=accept,
        )
        _refuse_used(plan, driver_name, domain_name)
        self._prepare(plan, domain_name, None, may_have_it=False)

    def reattach_pci_devices(self, driver_name: str, domain_name: str, hostdevs: Iterable[DomainHostdevDef]) -> None:
        """
        Release those hostdevs that the domain owns; others are skipped.

        Raises:
            OperationError: as ``release``.

        Mirrors: virHostdevReAttachPCIDevices (src/hypervisor/virhostdev.c)
        """
        wanted = {hostdev.pci_address for hostdev in hostdevs}
        from pyhostdev.hypervisor.hostdev_release import release

        release(self.context, domain_name, lambda record: record.address in wanted, guest_ended=False)

    def update_active_pci_devices(
        self, driver_name: str, domain_name: str, hostdevs: Iterable[DomainHostdevDef]
    ) -> None:
        """
        Record the devices of a running domain, after a restart of a program that did not prepare them here.

        A device with a record keeps it. A device without a record gets one with its present driver and moved=False, so
        a release leaves it there. A missing device is skipped.

        Raises:
            DeviceInUseError: a device belongs to another domain; nothing was recorded.
            SysfsError: the journal cannot be written.

        Mirrors: virHostdevUpdateActivePCIDevices (src/hypervisor/virhostdev.c)
        """
        from pyhostdev.hypervisor.hostdev_update import update_active

        wanted = [hostdev for hostdev in hostdevs if self.host.pci_device(hostdev.pci_address) is not None]
        with deferred_signals(), self.context.locked([hostdev.pci_address for hostdev in wanted], domain_name):
            update_active(self.context, driver_name, domain_name, wanted)

    def nodedev_detach(
        self,
        address: PCIDeviceAddress | str,
        driver: str | None = None,
        *,
        accept: Iterable[str] = (),
        release: LibvirtRelease = DEFAULT_RELEASE,
    ) -> None:
        """
        Detach one device without an owner: it goes on the inactive list, bound to a VFIO driver.

        A listed device with another driver, or one that another program has reattached, is moved.

        Args:
            driver: the driver, or its module; None or "vfio" for the best match of the host's VFIO drivers.
            accept: consents to losses of the host, each as REASON:ADDRESS or REASON:SELECTOR.
            release: the libvirt whose choice of drivers is meant.

        Raises:
            RefusedError: the kernel would refuse, or the host uses the device; nothing was touched.
            DeviceInUseError: a domain uses the device.
            DeviceMissingError, OperationError, SysfsError: it does not exist, or a write failed and was rolled back.

        Mirrors: virHostdevPCINodeDeviceDetach (src/hypervisor/virhostdev.c)
        """
        address = PCIDeviceAddress.of(address)
        from pyhostdev.hypervisor import hostdev_nodedev

        with deferred_signals(), self.context.locked([address], None):
            hostdev_nodedev.detach(self.context, address, driver, accept, release)

    def nodedev_reattach(self, address: PCIDeviceAddress | str) -> None:
        """
        Reattach a detached device to its original driver.

        Raises:
            DeviceInUseError: a domain uses the device, or a process holds its group open.
            OperationError: its original driver is unknown, or the device could not be reattached.

        Mirrors: virHostdevPCINodeDeviceReAttach (src/hypervisor/virhostdev.c)
        """
        address = PCIDeviceAddress.of(address)
        from pyhostdev.hypervisor import hostdev_nodedev

        with deferred_signals(), self.context.locked([address], None):
            hostdev_nodedev.reattach(self.context, address)

    def nodedev_reset(self, address: PCIDeviceAddress | str, *, accept: Iterable[str] = ()) -> None:
        """
        Reset one device that no domain uses, by a method that affects no other function.

        Raises:
            RefusedError: it is a bridge, or the host uses it.
            DeviceInUseError: a domain uses the device.
            DeviceMissingError, OperationError, SysfsError: it does not exist, has no such method, or the write failed.

        Mirrors: virHostdevPCINodeDeviceReset (src/hypervisor/virhostdev.c)
        """
        address = PCIDeviceAddress.of(address)
        from pyhostdev.hypervisor import hostdev_nodedev

        with deferred_signals(), self.context.locked([address], None):
            hostdev_nodedev.reset(self.context, address, accept)


def _refuse_used(plan: Plan, driver_name: str, domain_name: str) -> None:
    """
    Refuse a plan for a device that is in use, with libvirt's error.

    Raises:
        DeviceInUseError: names the device and both domains.
    """
    used = next((finding for finding in plan.obstacles if finding.reason == "in-use"), None)
    if used is not None:
        raise DeviceInUseError(
            f"{used.message} ({driver_name} wants it for '{domain_name}')", reason="in-use", address=used.address
        )
