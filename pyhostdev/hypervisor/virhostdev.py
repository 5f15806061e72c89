# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The manager of a host's PCI host devices: prepare for a guest, give back, know who has what.

Mirrors: src/hypervisor/virhostdev.c. The order is libvirt's (check all, detach all, mark active, set owner); what
differs: lists are on disk, a completeness policy is part of the check, and each step undoes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError, DeviceInUseError, RefusedError
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.hostdev_context import HostdevContext
from pyhostdev.hypervisor.hostdev_plan import Plan
from pyhostdev.hypervisor.hostdev_planner import build_plan
from pyhostdev.hypervisor.hostdev_prepare import execute, has_it_already, refuse_active, replaced_since
from pyhostdev.hypervisor.hostdev_release import release
from pyhostdev.hypervisor.hostdev_status import Status, read_status
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.journal import Journal, Record
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.transaction import deferred_signals

if TYPE_CHECKING:
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.hypervisor.hostdev_result import RecoveryResult


class HostdevManager:
    """
    Prepares host devices for domains and gives them back.

    A prepared device stays its owner's until ``release``, also when the process ends. One object serves one
    thread at a time; processes exclude each other through the state directory. After a fork the child makes its
    own manager: this one refuses to change anything there.

    Args:
        journal: where records are kept; one in the host's ``state_dir`` by default.

    Raises:
        ConfigError: the host can be read only.

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

    def status(self) -> Status:
        """
        Return the lists.

        Mirrors: the activePCIHostdevs and inactivePCIHostdevs of virHostdevManager
        """
        return read_status(self.journal.state)

    def prepare(self, plan: Plan, owner: str | None = None, *, node_owner: tuple[int, int] | None = None) -> bool:
        """
        Execute a plan: make it again, and when it still holds detach all and note the owner.

        What exactly this call has done before is success: hooks are called more than once.

        Args:
            owner: who gets the devices; the plan's domain by default.
            node_owner: uid and gid that get the nodes below ``/dev/vfio`` which the guest needs, until its release.

        Returns:
            False when the owner had all of it already, and nothing was done.

        Raises:
            ConfigUnsupportedError: the host's writer cannot change the owner of nodes.
            RefusedError: the host stands in the way; nothing was touched.
            OperationError, SysfsError: a step failed; what was done before it was undone.

        Mirrors: virHostdevPreparePCIDevices (src/hypervisor/virhostdev.c)
        """
        return self._prepare(plan, owner or plan.owner, node_owner, may_have_it=True)

    def _prepare(self, plan: Plan, owner: str, node_owner: tuple[int, int] | None, *, may_have_it: bool) -> bool:
        addresses = [request.address for request in plan.requests]
        with deferred_signals() as interrupted, self.context.locked(addresses, owner):
            records, bad = self.journal.read()
            fresh = self._planned_again(plan, owner, records)
            if may_have_it and has_it_already(fresh, owner, node_owner, records):
                return False
            obstacles = (*fresh.obstacles, *replaced_since(plan, fresh))
            if obstacles:
                raise RefusedError(obstacles, fresh)
            refuse_active(records, addresses)
            for item in bad:
                self.journal.set_aside(item)
            execute(self.context, fresh, owner, records, interrupted, node_owner)
        return True

    def _planned_again(self, plan: Plan, owner: str, records: dict[PCIDeviceAddress, Record]) -> Plan:
        if plan.definition is None:
            raise ConfigError("A plan without its domain cannot be executed")
        return build_plan(
            self.host,
            plan.definition.pci_hostdevs(),
            owner=owner,
            policy=plan.policy,
            records=records,
            occupied=plan.definition.guest_pci_addresses(),
            accept=[f"{reason}:{address}" for reason, address in plan.accepted],
            definition=plan.definition,
        )

    @contextmanager
    def prepared(
        self, plan: Plan, owner: str | None = None, *, node_owner: tuple[int, int] | None = None
    ) -> Iterator[None]:
        """
        Prepare on enter, release on exit; what has the devices open must end within the block.

        Raises:
            RefusedError, OperationError, SysfsError: as ``prepare`` and ``release``.
        """
        owner = owner or plan.owner
        self._prepare(plan, owner, node_owner, may_have_it=False)  # what another call has prepared is its to release
        try:
            yield
        finally:
            self.release(owner, guest_ended=True)

    def release(self, owner: str, *, guest_ended: bool = False) -> list[PCIDeviceAddress]:
        """
        Give back what an owner has, and return the addresses, none when it has nothing; every device is tried.

        A managed device that we took goes back to its driver; a managed one that was already with its stub
        leaves the lists; an unmanaged one stays detached, on the inactive list. A prepare of this owner that is
        under way is waited for, and so is a process that is ending, for ten seconds at most.

        Args:
            guest_ended: the owner's QEMU has ended, so who still has a group open is about to let go.

        Raises:
            DeviceInUseError: somebody has a device's group open, a prepare of this owner takes too long, or a newer
                program wrote a record; nothing was touched.
            OperationError: a device is not as it was; its record stays and the call can be repeated.

        Mirrors: virHostdevReAttachPCIDevices (src/hypervisor/virhostdev.c)
        """
        return release(self.context, owner, lambda record: True, guest_ended=guest_ended)

    def recover(self, *, include_prepared: bool = False, timeout_s: float = 30.0) -> list[RecoveryResult]:
        """
        Finish or undo what a crash interrupted, and return what became of each record.

        Args:
            include_prepared: give prepared devices back too, where nobody holds their group open.
            timeout_s: how long to wait, in all, for writes that have not come back from the kernel.

        Raises:
            SysfsError: the state directory cannot be read.
        """
        from pyhostdev.hypervisor.hostdev_recover import recover

        return recover(self.context, include_prepared=include_prepared, timeout_s=timeout_s)

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
            driver_name: the hypervisor's; part of the error only, as domains are told apart by name.
            domain_name: the owner.
            hostdevs: PCI DomainHostdevDef objects; none is no error.
            accept: consents to what the host would lose, each as REASON:ADDRESS.

        Raises:
            DeviceInUseError: a device is some domain's already.
            RefusedError, OperationError, SysfsError: as ``prepare``.

        Mirrors: virHostdevPreparePCIDevices (src/hypervisor/virhostdev.c)
        """
        from pyhostdev.conf.domain_conf import DomainDef

        wanted = DomainDef(hostdevs=list(hostdevs))
        records, _ = self.journal.read()
        plan = build_plan(
            self.host,
            wanted.pci_hostdevs(),
            owner=domain_name,
            policy=policy,
            records=records,
            accept=accept,
            definition=wanted,
        )
        used = next((f for f in plan.obstacles if f.reason == "in-use"), None)
        if used is not None:
            raise DeviceInUseError(
                f"{used.message} ({driver_name} wants it for '{domain_name}')",
                reason="in-use",
                address=used.address,
            )
        self._prepare(plan, domain_name, None, may_have_it=False)

    def reattach_pci_devices(self, driver_name: str, domain_name: str, hostdevs: Iterable[DomainHostdevDef]) -> None:
        """
        Give back those of hostdevs that the domain has; others are passed over.

        Raises:
            OperationError: as ``release``.

        Mirrors: virHostdevReAttachPCIDevices (src/hypervisor/virhostdev.c)
        """
        wanted = {hostdev.pci_address for hostdev in hostdevs}
        release(self.context, domain_name, lambda record: record.address in wanted, guest_ended=False)

    def update_active_pci_devices(
        self, driver_name: str, domain_name: str, hostdevs: Iterable[DomainHostdevDef]
    ) -> None:
        """
        Note what a running domain has, after a restart of a program that did not prepare it here.

        What has a record keeps it. What has none is written down as it is now, as a device that was never moved: so it
        stays where it is when it is released. A device that has gone is passed over.

        Raises:
            DeviceInUseError: a device is another domain's; nothing was noted.
            SysfsError: the journal cannot be written.

        Mirrors: virHostdevUpdateActivePCIDevices (src/hypervisor/virhostdev.c)
        """
        from pyhostdev.hypervisor.hostdev_update import update_active

        wanted = [hostdev for hostdev in hostdevs if self.host.pci_device(hostdev.pci_address) is not None]
        with deferred_signals(), self.context.locked([hostdev.pci_address for hostdev in wanted], domain_name):
            update_active(self.context, driver_name, domain_name, wanted)

    def nodedev_detach(
        self, address: PCIDeviceAddress | str, driver: str = VFIO_PCI, *, accept: Iterable[str] = ()
    ) -> None:
        """
        Detach one device for nobody: it goes on the inactive list, with the driver that is asked for.

        One that is there with another driver, or that was given back by another program, is moved.

        Args:
            accept: consents to what the host would lose, each as REASON:ADDRESS.

        Raises:
            RefusedError: the kernel would refuse, or the host needs it; nothing was touched.
            DeviceInUseError: a domain has it.
            DeviceMissingError, OperationError, SysfsError: it is not there, or a write failed and was undone.

        Mirrors: virHostdevPCINodeDeviceDetach (src/hypervisor/virhostdev.c)
        """
        address = PCIDeviceAddress.of(address)
        from pyhostdev.hypervisor import hostdev_nodedev

        with deferred_signals(), self.context.locked([address], None):
            hostdev_nodedev.detach(self.context, address, driver, accept)

    def nodedev_reattach(self, address: PCIDeviceAddress | str) -> None:
        """
        Give a detached device back to the driver it came from.

        Raises:
            DeviceInUseError: a domain has it, or somebody holds its group open.
            OperationError: nobody knows where it came from, or it could not be given back.

        Mirrors: virHostdevPCINodeDeviceReAttach (src/hypervisor/virhostdev.c)
        """
        address = PCIDeviceAddress.of(address)
        from pyhostdev.hypervisor import hostdev_nodedev

        with deferred_signals(), self.context.locked([address], None):
            hostdev_nodedev.reattach(self.context, address)

    def nodedev_reset(self, address: PCIDeviceAddress | str, *, accept: Iterable[str] = ()) -> None:
        """
        Reset one device that no domain has, by a method that leaves other functions alone.

        Raises:
            RefusedError: it is a bridge, or the host needs it.
            DeviceInUseError: a domain has it.
            DeviceMissingError, OperationError, SysfsError: it is not there, has no such method, or the kernel refused.

        Mirrors: virHostdevPCINodeDeviceReset (src/hypervisor/virhostdev.c)
        """
        address = PCIDeviceAddress.of(address)
        from pyhostdev.hypervisor import hostdev_nodedev

        with deferred_signals(), self.context.locked([address], None):
            hostdev_nodedev.reset(self.context, address, accept)
