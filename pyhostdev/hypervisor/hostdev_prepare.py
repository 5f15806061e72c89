# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Execution of a plan: records on disk first, then the steps; everything is rolled back if one fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from pyhostdev.errors import DeviceInUseError
from pyhostdev.hypervisor.hostdev_plan import ASSIGNED, Plan, Request
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.journal import PREPARED, PREPARING, Record, read_boot_id, read_clock
from pyhostdev.util.record import Asked
from pyhostdev.util.transaction import Transaction, run_logged
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple
from pyhostdev.util.vfiodriver import loaded_driver

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_context import HostdevContext
    from pyhostdev.util.pciaddress import PCIDeviceAddress

Records = Mapping["PCIDeviceAddress", Record]
Intents = dict["PCIDeviceAddress", "Intent"]


class Intent(NamedTuple):
    """The record of one device, written before anything is done, and its record on the inactive list."""

    record: Record
    listed: Record | None


def replaced_since(plan: Plan, fresh: Plan) -> Iterator[Finding]:
    """Yield the devices that were replaced since the plan was made: the only finding that compares two plans."""
    for old, new in zip(plan.requests, fresh.requests, strict=True):
        if old.incarnation != new.incarnation:
            text = f"Device {old.address} was replaced since the plan was made"
            yield Finding("changed-device", ERROR, old.address, text)


def is_prepared_already(plan: Plan, owner: str, node_owner: tuple[int, int] | None, records: Records) -> bool:
    """
    Tell whether the owner already has exactly what a plan requests: these devices, in these roles, properly bound.

    A record of an earlier version does not contain the request, so it proves nothing.
    """
    owned = {address: r for address, r in records.items() if r.is_active and r.owner == owner}
    if not owned or {request.address for request in plan.requests} != owned.keys():
        return False
    return all(_is_done(request, owned[request.address], node_owner) for request in plan.requests)


def _is_done(request: Request, record: Record, node_owner: tuple[int, int] | None) -> bool:
    dev = request.dev
    if record.state != PREPARED or dev is None or dev.incarnation != record.original.incarnation:
        return False
    is_there = dev.driver == record.target
    given = {(node.to_uid, node.to_gid) for node in record.nodes}
    return is_there and record.asked == _asked(request) and given <= {node_owner} and _has_nodes(record, node_owner)


def _has_nodes(record: Record, node_owner: tuple[int, int] | None) -> bool:
    """Tell whether a device has given nodes, if its guest's user should have some."""
    needs = node_owner is not None and record.asked is not None and record.asked.role == ASSIGNED
    return bool(record.nodes) or not needs


def _asked(request: Request) -> Asked:
    return Asked(request.role, request.managed, request.stub)


def refuse_active(records: Records, addresses: Iterable[PCIDeviceAddress]) -> None:
    """
    Refuse devices that are in use, also devices without a group, which no rule of a plan checks.

    Raises:
        DeviceInUseError: names the first of them; nothing was touched.
    """
    for record in (records[address] for address in addresses if address in records):
        if record.is_active:
            text = f"Device {record.address} is in use by domain '{record.owner}'"
            raise DeviceInUseError(text, reason="in-use", address=record.address)


def execute(
    context: HostdevContext,
    plan: Plan,
    owner: str,
    records: Records,
    interrupted: Callable[[], None],
    node_owner: tuple[int, int] | None = None,
    by_descriptor: Collection[PCIDeviceAddress] = (),
) -> None:
    """
    Perform the steps up to the guest's start; the caller holds the locks.

    Modules are loaded first, because only then the name of a driver is known; that is not undone. The original drivers
    of all devices are on disk before the first write.

    Args:
        by_descriptor: functions whose nodes are not given, because the guest gets open descriptors.
    """
    plan = _with_modules(context, plan, interrupted)
    intents = _intents(context, plan, owner, records)
    with Transaction() as change:
        for address, intent in intents.items():
            change.on_error(_undo, context, intents, address)
            context.journal.write(intent.record)
        for step in plan.steps:
            if step.action == "detach":
                interrupted()
                _detach(context, intents[step.address].record)
        _verify_all(context, plan, intents)
        change.on_error(_rewrite_record, context, intents)
        if node_owner is not None:
            interrupted()
            given = [request for request in plan.requests if request.address not in by_descriptor]
            _give_nodes(context, given, intents, node_owner, records, change)
        for record, _ in intents.values():
            context.journal.write(record._replace(state=PREPARED))


