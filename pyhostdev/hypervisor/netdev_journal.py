# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Records of network changes that would outlive a crash: one small file per change, written before the change.

A tap vanishes with the programs that have it open. A macvtap does not, and neither do the settings of a virtual
function.
pyhostdev holds the lock of a record, and QEMU inherits it; a program that gets the lock knows that both have ended.
"""

from __future__ import annotations

import abc
import fcntl
import json
import os
from typing import TYPE_CHECKING, Any, ClassVar

from pyhostdev.errors import HostdevError, OperationError
from pyhostdev.hypervisor.hostdev_result import EXPIRED, FAILED, KEPT, RESTORED, SET_ASIDE, RecoveryResult
from pyhostdev.util import netlink, virnetdev
from pyhostdev.util.deadline import NETWORK_TIMEOUT_S, within
from pyhostdev.util.journal import read_boot_id
from pyhostdev.util.statedir import StateDir
from pyhostdev.util.virfile import is_directory
from pyhostdev.util.virjson import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.hypervisor.host import Host

_VERSION = 1
_LOCK = ".lock"
_ASIDE = ".bad"


class NetdevJournal(abc.ABC):
    """The records of one kind, in a subdirectory of the journal; a subclass implements the undo."""

    suffix: ClassVar[str]
    fields: ClassVar[frozenset[str]]  # further fields of a record of this kind
    directory: ClassVar[str] = "interfaces"
    subject: ClassVar[str] = "network interface or function"
    is_name_unique: ClassVar[bool] = False  # a name is used only once, so its lock is removed with its record

    def __init__(self, host: Host) -> None:
        self.host = host
        self.state = StateDir(os.path.join(host.state_dir, self.directory), below=host.state().below)

    @abc.abstractmethod
    def undo(self, name: str, facts: dict[str, Any]) -> str:
        """
        Undo a change whose guest has ended, and return a message about the result.

        Raises:
            HostdevError: the kernel refuses, or does not answer in time; the record stays.
            OSError: a path or a process of the record cannot be reached; the record stays.
            ValueError, TypeError, KeyError, OverflowError: the record is not one of this kind.
        """

    def undo_leftover(self, name: str) -> None:
        """
        Undo the changes that a dead guest left under a name, before the present state is recorded as the former one.

        Raises:
            OperationError: it cannot be undone.
            SysfsError: the records cannot be read.
        """
        if f"{name}{self.suffix}" in self.state.names():
            _, outcome, message = self._recover_one(name)
            if outcome == FAILED:
                raise OperationError(f"The {self.subject} '{name}' of a dead guest cannot be restored: {message}")

    def begin(self, name: str, owner: str, **facts: object) -> int:
        """
        Record a change before it is made; return the lock of the record, which the guest's QEMU inherits.

        Raises:
            OperationError: the interface, function or device belongs to another guest.
            SysfsError: the record cannot be written.
        """
        self.host.state().open(create=True)  # a missing directory above the records would be open to listing
        lock = self._lock(name)
        if lock is None:
            raise OperationError(f"The {self.subject} '{name}' belongs to another guest")
        try:
            self.note(name, owner, **facts)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def note(self, name: str, owner: str, **facts: object) -> None:
        """
        Write a record; the caller has its lock.

        Raises:
            SysfsError: it cannot be written.
        """
        text = {**dict.fromkeys(self.fields), **facts, "version": _VERSION, "owner": owner}
        text["boot_id"] = read_boot_id(self.host.root)
        self.state.replace(f"{name}{self.suffix}", json.dumps(text).encode())

    def end(self, name: str, lock: int) -> None:
        """Remove a record and release its lock."""
        try:
            self._remove(name)
        finally:
            os.close(lock)

    def _remove(self, name: str) -> None:
        """Remove a record, and a lock file that no other change will use."""
        self.state.remove(f"{name}{self.suffix}")
        if self.is_name_unique:
            self.state.remove(f"{name}{self.suffix}{_LOCK}")

    def finish(self, name: str, lock: int, undo: Callable[[], object]) -> None:
        """
        Undo a change, then remove its record; a change that cannot be undone keeps it, for ``recover``.

        Raises:
            HostdevError: the change cannot be undone.
        """
        try:
            undo()
        except BaseException:
            os.close(lock)
            raise
        self.end(name, lock)

    def _lock(self, name: str) -> int | None:
        """Return the lock of a record; None while its guest runs."""
        fd = self.state.open_lock(f"{name}{self.suffix}{_LOCK}", is_written=False)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def recover(self) -> Iterator[RecoveryResult]:
        """
        Undo the changes of guests that have ended, and yield an outcome for each.

        Raises:
            SysfsError: the records cannot be read.
        """
        for file in self.state.names():
            if file.endswith(self.suffix) and not file.startswith("."):
                name = file.removesuffix(self.suffix)
                yield RecoveryResult(name, *self._recover_one(name))

    def _recover_one(self, name: str) -> tuple[str | None, str, str]:
        """Return owner, outcome and message; a faulty record does not stop the recovery of the others."""
        owner = None
        try:
            facts = self._read(name)
            if facts is None:
                return self._set_aside(name)
            owner = str(facts["owner"])
            return owner, *self._finish_locked(name, facts)
        except (HostdevError, OSError) as err:
            return owner, FAILED, str(err)

    def _finish_locked(self, name: str, facts: dict[str, Any]) -> tuple[str, str]:
        """Finish a record unless its guest runs, or another program was faster; return outcome and message."""
        lock = self._lock(name)
        if lock is None:
            return KEPT, "its guest runs"
        try:
            if f"{name}{self.suffix}" not in self.state.names():
                self._remove(name)  # the lock that we have just made
                return KEPT, "another program has finished it"
            return self._finish_one(name, facts)
        finally:
            os.close(lock)

    def _finish_one(self, name: str, facts: dict[str, Any]) -> tuple[str, str]:
        is_old = facts["boot_id"] != read_boot_id(self.host.root)
        try:
            said = "it is from an earlier boot, and was lost with it" if is_old else self.undo(name, facts)
        except (ValueError, TypeError, KeyError, OverflowError):
            return self._set_aside(name)[1:]
        self._remove(name)
        return EXPIRED if is_old else RESTORED, said

    def _set_aside(self, name: str) -> tuple[str | None, str, str]:
        self.state.rename(f"{name}{self.suffix}", f"{name}{self.suffix}{_ASIDE}")
        return None, SET_ASIDE, f"it is not a record of a {self.subject}"

    def _read(self, name: str) -> dict[str, Any] | None:
        """
        Return a record; None for a file that is not a record.

        Raises:
            OperationError: a newer pyhostdev wrote it; the record stays, for that version.
        """
        try:
            facts = parse_json(self.state.read(f"{name}{self.suffix}") or b"")
        except ValueError:
            return None
        if _is_newer(facts):
            raise OperationError("its record was written by a newer pyhostdev: recover it with that version")
        is_record = isinstance(facts, dict) and facts.get("version") == _VERSION and isinstance(facts.get("owner"), str)
        return facts if is_record and {"owner", "boot_id", *self.fields} <= facts.keys() else None


def _is_newer(facts: Any) -> bool:
    version = facts.get("version") if isinstance(facts, dict) else None
    return type(version) is int and version > _VERSION


class MacvtapJournal(NetdevJournal):
    """The macvtaps of a host; ``index`` is the number of one, None until it is created."""

    suffix = ".netdev"
    fields = frozenset({"index"})

    def undo(self, name: str, facts: dict[str, Any]) -> str:
        """Remove a macvtap if it still exists; without a recorded index it may have been created under this name."""
        if not virnetdev.is_interface_name(name):
            raise ValueError(name)
        now = virnetdev.interface_index(name)
        is_ours = facts["index"] == now or (facts["index"] is None and self._is_macvtap(name))
        if now is None or not is_ours:
            return "the macvtap is gone"
        netlink.load()
        within(NETWORK_TIMEOUT_S, f"remove the macvtap '{name}'", lambda: netlink.remove_link(name, now))
        return "the macvtap is removed"

    def _is_macvtap(self, name: str) -> bool:
        return is_directory(self.host.root, os.path.join(self.host.root.class_net, name, "macvtap"))
