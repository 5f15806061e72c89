# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Release an owner's devices: every device is tried, and the owner is locked before the records are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyhostdev.errors import DeviceInUseError, InDoubtError, OperationError
from pyhostdev.hypervisor.hostdev_holders import RELEASE_WAIT_S, ReleaseDeadline, check_are_free, refuse_used_vfs
from pyhostdev.hypervisor.hostdev_restore import interrupted_state
from pyhostdev.util.journal import PREPARING, RELEASING, Record
from pyhostdev.util.record import newer_text
from pyhostdev.util.transaction import deferred_signals, mark_unfinished, run_logged
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_context import HostdevContext
    from pyhostdev.util.pciaddress import PCIDeviceAddress

GIVE_BACK_WAIT_S = 2.0  # for a lock; a refused prepare holds it for milliseconds


def by_position(record: Record) -> tuple[bool, int]:
    """Return the order of a release: as in the domain."""
    return False, record.position


def kept_devices_last(record: Record) -> tuple[bool, int]:
    """Return the order in which a unit is reattached while its guest runs: kept functions come last."""
    from pyhostdev.hypervisor.hostdev_plan import UNASSIGNED  # other releases need no plan

    return record.asked is not None and record.asked.role == UNASSIGNED, record.position


def release(
    context: HostdevContext,
    owner: str,
    is_selected: Callable[[Record], bool],
    *,
    guest_ended: bool,
    order: Callable[[Record], tuple[bool, int]] = by_position,
) -> list[PCIDeviceAddress]:
    """
    Release the matching devices of an owner; see ``HostdevManager.release``.

    While the owner is locked, it neither gains nor loses a device, so the first reading finds all of them.
    """
    with deferred_signals() as interrupted, context.locked([], owner, GIVE_BACK_WAIT_S) as lock_more:
        records, _ = context.journal.read()
        selected = [r for r in records.values() if r.is_active and r.owner == owner and is_selected(r)]
        refuse_newer(selected)
        selected.sort(key=order)
        lock_more(record.address for record in selected)
        wait_limit = ReleaseDeadline(RELEASE_WAIT_S, guest_ended=guest_ended, interrupted=interrupted)
        refuse_used_vfs(context.root, selected, records.values())
        check_are_free(context.root, context.writer, [record.address for record in selected], wait_limit)
        failures = _release_all(context, selected, list(records.values()))
    if failures:
        raise _unreleased(failures, len(selected))
    return [record.address for record in selected]


def refuse_newer(records: Iterable[Record]) -> None:
    """
    Refuse devices whose records only a newer program can handle.

    Raises:
        DeviceInUseError: names the first of them; nothing was touched.
    """
    for record in records:
        if record.is_newer:
            raise DeviceInUseError(newer_text(record.address), reason="in-use", address=record.address)


def _release_all(context: HostdevContext, selected: list[Record], records: list[Record]) -> list[Exception]:
    """Release devices, or undo a half prepared change; return all failures, every device is tried."""
    restorer = context.restorer
    half_prepared = [record for record in selected if interrupted_state(record, records) == PREPARING]
    whole = [record for record in selected if record not in half_prepared]
    for record in whole:
        run_logged(context.journal.write, record._replace(state=RELEASING))  # a failing mark must not stop the release
    restorer.nodes.try_to_restore(selected, records)
    if any(record.nodes for record in selected):  # their user may have opened one just before its owner was restored
        with mark_unfinished():
            check_are_free(context.root, context.writer, [record.address for record in selected])
    restorer.reset(whole)
    failures = [f for record in whole for f in run_logged(restorer.give_back, record)]
    return failures + _undo_all(context, half_prepared)


def _undo_all(context: HostdevContext, half_prepared: list[Record]) -> list[Exception]:
    """
    Undo a prepare that died; a device that cannot be undone must stay marked as half prepared.

    So each device gets its own mark. If that cannot be written, the marks of the others stay until this device is
    undone.
    """
    write, undo = context.journal.write, context.restorer.undo
    marked = [r for r in half_prepared if r.state == PREPARING]
    unmarked = [r for r in half_prepared if r.state != PREPARING]
    marked += [r for r in unmarked if not run_logged(write, r._replace(state=PREPARING))]
    failures = [f for record in unmarked if record not in marked for f in run_logged(undo, record)]
    if failures:
        return failures
    return [f for record in marked for f in run_logged(undo, record)]


def _unreleased(failures: list[Exception], total: int) -> OperationError:
    """Return one error for several: a device in doubt takes precedence, as the others often fail because of it."""
    worst = next((failure for failure in failures if isinstance(failure, InDoubtError)), failures[0])
    error = OperationError(
        f"{len(failures)} of {total} devices could not be given back: {worst}",
        rolled_back=False,
        reason=getattr(worst, "reason", None),
        address=getattr(worst, "address", None),
    )
    error.__cause__ = worst
    return error
