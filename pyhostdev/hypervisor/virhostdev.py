# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The manager of a host's PCI host devices: prepare for a guest, give back, know who has what.

Mirrors: src/hypervisor/virhostdev.c. The order is libvirt's (check all, detach all, mark active, set owner); what
differs: lists are on disk, a completeness policy is part of the check, and each step undoes itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from pyhostdev.errors import (
    ConfigError,
    DeviceInUseError,
    DeviceMissingError,
    InDoubtError,
    OperationError,
    RefusedError,
)
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.hostdev_checks import held_groups
from pyhostdev.hypervisor.hostdev_lock import locked
from pyhostdev.hypervisor.hostdev_plan import AFTERWARDS, ERROR, Finding, Plan, Step
from pyhostdev.hypervisor.hostdev_planner import build_plan
from pyhostdev.hypervisor.hostdev_recover import Recovered, recover
from pyhostdev.hypervisor.hostdev_status import Status, read_status
from pyhostdev.util.journal import (
    DETACHED,
    PREPARED,
    PREPARING,
    RELEASING,
    Journal,
    Record,
    read_boot_id,
)
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import VFIO_PCI, DriverMover, read_binding
from pyhostdev.util.transaction import Transaction, attempt, deferred_signals, log
from pyhostdev.util.virpci import is_vfio_driver

if TYPE_CHECKING:
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef


