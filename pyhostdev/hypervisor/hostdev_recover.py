# SPDX-License-Identifier: LGPL-2.1-or-later
"""
After a crash: compare what was wanted with what is, and finish or undo what was interrupted.

The kernel says what is, the journal who wanted what and what to restore. Nothing is replayed blindly, a prepared
device is its owner's, and running this again, or killing it anywhere, does no harm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pyhostdev.errors import DeviceInUseError, HostdevError, InDoubtError
from pyhostdev.hypervisor.hostdev_checks import libvirt_owners
from pyhostdev.hypervisor.hostdev_restore import goal_of
from pyhostdev.util.driverctl import read_driverctl_override
from pyhostdev.util.finding import ERROR
from pyhostdev.util.journal import DETACHED, PREPARED, PREPARING, RELEASING, BadRecord, Record, read_boot_id
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.transaction import attempt, deferred_signals
from pyhostdev.util.virfile import list_names, read_attribute

if TYPE_CHECKING:
    from pyhostdev.hypervisor.virhostdev import HostdevManager

RESTORED, KEPT, EXPIRED, IN_DOUBT, FAILED, SET_ASIDE = "restored", "kept", "expired", "in-doubt", "failed", "set-aside"
UNRECORDED = "unrecorded"

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
    deadline = time.monotonic() + timeout_s
    records, bad = manager.journal.read()
    boot_id = read_boot_id(manager.root)
    found = [_set_aside(manager, item) for item in bad]
    left: dict[tuple[str | None, str], Recovered] = {}
    # what is marked prepared goes first: the marks that say "interrupted" must be the last to vanish
    for record in sorted(records.values(), key=lambda r: (r.state != PREPARED, r.address)):
        change = (record.owner, record.change)
        if change in left:
            item = _waiting(record, left[change])
        else:
            item = _tried(manager, record, boot_id, include_prepared, deadline)
            if goal_of(record, records.values()) is not None and _is_unmarked(manager, record, item):
                left[change] = item
        found.append(item)
    return found + list(_unrecorded(manager, {str(address) for address in records}))


def _tried(
    manager: HostdevManager, record: Record, boot_id: str | None, include_prepared: bool, deadline: float
) -> Recovered:
    try:
        outcome, message = _recover_one(manager, record, boot_id, include_prepared, deadline)
    except DeviceInUseError as err:
        outcome, message = KEPT, str(err)
    except InDoubtError as err:
        outcome, message = IN_DOUBT, str(err)
    except HostdevError as err:
        outcome, message = FAILED, str(err)
    return Recovered(str(record.address), record.owner, outcome, message)


def _is_unmarked(manager: HostdevManager, record: Record, item: Recovered) -> bool:
    """Tell whether an interrupted change's device is not restored, and its own record does not say "interrupted"."""
    if item.outcome == RESTORED or record.state != PREPARED:
        return False
    try:
        now = manager.journal.read()[0].get(record.address)
    except HostdevError:
        return True
    return now is not None and now.state == PREPARED


def _waiting(record: Record, first: Recovered) -> Recovered:
    """Leave a device alone whose record is what says that another one of its change is to be restored."""
    text = f"it stays as long as device {first.what}, which was prepared with it, cannot be restored"
    return Recovered(str(record.address), record.owner, first.outcome, text)


def _set_aside(manager: HostdevManager, bad: BadRecord) -> Recovered:
    try:
        manager.journal.set_aside(bad)
    except HostdevError as err:
        return Recovered(bad.name, None, FAILED, f"it is no record: {bad.why}, and stays: {err}")
    return Recovered(bad.name, None, SET_ASIDE, f"it is no record: {bad.why}")


def _recover_one(
    manager: HostdevManager, record: Record, boot_id: str | None, include_prepared: bool, deadline: float
) -> tuple[str, str]:
    if record.boot_id != boot_id:
        manager.journal.remove(record.address)
        return EXPIRED, "it is of an earlier boot, whose bindings are gone"
    if record.state == DETACHED:
        return KEPT, "it is detached for nobody"
    with deferred_signals(), manager.locked([record.address], record.owner):
        return _restore(manager, record.address, include_prepared, deadline)