def _with_modules(context: HostdevContext, plan: Plan, interrupted: Callable[[], None]) -> Plan:
    """
    Load the modules of a plan, and return it with the drivers that they registered.

    Raises:
        OperationError: a module is absent, prohibited or broken, or has no PCI driver.
        InDoubtError: loading has not finished within the deadline.
    """
    drivers = {}
    for step in plan.steps:
        if step.action == "load-module" and step.after is not None:
            interrupted()
            context.writer.load_module(step.after)
            drivers[step.after] = loaded_driver(context.root, step.after)
    return plan.with_loaded_modules(drivers)


def _give_nodes(
    context: HostdevContext,
    requests: Sequence[Request],
    intents: Intents,
    node_owner: tuple[int, int],
    records: Records,
    change: Transaction,
) -> None:
    """Give the guest's user its nodes, after recording their owners; they are restored before devices move."""
    nodes = context.restorer.nodes
    for address, given in nodes.nodes_to_give(requests, node_owner, records).items():
        if given:
            intents[address] = Intent(intents[address].record._replace(nodes=given), intents[address].listed)
            context.journal.write(intents[address].record)
    given_to = [record for record, _ in intents.values()]
    change.on_error(nodes.try_to_restore, given_to, list(records.values()))
    for record in given_to:
        nodes.give(record)


def _moving(plan: Plan) -> set[PCIDeviceAddress]:
    return {step.address for step in plan.steps if step.action == "detach"}


def _intents(context: HostdevContext, plan: Plan, owner: str, records: Records) -> Intents:
    moving = _moving(plan)
    template = _template(context, owner)
    intents = {}
    for position, request in enumerate(plan.requests):
        listed = records.get(request.address)
        record = template(request, request.address in moving)
        record = record._replace(position=position, plug=plan.plugs.get(request.address))
        if listed is not None:
            record = _listed_intent(record, listed)
        intents[request.address] = Intent(record, listed)
    return intents


def _template(context: HostdevContext, owner: str) -> Callable[[Request, bool], Record]:
    """Return a function that makes the record of one device of this change."""
    boot_id, change, since = read_boot_id(context.root), os.urandom(8).hex(), read_clock()

    def make(request: Request, moves: bool) -> Record:
        return Record(
            address=request.address,
            state=PREPARING,
            owner=owner,
            managed=request.managed,
            moved=moves,
            target=request.stub,
            original=context.restorer.mover.read_binding(request.address),
            boot_id=boot_id,
            change=change,
            asked=_asked(request),
            since=since,
        )

    return make


def _listed_intent(record: Record, listed: Record) -> Record:
    """
    Return the intent for a device of the inactive list: its record there takes precedence over the request.

    Mirrors: virPCIDeviceDetach, which keeps the listed object (src/util/virpci.c)
    """
    return record._replace(
        managed=listed.managed,
        moved=record.moved or listed.moved,
        target=record.target if record.moved else listed.target,
        original=listed.original,
        listed_as=record.original,
        extra=listed.extra,
    )


def _rewrite_record(context: HostdevContext, intents: Mapping[PCIDeviceAddress, Intent]) -> None:
    """Change "prepared" records back to "preparing": recover undoes what cannot be undone now."""
    for record, _ in intents.values():
        run_logged(context.journal.write, record)


def _undo(context: HostdevContext, intents: Intents, address: PCIDeviceAddress) -> None:
    """Restore one device and its record; a device that was not touched yet is left as it is."""
    intent = intents[address]
    if intent.listed is None:
        context.restorer.undo(intent.record)
    else:
        context.restorer.undo_listed(intent.record)
        context.journal.write(intent.listed)


def _detach(context: HostdevContext, record: Record) -> None:
    context.restorer.mover.detach(record.address, record.listed_as or record.original, record.target)


def _verify_all(context: HostdevContext, plan: Plan, intents: Mapping[PCIDeviceAddress, Intent]) -> None:
    """
    Verify all devices once more: another program may have changed the first while the last was moved.

    A kept device must still have the driver that the plan saw.
    """
    moving = _moving(plan)
    for request in plan.requests:
        record = intents[request.address].record
        before = record.listed_as or record.original
        driver: str | None = record.target
        override: str | None = record.target
        if request.address not in moving:
            assert request.dev is not None
            driver, override = request.dev.driver, before.override
        context.restorer.mover.verify(request.address, before, driver=driver, override=override)
