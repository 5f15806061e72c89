# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Plug a unit into a running guest: all functions are detached first; function 0 is plugged last and commits the change.

Order: store the unit's devices; detach and record all functions (also those that are not assigned); raise QEMU's
memory limit; mark the records "plugging"; open nodes of iommufd and pass them; add the functions other than 0, then
function 0; write the live definition; mark the records "plugged". A failure undoes the earlier steps, and takes back
staged functions.

Mirrors: qemuDomainAttachHostPCIDevice (src/qemu/qemu_hotplug.c)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pyhostdev.errors import HostdevError, OperationError, RefusedError
from pyhostdev.hypervisor.hostdev_units import Unit
from pyhostdev.qemu.qemu_hotplug.connection import MonitorLost
from pyhostdev.qemu.qemu_hotplug.guest import RunningGuest, in_thread
from pyhostdev.qemu.qemu_hotplug.nodes import PassedDescriptors
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.record import PLUGGED, PLUGGING, STUCK_STAGED

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.qemu.qemu_hotplug.devices import PlannedUnit
    from pyhostdev.qemu.qemu_hotplug.livestate import LiveState


async def attach(
    guest: RunningGuest,
    plan: Plan,
    planned: PlannedUnit,
    *,
    timeout_s: float,
    node_owner: tuple[int, int] | None = None,
) -> Unit:
    """
    Plug a unit into a running guest, as a whole or not at all.

    Args:
        timeout_s: the time for which a rollback waits until the guest releases staged functions.
        node_owner: QEMU's uid and gid; None means the current user.

    Raises:
        RefusedError: the plan has obstacles, or the guest has not run yet; nothing was touched.
        OperationError, SysfsError: a step failed; ``rolled_back`` tells whether everything was undone.
    """
    await _refuse_unready(guest, plan, planned)
    await in_thread(guest.state.put_unit, planned.name, planned.hostdevs)
    unit = await _prepare(guest, plan, planned, node_owner)
    try:
        await in_thread(guest.memory.raise_for, planned.definition)
        if planned.arguments:
            unit = await guest.mark(unit, PLUGGING)
    except HostdevError as err:
        await _undo(guest, unit, err)
        raise
    await _plug(guest, unit, planned, timeout_s)
    return await commit(guest, unit, planned.definition)


async def commit(guest: RunningGuest, unit: Unit, definition: DomainDef) -> Unit:
    """
    Record that a guest has a unit.

    Raises:
        OperationError, SysfsError: the state directory cannot be written; ``recover`` completes the record.
    """
    try:
        await in_thread(guest.state.save, definition)
        await in_thread(_keep_refused_ids, guest.state, definition)
        unit = await guest.mark(unit, PLUGGED)
        await in_thread(guest.state.drop_unit, unit.name)
    except HostdevError as err:
        err.rolled_back = False
        raise
    return unit


def _keep_refused_ids(state: LiveState, definition: DomainDef) -> None:
    """Remove the ids of devices that QEMU has from the spent ones: it forgets such a device's node at its end."""
    spent = state.spent_ids
    kept = spent - {info.alias for _, info in definition.device_infos()}
    if kept != spent:
        state.store_spent_ids(kept)


async def _refuse_unready(guest: RunningGuest, plan: Plan, planned: PlannedUnit) -> None:
    """
    Refuse a plan with obstacles, and a guest that has not run yet.

    Raises:
        RefusedError: nothing was touched.
    """
    if plan.obstacles:
        raise RefusedError(plan.obstacles, plan)
    if not planned.arguments:
        return
    if not await guest.monitor.has_run():
        raise RefusedError([not_run(guest.owner)], plan)
    taken = sorted(set(planned.ids) & await guest.monitor.present_ids())
    if taken:
        text = f"QEMU has a device named '{taken[0]}' that the live definition does not have"
        raise RefusedError([Finding("guest-slot", ERROR, None, text)], plan)


def not_run(owner: str) -> Finding:
    """Return the finding about a guest that has not run."""
    text = f"The guest of domain '{owner}' has not run yet: an unplug request would be stuck until a reset"
    return Finding("guest-not-run", ERROR, None, text)


async def _prepare(guest: RunningGuest, plan: Plan, planned: PlannedUnit, node_owner: tuple[int, int] | None) -> Unit:
    """Detach all functions and record them."""
    prepared = plan.with_plugs(planned.plugs)
    call = partial(
        guest.manager.prepare, prepared, guest.owner, node_owner=node_owner, by_descriptor=planned.by_iommufd
    )
    try:
        is_new = await in_thread(call)
    except HostdevError as err:
        if err.rolled_back is not False:
            guest.state.drop_unit(planned.name)
        raise
    if not is_new:
        text = f"Domain '{guest.owner}' got unit {planned.name} from another call"
        raise RefusedError([Finding("in-use", ERROR, plan.requests[0].address, text)])
    wanted = {request.address for request in plan.requests}
    units = await guest.units()
    return next(unit for unit in units if unit.name == planned.name and wanted == set(unit.addresses))


async def _undo(guest: RunningGuest, unit: Unit, err: HostdevError) -> None:
    """Reattach the functions, which QEMU does not have; set ``rolled_back`` of the error."""
    try:
        await guest.complete(unit)
    except HostdevError as failure:
        err.rolled_back = False
        err.message = f"{err.message}; and the roll back failed: {failure}"
    else:
        err.rolled_back = True


async def _plug(guest: RunningGuest, unit: Unit, planned: PlannedUnit, timeout_s: float) -> None:
    """
    Add the functions to QEMU.

    Raises:
        OperationError, SysfsError: QEMU refused a function, or ended; or a node could not be opened.
    """
    staged: list[str] = []
    try:
        async with PassedDescriptors(guest, planned) as nodes:  # left before anything is given back
            for properties in planned.arguments:
                guest.check()
                await nodes.add(properties)
                staged.append(str(properties["id"]))
    except MonitorLost as err:
        err.rolled_back = False  # QEMU may have the device: unknown until it answers or ends
        raise
    except HostdevError as err:
        await roll_back(guest, unit, staged, err, timeout_s)
        raise


async def roll_back(guest: RunningGuest, unit: Unit, staged: list[str], err: HostdevError, timeout_s: float) -> None:
    """
    Take back staged functions, then reattach the unit; functions that QEMU cannot release stay in place.

    A guest that is paused or has no operating system keeps them until its reset or its end.
    """
    try:
        is_clear = not staged or await _clear(guest, staged, timeout_s)
    except OperationError as failure:
        is_clear, err.message = False, f"{err.message}; and the rollback failed: {failure}"
    if is_clear:
        await _undo(guest, unit, err)
        return
    err.rolled_back = False
    err.message = (
        f"{err.message}; the guest cannot release {len(staged)} functions that it does not see yet: they stay with "
        "QEMU until the guest resets or ends, or detach-device is repeated"
    )
    await _mark_stuck(guest, unit, err)


async def _mark_stuck(guest: RunningGuest, unit: Unit, err: HostdevError) -> None:
    """Record that staged functions stay with QEMU; add a failure to the message of the first error."""
    try:
        await guest.mark(unit, STUCK_STAGED)
    except HostdevError as failure:
        err.message = f"{err.message}; and it could not be recorded: {failure}"


async def _clear(guest: RunningGuest, staged: list[str], timeout_s: float) -> bool:
    async with guest.unplug_requests() as unplug_requests:
        return await unplug_requests.clear(staged, timeout_s)
