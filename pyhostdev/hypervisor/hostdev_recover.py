# SPDX-License-Identifier: LGPL-2.1-or-later
"""
After a crash: compare what was wanted with what is, and finish or undo what was interrupted.

The kernel says what is, the journal who wanted what and what to restore. Nothing is replayed blindly, a prepared
device is its owner's, and running this again, or killing it anywhere, does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pyhostdev.errors import DeviceInUseError, HostdevError
from pyhostdev.hypervisor.hostdev_lock import locked
from pyhostdev.util.journal import DETACHED, PREPARED, PREPARING, RELEASING, Record, read_boot_id
from pyhostdev.util.procfs import read_group_holders
from pyhostdev.util.transaction import deferred_signals
from pyhostdev.util.virpci import read_link_name

if TYPE_CHECKING:
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.util.pciaddress import PCIDeviceAddress

RESTORED, KEPT, EXPIRED, IN_DOUBT, FAILED, SET_ASIDE = "restored", "kept", "expired", "in-doubt", "failed", "set-aside"

_POLL_S = 0.05


class Recovered(NamedTuple):
    """What became of one record; ``what`` is a device's address, or a file's name for a record that is none."""

    what: str
    owner: str | None
    outcome: str
    message: str

    @property
    def is_done(self) -> bool:
        """False when the device is not as it should be and somebody must look."""
        return self.outcome not in (IN_DOUBT, FAILED)


def recover(manager: HostdevManager, *, include_prepared: bool, timeout_s: float) -> list[Recovered]:
    """
    Finish or undo what was interrupted; see ``HostdevManager.recover``.
    """
    records, bad = manager.journal.read()
    found = []
    for item in bad:
        manager.journal.set_aside(item)
        found.append(Recovered(item.name, None, SET_ASIDE, f"it is no record: {item.why}"))
    boot_id = read_boot_id(manager.root)
    deadline = time.monotonic() + timeout_s
    interrupted = {(r.owner, r.change): r.state for r in records.values() if r.state in (PREPARING, RELEASING)}
    # what is marked prepared goes first: the marks that say "interrupted" must be the last to vanish
    for record in sorted(records.values(), key=lambda r: (r.state != PREPARED, r.address)):
        goal = interrupted.get((record.owner, record.change), RELEASING if include_prepared else None)
        outcome, message = _recover_one(manager, record, boot_id, goal, deadline)
        found.append(Recovered(str(record.address), record.owner, outcome, message))
    return found


def _recover_one(
    manager: HostdevManager, record: Record, boot_id: str | None, goal: str | None, deadline: float
) -> tuple[str, str]:
    if record.boot_id != boot_id:
        manager.journal.remove(record.address)
        return EXPIRED, "it is of an earlier boot, whose bindings are gone"
    if record.state == DETACHED or (record.state == PREPARED and goal is None):
        return KEPT, "it is detached for nobody" if record.state == DETACHED else "its owner has it"
    try:
        with deferred_signals(), locked(manager.journal.state, manager.root, [record.address], record.owner):
            return _restore(manager, record.address, goal, deadline)
    except DeviceInUseError as err:
        return KEPT, str(err)
    except HostdevError as err:
        return FAILED, str(err)


def _restore(
    manager: HostdevManager, address: PCIDeviceAddress, goal: str | None, deadline: float
) -> tuple[str, str]:
    """Restore one device under its locks, from its record as it is now."""
    record = manager.journal.read()[0].get(address)
    if record is None or record.state == DETACHED:
        return KEPT, "somebody else has finished it"
    group = read_link_name(f"{manager.root.pci_device(record.address)}/iommu_group")
    holders = read_group_holders(manager.root, int(group)) if group else []
    if holders:
        return KEPT, f"its group is held open by {holders[0]}"
    if not _waited(lambda: not manager.writer.is_in_flight(record.address), deadline):
        return IN_DOUBT, "a write to it has not come back from the kernel"
    if goal == PREPARING:
        manager.undo_preparing(record)
    else:
        manager.give_back(record)
    return RESTORED, f"it is with driver '{record.original.driver}' again" if record.original.driver else "restored"


def _waited(is_so: Callable[[], bool], deadline: float) -> bool:
    while not is_so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