def _restore(
    manager: HostdevManager, address: PCIDeviceAddress, include_prepared: bool, deadline: float
) -> tuple[str, str]:
    """Restore one device under its locks, from its record as it is now and whatever others did meanwhile."""
    records, _ = manager.journal.read()
    record = records.get(address)
    if record is None or record.state == DETACHED:
        return KEPT, "somebody else has finished it"
    interrupted = goal_of(record, records.values())
    goal = interrupted or (RELEASING if include_prepared else None)
    if goal is None:
        return KEPT, "its owner has it"
    if interrupted not in (None, record.state):  # were it not restored now, the others' marks would vanish before it
        attempt(manager.journal.write, record._replace(state=goal))
    restorer = manager.restorer
    restorer.check_are_free([record])
    if not _waited(lambda: not manager.writer.is_in_flight(address), deadline):
        return IN_DOUBT, "a write to it has not come back from the kernel"
    manager.journal.sweep(address)
    restorer.nodes.try_to_take_back([record], [r for r in records.values() if r.change != record.change])
    if goal == PREPARING:
        return RESTORED, restorer.undo(record)
    restorer.reset([record])
    return RESTORED, restorer.give_back(record)


def _waited(is_so: Callable[[], bool], deadline: float) -> bool:
    while not is_so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _unrecorded(manager: HostdevManager, known: Container[str]) -> Iterator[Recovered]:
    """
    Tell of functions that an override gave to vfio-pci and nobody here has a record of.

    Another tool did it, or the journal is younger than the bindings: a container's own /run, a directory that a
    service manager made anew. Where they came from would be a guess, so they stay.
    """
    top = manager.root.pci_driver(VFIO_PCI)
    try:
        names = sorted(list_names(top))
    except HostdevError as err:
        yield Recovered(top, None, FAILED, f"nobody can tell whether it has devices without a record: {err}")
        return
    addresses = [PCIDeviceAddress.parse(name) for name in names if name.count(":") == 2 and name not in known]
    theirs = []
    for address in addresses:
        try:
            if _is_overridden(manager, address):
                theirs.append(address)
        except HostdevError as err:
            yield _untold(address, err)
    yield from _whose(manager, theirs)


def _is_overridden(manager: HostdevManager, address: PCIDeviceAddress) -> bool:
    """Tell whether an override gives a device to vfio-pci; no, too, while a write to it is in flight."""
    if manager.writer.is_in_flight(address):
        return False
    return read_attribute(os.path.join(manager.root.pci_device(address), "driver_override")) == VFIO_PCI


def _whose(manager: HostdevManager, addresses: list[PCIDeviceAddress]) -> Iterator[Recovered]:
    """Yield the outcomes for devices that are with vfio-pci by somebody else's hand, who is named where he can be."""
    try:
        found = libvirt_owners(manager.root, addresses) if addresses else ()
        owners = {finding.address: finding.message for finding in found if finding.severity == ERROR}
    except HostdevError as err:
        yield from (_untold(address, err) for address in addresses)
        return
    for address in addresses:
        try:
            by_driverctl = address not in owners and read_driverctl_override(manager.root, address) == VFIO_PCI
        except HostdevError as err:
            yield _untold(address, err)
            continue
        if address in owners:
            yield Recovered(str(address), None, KEPT, owners[address])
        elif by_driverctl:
            yield Recovered(str(address), None, KEPT, f"driverctl gives it to '{VFIO_PCI}'")
        else:
            text = f"it is with '{VFIO_PCI}' and no record says where it came from"
            yield Recovered(str(address), None, UNRECORDED, text)


def _untold(address: PCIDeviceAddress, err: HostdevError) -> Recovered:
    return Recovered(str(address), None, FAILED, f"no record says where it came from: {err}")
