# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Back to where a device came from: what release, undo and recover have in common.

A record says where. Nothing is given back on a guess: a device that went away, one that has taken its address, and
one that somebody else has moved stay as they are, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyhostdev.errors import HostdevError, OperationError
from pyhostdev.hypervisor.hostdev_nodes import NodeKeeper, tell
from pyhostdev.util.journal import PREPARING, RELEASING, Journal, Record, read_clock
from pyhostdev.util.pcidriver import Binding, DriverMover, read_incarnation
from pyhostdev.util.transaction import attempt, log
from pyhostdev.util.virpci import read_pci_device

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.sysfs_writer import SysfsWriter

GONE = "it is not on the host any more"
REPLACED = "another device has its address now, and was left alone"


def goal_of(record: Record, records: Iterable[Record]) -> str | None:
    """
    Return how the change that a record belongs to was interrupted: PREPARING, RELEASING, or None when it was not.

    One record that is still being prepared undoes all of its change, whatever was done to the others since.
    """
    states = {r.state for r in records if (r.owner, r.change) == (record.owner, record.change)}
    return next((state for state in (PREPARING, RELEASING) if state in states), None)


class Restorer:
    """Gives one host's devices back; who calls it holds their locks."""

    def __init__(self, root: HostRoot, journal: Journal, writer: SysfsWriter) -> None:
        self.root = root
        self.journal = journal
        self.writer = writer
        self.mover = DriverMover(root, writer)
        self.nodes = NodeKeeper(root, writer)

    def reset(self, records: Iterable[Record]) -> None:
        """
        Wipe what the guest left, of all devices before the first goes back; one that cannot be is logged.

        Mirrors: virHostdevResetAllPCIDevices (src/hypervisor/virhostdev.c)
        """
        for record in records:
            if record.moved and not record.is_kept:
                attempt(self._reset_one, record)

    def _reset_one(self, record: Record) -> None:
        dev = read_pci_device(self.root, record.address)
        if dev is None or dev.driver != record.target:
            return
        if dev.usable_reset() is None:
            log().warning("Device %s cannot be reset before it goes back", record.address)
        else:
            self.mover.reset(record.address)

    def give_back(self, record: Record) -> str:
        """
        Return one device to where its record says it came from, and say what became of it.

        Raises:
            OperationError, SysfsError: it is not as it was; the record stays.
        """
        if record.is_kept:
            said = "it is detached for nobody" + self._take_nodes_back(record)
            self.journal.write(record.detached(read_clock()))
            return said
        return self._forget(record)

    def undo(self, record: Record) -> str:
        """
        Undo what an interrupted prepare did to one device, and say what became of it.

        Raises:
            OperationError, SysfsError: it is not as it was; the record stays.
        """
        if record.listed_as is not None:
            said = self.undo_listed(record)
            self.journal.write(record.detached(read_clock(), record.listed_as.driver))
            return said
        return self._forget(record)

    def _forget(self, record: Record) -> str:
        """Move a device back if it was moved, then its nodes, then drop its record."""
        said = self._move_back(record, record.original) if record.moved else "it was left where it is"
        said += self._take_nodes_back(record)
        self.journal.remove(record.address)
        return said

    def _take_nodes_back(self, record: Record) -> str:
        """Take back the nodes that are still there, unless another change of this guest has given them away too."""
        if not record.nodes:
            return ""
        records = self.journal.read()[0].values()
        others = [r for r in records if r.is_active and (r.owner, r.change) != (record.owner, record.change)]
        return tell(self.nodes.take_back(record, others))

    def undo_listed(self, record: Record) -> str:
        """
        Return a device from the inactive list to the stub it was there with.

        Raises:
            OperationError, SysfsError: it is not as it was.
        """
        assert record.listed_as is not None
        if record.target == record.listed_as.driver:
            said = "it is detached for nobody again"
        else:
            said = self._move_back(record, record.listed_as)
        return said + self._take_nodes_back(record)

    def _move_back(self, record: Record, binding: Binding) -> str:
        try:
            return self._fate(record) or self._move_back_present(record, binding)
        except HostdevError:
            if fate := self._fate(record):  # it went while we were at it
                return fate
            raise

    def _fate(self, record: Record) -> str | None:
        """Return what is to be said instead of giving back, None when the device is there and the same one."""
        incarnation = read_incarnation(self.root, record.address)
        if incarnation is None:
            return GONE
        return None if incarnation == record.original.incarnation else REPLACED

    def _move_back_present(self, record: Record, binding: Binding) -> str:
        now = self.mover.read_binding(record.address)
        if now.driver not in (None, record.target, binding.driver):
            raise OperationError(
                f"Device {record.address} was moved to driver '{now.driver}' by somebody else",
                address=record.address,
            )
        self.mover.give_back(record.address, binding)
        return f"it is with driver '{binding.driver}' again" if binding.driver else "it is without driver again"
