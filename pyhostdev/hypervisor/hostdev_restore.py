# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Restore a device's original state: the common part of release, undo and recover.

The record holds that state, and nothing is guessed. Vanished, replaced or rebound devices are left alone and reported.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyhostdev.errors import HostdevError, OperationError
from pyhostdev.hypervisor.hostdev_nodes import NodeKeeper, log_messages
from pyhostdev.util.journal import PREPARING, RELEASING, Journal, Record, read_clock
from pyhostdev.util.pcidriver import Binding, DriverMover, read_incarnation
from pyhostdev.util.transaction import log, run_logged
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.virpci import read_pci_device

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.sysfs_writer import SysfsWriter

GONE = "it is not on the host any more"
REPLACED = "another device has its address now, and was left alone"


def interrupted_state(record: Record, records: Iterable[Record]) -> str | None:
    """
    Return how the change of a record was interrupted: PREPARING, RELEASING, or None if it was not.

    If one record is still being prepared, its whole change is undone, even if the other records have changed since.
    """
    states = {r.state for r in records if (r.owner, r.change) == (record.owner, record.change)}
    return next((state for state in (PREPARING, RELEASING) if state in states), None)


class Restorer:
    """Restores the devices of one host; the caller holds their locks."""

    def __init__(self, root: HostRoot, journal: Journal, writer: SysfsWriter) -> None:
        self.root = root
        self.journal = journal
        self.writer = writer
        self.mover = DriverMover(root, writer)
        self.nodes = NodeKeeper(root, writer)

    def reset(self, records: Iterable[Record]) -> None:
        """
        Reset all devices before the first is reattached; a device that cannot be reset is logged.

        Mirrors: virHostdevResetAllPCIDevices (src/hypervisor/virhostdev.c)
        """
        for record in records:
            if record.moved and not record.is_kept:
                run_logged(self._reset_one, record)

    def _reset_one(self, record: Record) -> None:
        dev = read_pci_device(self.root, record.address)
        if dev is None or dev.driver != record.target:
            return
        if dev.usable_reset() is None:
            log().warning("Device %s cannot be reset before it is reattached", record.address)
        else:
            self.mover.reset(record.address)

    def give_back(self, record: Record) -> str:
        """
        Reattach one device as its record specifies, and return a message about the result.

        Raises:
            OperationError, SysfsError: it could not be restored; the record stays.
        """
        if record.is_kept:
            said = "it is detached without an owner" + self._take_nodes_back(record)
            self.journal.write(record.detached(read_clock()))
            return said
        return self._forget(record)

    def undo(self, record: Record) -> str:
        """
        Undo the effect of an interrupted prepare on one device, and return a message about the result.

        Raises:
            OperationError, SysfsError: it could not be restored; the record stays.
        """
        if record.listed_as is not None:
            said = self.undo_listed(record)
            self.journal.write(record.detached(read_clock(), record.listed_as.driver))
            return said
        return self._forget(record)

    def _forget(self, record: Record) -> str:
        """Restore a device if it was moved, then its nodes, then remove its record."""
        said = self._move_back(record, record.original) if record.moved else "it was left where it is"
        said += self._take_nodes_back(record)
        self.journal.remove(record.address)
        return said

    def _take_nodes_back(self, record: Record) -> str:
        """Restore the remaining nodes, unless another change of this guest has also given them to the user."""
        if not record.nodes:
            return ""
        records = self.journal.read()[0].values()
        others = [r for r in records if r.is_active and (r.owner, r.change) != (record.owner, record.change)]
        return log_messages(self.nodes.take_back(record, others))

    def undo_listed(self, record: Record) -> str:
        """
        Return a device of the inactive list to its stub there.

        Raises:
            OperationError, SysfsError: it could not be restored.
        """
        assert record.listed_as is not None
        if record.target == record.listed_as.driver:
            said = "it is detached without an owner again"
        else:
            said = self._move_back(record, record.listed_as)
        return said + self._take_nodes_back(record)

    def _move_back(self, record: Record, binding: Binding) -> str:
        try:
            return self._fate(record) or self._move_back_present(record, binding)
        except HostdevError:
            if fate := self._fate(record):  # it vanished in the meantime
                return fate
            raise

    def _fate(self, record: Record) -> str | None:
        """Return the message about a missing or replaced device, None if the device is still the same."""
        incarnation = read_incarnation(self.root, record.address)
        if incarnation is None:
            return GONE
        return None if incarnation == record.original.incarnation else REPLACED

    def _move_back_present(self, record: Record, binding: Binding) -> str:
        now = self.mover.read_binding(record.address)
        if now.driver not in (None, record.target, binding.driver):
            raise OperationError(
                f"Device {record.address} was moved to driver '{now.driver}' by another program",
                address=record.address,
            )
        self.mover.give_back(record.address, binding)
        return f"it has driver '{binding.driver}' again" if binding.driver else "it has no driver again"