class HostdevManager:
    """
    Prepares host devices for domains and gives them back.

    A prepared device stays its owner's until ``release``, also when the process ends. One object serves one
    thread at a time; processes exclude each other through the state directory. After a fork the child makes its
    own manager.

    Mirrors: virHostdevManager (src/hypervisor/virhostdev.h)
    """

    def __init__(self, host: Host) -> None:
        if host.writer is None:
            raise ConfigError(f"Host directory '{host.root.path}' can be read only")
        self.host = host
        self.root = host.root
        self.journal = Journal(host.state_dir)
        self.writer = host.writer
        self._mover = DriverMover(host.root, host.writer)

    def status(self) -> Status:
        """
        Return the lists.

        Mirrors: the activePCIHostdevs and inactivePCIHostdevs of virHostdevManager
        """
        return read_status(self.host)

    def prepare(self, plan: Plan, owner: str | None = None) -> None:
        """
        Execute a plan: make it again, and when it still holds detach all and note the owner.

        Raises:
            RefusedError: the host stands in the way; nothing was touched.
            OperationError, SysfsError: a step failed; what was done before it was undone.

        Mirrors: virHostdevPreparePCIDevices (src/hypervisor/virhostdev.c)
        """
        owner = owner or plan.owner
        addresses = [request.address for request in plan.requests]
        with deferred_signals() as interrupted, self._locked(addresses, owner):
            fresh = self._planned_again(plan, owner)
            obstacles = (*fresh.obstacles, *_replaced(plan, fresh))
            if obstacles:
                raise RefusedError(obstacles, fresh)
            self._set_bad_records_aside()
            with Transaction() as change:
                self._execute(fresh, owner, change, interrupted)

    def _locked(
        self, addresses: Iterable[PCIDeviceAddress], owner: str | None
    ) -> AbstractContextManager[None]:
        return locked(self.journal.state, self.root, addresses, owner)

    def _planned_again(self, plan: Plan, owner: str) -> Plan:
        records, _ = self.journal.read()
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

    def _set_bad_records_aside(self) -> None:
        for bad in self.journal.read()[1]:
            self.journal.set_aside(bad)

    def _execute(
        self, plan: Plan, owner: str, change: Transaction, interrupted: Callable[[], None]
    ) -> None:
        """Do the steps up to the guest's start; all originals are on disk before the first write."""
        records = self._intents(plan, owner, change)
        for step in plan.steps:
            if step.action not in AFTERWARDS:
                interrupted()
                self._perform(step, records)
        self._verify_detached(plan, records)
        for record in records.values():
            self.journal.write(record._replace(state=PREPARED))

    def _verify_detached(self, plan: Plan, records: dict[PCIDeviceAddress, Record]) -> None:
        """Look at all devices once more: somebody may have had his hands on the first while we moved the last."""
        for step in plan.steps:
            if step.action == "detach":
                record = records[step.address]
                self._mover.verify(step.address, record.original, driver=record.target, override=record.target)

    def _intents(
        self, plan: Plan, owner: str, change: Transaction
    ) -> dict[PCIDeviceAddress, Record]:
        before, _ = self.journal.read()
        boot_id = read_boot_id(self.root)
        name = os.urandom(8).hex()
        moving = {step.address for step in plan.steps if step.action == "detach"}
        records = {}
        for position, request in enumerate(plan.requests):
            known = before.get(request.address)
            record = known or Record(
                address=request.address,
                state=PREPARING,
                owner=owner,
                managed=request.managed,
                moved=request.address in moving,
                target=request.stub,
                original=read_binding(self.root, request.address),
                boot_id=boot_id,
            )
            record = record._replace(
                state=PREPARING, owner=owner, listed=known is not None, change=name, position=position
            )
            change.on_error(self._undo_device, record, known)
            self.journal.write(record)
            records[request.address] = record
        return records

    def _undo_device(self, record: Record, known: Record | None) -> None:
        """Put one device and its record back as they were; a device that was not touched yet stays so."""
        if known is None:
            self.undo_preparing(record)
        else:
            self.journal.write(known)

    def _perform(self, step: Step, records: dict[PCIDeviceAddress, Record]) -> None:
        """The one place that performs steps."""
        if step.action == "load-module":
            assert step.after is not None
            self._mover.writer.load_module(step.after)
        elif step.action == "detach":
            record = records[step.address]
            self._mover.detach(step.address, record.original, record.target)

    @contextmanager
    def prepared(self, plan: Plan, owner: str | None = None) -> Iterator[None]:
        """
        Prepare on enter, release on exit.

        Raises:
            RefusedError, OperationError, SysfsError: as ``prepare`` and ``release``.
        """
        self.prepare(plan, owner)
        try:
            yield
        finally:
            self.release(owner or plan.owner)

    def release(self, owner: str) -> list[PCIDeviceAddress]:
        """
        Give back what an owner has, and return the addresses; every device is tried.

        A managed device that we took goes back to its driver; a managed one that was already with its stub
        leaves the lists; an unmanaged one stays detached, on the inactive list.

        Raises:
            DeviceInUseError: somebody has a device's group open; nothing was touched.
            OperationError: a device is not as it was; its record stays and the call can be repeated.

        Mirrors: virHostdevReAttachPCIDevices (src/hypervisor/virhostdev.c)
        """
        return self._release(owner, lambda record: record.owner == owner)

    def _release(
        self, owner: str, is_meant: Callable[[Record], bool]
    ) -> list[PCIDeviceAddress]:
        first, _ = self.journal.read()
        addresses = [r.address for r in first.values() if r.is_active and is_meant(r)]
        with deferred_signals(), self._locked(addresses, owner):
            records, _ = self.journal.read()
            meant = [records[a] for a in addresses if a in records and is_meant(records[a])]
            meant.sort(key=lambda record: record.position)
            self._refuse_held(meant)
            for record in meant:
                self.journal.write(record._replace(state=RELEASING))
            self._reset(meant)
            failures = [f for record in meant for f in attempt(self.give_back, record)]
        if failures:
            raise _not_given_back(failures, len(meant))
        return [record.address for record in meant]

    def _refuse_held(self, records: Iterable[Record]) -> None:
        """
        Refuse while somebody has a group open: the kernel lets an unbind from the stub wait for him, for ever.

        Raises:
            DeviceInUseError: naming him; nothing was touched.
        """
        groups: dict[int, PCIDeviceAddress] = {}
        for record in records:
            group = self.host.iommu_group(record.address) if record.moved else None
            if group is not None:
                groups.setdefault(group, record.address)
        held = next(held_groups(self.root, groups), None)
        if held is not None:
            raise DeviceInUseError(held.message, reason=held.reason, address=held.address)

    def _reset(self, records: Iterable[Record]) -> None:
        """
        Wipe what the guest left, of all devices before the first goes back; one that cannot be is logged.

        Mirrors: virHostdevResetAllPCIDevices (src/hypervisor/virhostdev.c)
        """
        for record in records:
            dev = self.host.pci_device(record.address)
            if record.moved and not record.listed and dev is not None and dev.driver == record.target:
                if dev.usable_reset() is None:
                    log().warning("Device %s cannot be reset before it goes back", record.address)
                else:
                    attempt(self._mover.reset, record.address)

    def give_back(self, record: Record) -> None:
        """
        Return one device to where its record says it came from; the caller holds its locks.

        Raises:
            OperationError, SysfsError: it is not as it was; the record stays.
        """
        if record.listed or (not record.managed and record.owner is not None):
            self.journal.write(record._replace(state=DETACHED, owner=None, listed=True))
            return
        if record.moved:
            self._give_back_moved(record)
        self.journal.remove(record.address)

    def undo_preparing(self, record: Record) -> None:
        """
        Undo what an interrupted prepare did to one device; the caller holds its locks.

        Raises:
            OperationError, SysfsError: it is not as it was; the record stays.
        """
        if record.listed:
            self.journal.write(record._replace(state=DETACHED, owner=None))
            return
        if record.moved:
            self._give_back_moved(record)
        self.journal.remove(record.address)

    def recover(self, *, include_prepared: bool = False, timeout_s: float = 30.0) -> list[Recovered]:
        """
        Finish or undo what a crash interrupted, and return what became of each record.

        Args:
            include_prepared: give prepared devices back too, where nobody holds their group open.
            timeout_s: how long to wait, in all, for writes that have not come back from the kernel.

        Raises:
            SysfsError: the state directory cannot be read.
        """
        return recover(self, include_prepared=include_prepared, timeout_s=timeout_s)

    def _give_back_moved(self, record: Record) -> None:
        try:
            now = self._mover.read_binding(record.address)
        except DeviceMissingError:
            return  # unplugged while the guest ran: there is nothing to give back
        if now.incarnation != record.original.incarnation:
            return  # plugged in again: the kernel has bound it afresh, and what we knew is about another device
        if now.driver not in (None, record.target, record.original.driver):
            raise OperationError(
                f"Device {record.address} was moved to driver '{now.driver}' by somebody else",
                address=record.address,
            )
        self._mover.give_back(record.address, record.original)

    def prepare_pci_devices(
        self,
        driver_name: str,
        domain_name: str,
        hostdevs: Iterable[DomainHostdevDef],
        *,
        policy: str = "auto",
    ) -> None:
        """
        Prepare hostdevs as libvirt's call of this name does, with a completeness policy.

        Args:
            driver_name: the hypervisor's; part of the error only, as domains are told apart by name.
            domain_name: the owner.
            hostdevs: PCI DomainHostdevDef objects; none is no error.

        Raises:
            DeviceInUseError: a device is some domain's already.
            RefusedError, OperationError, SysfsError: as ``prepare``.

        Mirrors: virHostdevPreparePCIDevices (src/hypervisor/virhostdev.c)
        """
        wanted = _HostdevSet(list(hostdevs))
        records, _ = self.journal.read()
        plan = build_plan(
            self.host, wanted.hostdevs, owner=domain_name, policy=policy, records=records, definition=wanted
        )
        used = next((f for f in plan.obstacles if f.reason == "in-use"), None)
        if used is not None:
            raise DeviceInUseError(
                f"{used.message} ({driver_name} wants it for '{domain_name}')",
                reason="in-use",
                address=used.address,
            )
        self.prepare(plan, domain_name)

    def reattach_pci_devices(
        self, driver_name: str, domain_name: str, hostdevs: Iterable[DomainHostdevDef]
    ) -> None:
        """
        Give back those of hostdevs that the domain has; others are passed over.

        Raises:
            OperationError: as ``release``.

        Mirrors: virHostdevReAttachPCIDevices (src/hypervisor/virhostdev.c)
        """
        wanted = {hostdev.pci_address for hostdev in hostdevs}
        self._release(domain_name, lambda r: r.owner == domain_name and r.address in wanted)

    def nodedev_detach(self, address: PCIDeviceAddress, driver: str = VFIO_PCI) -> None:
        """
        Detach one device for nobody: it goes on the inactive list.

        Raises:
            DeviceInUseError: a domain has it.
            DeviceMissingError, OperationError, SysfsError: it is not there, or a write failed and was undone.

        Mirrors: virHostdevPCINodeDeviceDetach (src/hypervisor/virhostdev.c)
        """
        with deferred_signals(), self._locked([address], None):
            records, _ = self.journal.read()
            self._refuse_active(records.get(address))
            if address in records:
                return
            original = self._mover.read_binding(address)
            there = is_vfio_driver(self.root, address, original.driver)
            boot_id = read_boot_id(self.root)
            record = Record(address, PREPARING, None, False, not there, driver, original, boot_id)
            with Transaction() as change:
                change.on_error(self._undo_device, record, None)
                self.journal.write(record)
                if not there:
                    self._mover.detach(address, original, driver)
                self.journal.write(record._replace(state=DETACHED))

    def nodedev_reattach(self, address: PCIDeviceAddress) -> None:
        """
        Give a detached device back to the driver it came from.

        Raises:
            DeviceInUseError: a domain has it, or somebody has its group open.
            OperationError: nobody knows where it came from, or it could not be given back.

        Mirrors: virHostdevPCINodeDeviceReAttach (src/hypervisor/virhostdev.c)
        """
        with deferred_signals(), self._locked([address], None):
            record = self.journal.read()[0].get(address)
            self._refuse_active(record)
            if record is None:
                raise OperationError(f"Device {address} was not detached by this manager", address=address)
            self._refuse_held([record])
            self.journal.write(record._replace(state=RELEASING))
            if record.moved:
                self._give_back_moved(record)
            self.journal.remove(address)

    def _refuse_active(self, record: Record | None) -> None:
        if record is not None and record.is_active:
            raise DeviceInUseError(
                f"Device {record.address} is in use by domain '{record.owner}'",
                reason="in-use",
                address=record.address,
            )


