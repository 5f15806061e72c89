# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The locks of one call: its owner, the IOMMU groups of its devices, and their PFs.

A prepare does not wait: a second one is refused at once, with the name of the holder. A release waits a moment,
because the holder may be a prepare that is about to be refused. Guests without a common lock do not affect each other.
A lock ends with its holder, even if a write of the holder is stuck in the kernel.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pyhostdev.errors import DeviceInUseError, SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.statedir import StateDir, ignoring
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import read_link_name

_HOLDER_MAX = 512  # bytes of a lock file that name its holder
_POLL_S = 0.01
_LET_GO_S = 0.5  # how long to retry if no holder of a lock is found
_NAME_WAIT_S = 0.05  # a holder writes its name microseconds after taking the lock


class Lock(NamedTuple):
    """One lock file; VFs share their PF's lock, the PF takes it exclusively."""

    name: str
    is_shared: bool


def lock_set(root: HostRoot, addresses: Iterable[PCIDeviceAddress], owner: str | None) -> list[Lock]:
    """Return the locks for a change of these devices, in the order in which every process takes them."""
    locks: dict[str, bool] = {}
    for address in addresses:
        group = read_link_name(root, os.path.join(root.pci_device(address), "iommu_group"))
        locks[f"device-{address}.lock" if group is None else f"group-{group}.lock"] = False
        pf = read_link_name(root, os.path.join(root.pci_device(address), "physfn"))
        name = f"pf-{pf or address}.lock"
        locks[name] = pf is not None and locks.get(name, True)
    if owner is not None:
        locks[f"owner-{zlib.crc32(owner.encode('utf-8', 'surrogateescape')):08x}.lock"] = False
    return [Lock(name, shared) for name, shared in sorted(locks.items(), key=_place)]


def _place(lock: tuple[str, bool]) -> tuple[bool, str]:
    """Sort the owner's lock first: a release finds its other locks only while it holds that lock."""
    return not lock[0].startswith("owner-"), lock[0]


@contextmanager
def locked(
    state: StateDir, root: HostRoot, addresses: Iterable[PCIDeviceAddress], owner: str | None, wait_s: float = 0.0
) -> Iterator[Callable[[Iterable[PCIDeviceAddress]], None]]:
    """
    Hold all locks of a change; yield a function that takes the locks of more devices, found under the owner's lock.

    Args:
        wait_s: how long to wait, in total, for locks held by other processes.

    Raises:
        DeviceInUseError: another process holds one of them; the text names the holder.
        SysfsError: the state directory cannot be written.
    """
    holder = f"'{owner}' (process {os.getpid()})" if owner is not None else f"process {os.getpid()}"
    deadline = time.monotonic() + wait_s
    with ExitStack() as held:

        def take(locks: Iterable[Lock]) -> None:
            for lock in locks:
                fd = state.open_lock(lock.name)
                held.callback(os.close, fd)
                _take(state, root, fd, lock, deadline)
                _name_holder(fd, holder)
                if not lock.is_shared:  # other holders may share the name
                    held.callback(_name_holder, fd, "")

        take(lock_set(root, addresses, owner))
        yield lambda more: take(lock_set(root, more, None))


def _take(state: StateDir, root: HostRoot, fd: int, lock: Lock, deadline: float) -> None:
    how = fcntl.LOCK_SH if lock.is_shared else fcntl.LOCK_EX
    try:
        state.step("lock", lock.name)
        while not _is_taken(fd, how):
            if time.monotonic() >= deadline:
                who = _read_holder(root, fd)
                if who is None and time.monotonic() < deadline + _LET_GO_S:
                    continue  # it was released while its holder was looked up
                what = lock.name.removesuffix(".lock").replace("-", " ", 1)
                raise DeviceInUseError(f"The lock of {what} is held by {who or 'another process'}", reason="in-use")
            time.sleep(_POLL_S)
    except OSError as err:
        raise SysfsError(err.errno or 0, os.path.join(state.path, lock.name), "take a lock") from err


def _is_taken(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _name_holder(fd: int, holder: str) -> None:
    """Write the holder's name for later processes; on a full disk the lock is held without a name."""
    with ignoring(OSError):
        os.ftruncate(fd, 0)
        if holder:
            os.pwrite(fd, holder.encode("utf-8", "surrogateescape")[:_HOLDER_MAX], 0)


def _read_holder(root: HostRoot, fd: int) -> str | None:
    """
    Return the holder of the lock, by the name in its file if the kernel confirms it; None if no holder can be found.

    A new holder gets a moment to write its name. Any other name in the file was left by a killed holder, or comes from
    another PID namespace.
    """
    deadline = time.monotonic() + _NAME_WAIT_S
    with ignoring(OSError):
        while True:
            name, pids = os.pread(fd, _HOLDER_MAX, 0).decode("utf-8", "replace"), _read_pids(root, fd)
            if name and (not pids or _is_lock_of(name, pids)):
                return name
            if time.monotonic() > deadline:
                return _numbered(pids, name)
            time.sleep(_NAME_WAIT_S / 10)
    return None


def _is_lock_of(name: str, pids: list[int]) -> bool:
    return name.endswith(tuple(f"process {pid}{end}" for pid in pids for end in ("", ")")))


def _numbered(pids: list[int], name: str) -> str | None:
    if not pids:
        return None
    return f"process {pids[0]} (its file says {name})" if name else f"process {pids[0]}"


def _read_pids(root: HostRoot, fd: int) -> list[int]:
    from pyhostdev.util.procfs import read_lock_holders  # few locks are held by others

    with ignoring(OSError):
        return read_lock_holders(root, os.fstat(fd))
    return []
