# SPDX-License-Identifier: LGPL-2.1-or-later
"""
After a crash: compare the records with the host, and finish or undo what was interrupted.

The kernel shows the present state, the journal holds the owners and the original drivers. Nothing is replayed blindly,
a prepared device keeps its owner, and it is safe to run this again or to kill it anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyhostdev.errors import DeviceInUseError, HostdevError, InDoubtError
from pyhostdev.hypervisor.hostdev_holders import RELEASE_WAIT_S, ReleaseDeadline, check_are_free, refuse_used_vfs
from pyhostdev.hypervisor.hostdev_orphans import unrecorded
from pyhostdev.hypervisor.hostdev_restore import interrupted_state
from pyhostdev.hypervisor.hostdev_result import (
    EXPIRED,
    FAILED,
    IN_DOUBT,
    KEPT,
    RESTORED,
    SET_ASIDE,
    RecoveryResult,
)
from pyhostdev.util.deprecation import deprecated_names
from pyhostdev.util.journal import DETACHED, PREPARED, PREPARING, RELEASING, BadRecord, Record, read_boot_id
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.transaction import deferred_signals, run_logged

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_context import HostdevContext

_POLL_S = 0.05


__getattr__ = deprecated_names(__name__, {"Recovered": RecoveryResult})


def recover(context: HostdevContext, *, include_prepared: bool, timeout_s: float) -> list[RecoveryResult]:
    """Finish or undo interrupted changes; see ``HostdevManager.recover``."""
    deadline = time.monotonic() + timeout_s
    records, bad = context.journal.read()
    boot_id = read_boot_id(context.root)
    found = [_set_aside(context, item) for item in bad]  # records of a newer version stay, and are reported
    left: dict[tuple[str | None, str], RecoveryResult] = {}
    # Prepared records go first: the records that mark an interruption must be removed last
    ours = [record for record in records.values() if not record.is_newer]
    for record in sorted(ours, key=lambda r: (r.state != PREPARED, r.address)):
        change = (record.owner, record.change)
        if change in left:
            item = _waiting(record, left[change])
        else:
            item = _tried(context, record, boot_id, include_prepared, deadline)
            if interrupted_state(record, records.values()) is not None and _lacks_own_mark(context, record, item):
                left[change] = item
        found.append(item)
    return found + list(unrecorded(context, records))


def _tried(
    context: HostdevContext, record: Record, boot_id: str | None, include_prepared: bool, deadline: float
) -> RecoveryResult:
    try:
        outcome, message = _recover_one(context, record, boot_id, include_prepared, deadline)
    except DeviceInUseError as err:
        outcome, message = KEPT, str(err)
    except InDoubtError as err:
        outcome, message = IN_DOUBT, str(err)
    except HostdevError as err:
        outcome, message = FAILED, str(err)
    return RecoveryResult(str(record.address), record.owner, outcome, message)


def _lacks_own_mark(context: HostdevContext, record: Record, item: RecoveryResult) -> bool:
    """Tell whether a device of an interrupted change is not restored, and its own record does not mark it."""
    if item.outcome == RESTORED or record.state != PREPARED:
        return False
    try:
        now = context.journal.read()[0].get(record.address)
    except HostdevError:
        return True
    return now is not None and now.state == PREPARED


def _waiting(record: Record, first: RecoveryResult) -> RecoveryResult:
    """Skip this device: its record is the only mark that another device of its change must be restored."""
    text = f"it is kept until device {first.what}, which was prepared with it, can be restored"
    return RecoveryResult(str(record.address), record.owner, first.outcome, text)


def _set_aside(context: HostdevContext, bad: BadRecord) -> RecoveryResult:
    if bad.is_newer:
        return RecoveryResult(bad.name, None, FAILED, bad.why)
    try:
        context.journal.set_aside(bad)
    except HostdevError as err:
        return RecoveryResult(bad.name, None, FAILED, f"it is not a record: {bad.why}, and stays: {err}")
    return RecoveryResult(bad.name, None, SET_ASIDE, f"it is not a record: {bad.why}")


def _recover_one(
    context: HostdevContext, record: Record, boot_id: str | None, include_prepared: bool, deadline: float
) -> tuple[str, str]:
    if record.boot_id == boot_id and record.state == DETACHED:
        return KEPT, "it is detached without an owner"
    with deferred_signals() as interrupted, context.locked([record.address], record.owner):
        if record.boot_id != boot_id:
            return _expire(context, record)
        return _restore(context, record.address, include_prepared, deadline, interrupted)


def _expire(context: HostdevContext, record: Record) -> tuple[str, str]:
    """Remove a record of an earlier boot, unless another record has replaced it."""
    if context.journal.read()[0].get(record.address) != record:
        return KEPT, "another program has finished it"
    context.journal.remove(record.address)
    return EXPIRED, "it is from an earlier boot, whose bindings are gone"


def _restore(
    context: HostdevContext,
    address: PCIDeviceAddress,
    include_prepared: bool,
    deadline: float,
    interrupted: Callable[[], None],
) -> tuple[str, str]:
    """Restore one device under its locks, from its present record and state."""
    records, _ = context.journal.read()
    record = records.get(address)
    if record is None or record.is_newer or record.state == DETACHED:
        return KEPT, "another program has finished it"
    begun = interrupted_state(record, records.values())
    target_state = begun or (RELEASING if include_prepared else None)
    if target_state is None:
        return KEPT, "its owner has it"
    if begun not in (None, record.state):  # this mark must outlive those of the other devices
        run_logged(context.journal.write, record._replace(state=target_state))
    restorer = context.restorer
    wait_s = min(RELEASE_WAIT_S, deadline - time.monotonic())
    refuse_used_vfs(context.root, [record], records.values())
    check_are_free(context.root, context.writer, [record.address], ReleaseDeadline(wait_s, interrupted=interrupted))
    if not _waited(lambda: not context.writer.is_in_flight(address), deadline):
        return IN_DOUBT, "a write to it has not returned from the kernel"
    context.journal.sweep(address)
    restorer.nodes.try_to_restore([record], [r for r in records.values() if r.change != record.change])
    if target_state == PREPARING:
        return RESTORED, restorer.undo(record)
    restorer.reset([record])
    return RESTORED, restorer.give_back(record)


def _waited(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