class _HostdevSet:
    """A bare list of hostdevs in the place of a domain definition."""

    def __init__(self, hostdevs: list[DomainHostdevDef]) -> None:
        self.hostdevs = hostdevs

    def pci_hostdevs(self) -> list[DomainHostdevDef]:
        """The hostdevs."""
        return self.hostdevs

    def guest_pci_addresses(self) -> set[PCIDeviceAddress]:
        """No other guest device is known."""
        return set()


def _not_given_back(failures: list[Exception], total: int) -> OperationError:
    """Return one error for several: a device in doubt has the word, as others most often fail because of it."""
    worst = next((failure for failure in failures if isinstance(failure, InDoubtError)), failures[0])
    error = OperationError(
        f"{len(failures)} of {total} devices could not be given back: {worst}",
        rolled_back=False,
        reason=getattr(worst, "reason", None),
        address=getattr(worst, "address", None),
    )
    error.__cause__ = worst
    return error


def _replaced(plan: Plan, fresh: Plan) -> Iterator[Finding]:
    """Find the devices that are others than those the plan was made for."""
    for old, new in zip(plan.requests, fresh.requests, strict=True):
        if old.incarnation != new.incarnation:
            text = f"Device {old.address} was replaced since the plan was made"
            yield Finding("changed-device", ERROR, old.address, text)
