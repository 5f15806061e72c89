# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What one call locks: the IOMMU groups of its devices, their PFs, and its owner.

Nobody waits: who comes second is told at once who has what it wants. Guests that share none of these never meet. A
lock ends with its holder, also when a write of the holder is stuck in the kernel.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from pyhostdev.errors import DeviceInUseError, SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.statedir import StateDir
from pyhostdev.util.virpci import read_link_name

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLDER_MAX = 512  # bytes of a lock file that name its holder


class Lock(NamedTuple):
    """One lock file; a VF shares its PF's with the other VFs, the PF has it alone."""

    name: str
    is_shared: bool


def lock_set(root: HostRoot, addresses: Iterable[PCIDeviceAddress], owner: str | None) -> list[Lock]:
    """Return what a change of these devices locks, in the one order in which everybody takes them."""
    locks: dict[str, bool] = {}
    for address in addresses:
        group = read_link_name(os.path.join(root.pci_device(address), "iommu_group"))
        locks[f"device-{address}.lock" if group is None else f"group-{group}.lock"] = False
        pf = read_link_name(os.path.join(root.pci_device(address), "physfn"))
        name = f"pf-{pf or address}.lock"
        locks[name] = pf is not None and locks.get(name, True)
    if owner is not None:
        locks[f"owner-{zlib.crc32(owner.encode('utf-8', 'surrogateescape')):08x}.lock"] = False
    return [Lock(name, shared) for name, shared in sorted(locks.items())]


@contextmanager
def locked(
    state: StateDir, root: HostRoot, addresses: Iterable[PCIDeviceAddress], owner: str | None
) -> Iterator[None]:
    """
    Hold all locks of a change.

    Raises:
        DeviceInUseError: somebody else holds one of them; the text names the holder.
        SysfsError: the state directory refuses.
    """
    top = state.open(create=True)
    assert top is not None
    with ExitStack() as held:
        for lock in lock_set(root, addresses, owner):
            fd = _open(state, top, lock.name)
            held.callback(os.close, fd)
            _take(fd, lock, owner)
        yield


def _open(state: StateDir, top: int, name: str) -> int:
    try:
        return os.open(name, _FLAGS, 0o600, dir_fd=top)
    except OSError as err:
        raise SysfsError(err.errno or 0, os.path.join(state.path, name), "open a lock") from err


def _take(fd: int, lock: Lock, owner: str | None) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if lock.is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, _HOLDER_MAX, 0).decode("utf-8", "replace") or "somebody else"
        what = lock.name.removesuffix(".lock").replace("-", " ", 1)
        raise DeviceInUseError(
            f"The lock of {what} is held by {holder}", reason="in-use", rolled_back=None
        ) from None
    if not lock.is_shared:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"'{owner}' (process {os.getpid()})".encode()[:_HOLDER_MAX], 0)
