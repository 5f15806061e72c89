# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Prove that a device's group is free, and wait for a holder that is about to release it.

Unbinding a held device would block for as long as it is held. A QEMU that has ended releases its group only when the
kernel drops the last reference, a moment after the process has gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from pyhostdev.errors import DeviceInUseError
from pyhostdev.util.iommugroup import read_group
from pyhostdev.util.nodewriter import changes_nodes
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.vfioholders import read_group_holders
from pyhostdev.util.virpci import read_virtual_functions

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.procfs import Process
    from pyhostdev.util.record import Record
    from pyhostdev.util.sysfs_writer import SysfsWriter

RELEASE_WAIT_S = 10.0  # the time that the kernel may take from the end of a process to the last close of its groups

_POLL_S = (0.002, 0.01, 0.05)


class ReleaseDeadline:
    """
    The deadline until which holders that are about to exit may close the group.

    Args:
        wait_s: how long, in total.
        guest_ended: the caller knows that its guest has ended, so all holders are about to release.
        interrupted: called while waiting; an error that it raises ends the wait.
    """

    def __init__(
        self,
        wait_s: float = RELEASE_WAIT_S,
        *,
        guest_ended: bool = False,
        interrupted: Callable[[], None] = lambda: None,
    ) -> None:
        self.deadline = time.monotonic() + wait_s
        self.guest_ended = guest_ended
        self.interrupted = interrupted
        self._polls = 0

    def wait(self, holders: Iterable[Process]) -> bool:
        """Wait a moment; return False if these holders are not about to release, or the time is over."""
        if time.monotonic() >= self.deadline or not (self.guest_ended or all(h.is_ending for h in holders)):
            return False
        self.interrupted()
        time.sleep(_POLL_S[min(self._polls, len(_POLL_S) - 1)])
        self._polls += 1
        return True


def check_are_free(
    root: HostRoot,
    writer: SysfsWriter | None,
    addresses: Iterable[PCIDeviceAddress],
    wait_limit: ReleaseDeadline | None = None,
) -> None:
    """
    Prove that no process has a device's group open, after waiting for holders that are about to release.

    The VFs of a PF count, too: vfio-pci and some drivers remove them when the PF is unbound, and wait for each holder.

    Raises:
        DeviceInUseError: a process has a group open.
        OperationError: raised by ``interrupted``.
        SysfsError: the holders cannot be read.
    """
    wait_limit = wait_limit or ReleaseDeadline()
    groups = _groups_of(root, addresses)
    while held := _held(root, writer, groups):
        if not wait_limit.wait(holder for holders in held.values() for holder in holders):
            raise _in_use(groups, held)


def _groups_of(root: HostRoot, addresses: Iterable[PCIDeviceAddress]) -> dict[int, PCIDeviceAddress]:
    """Return the groups of devices and of their VFs, each with its first function."""
    groups: dict[int, PCIDeviceAddress] = {}
    for device in addresses:
        for address in (device, *read_virtual_functions(root, device)):
            group = read_group(root, address)
            if group is not None:
                groups.setdefault(group, address)
    return groups


def refuse_used_vfs(root: HostRoot, records: Collection[Record], others: Iterable[Record]) -> None:
    """
    Refuse to unbind PFs with VFs that other records have in use.

    Args:
        records: of the devices to unbind.
        others: all records.

    Raises:
        DeviceInUseError: names the first such VF; nothing was touched.
    """
    leaving = {record.address for record in records}
    used = {r.address: r for r in others if r.is_active and r.address not in leaving}
    for address in leaving if used else ():
        for vf in read_virtual_functions(root, address):
            if vf in used:
                text = f"Device {vf}, a virtual function of {address}, is in use by domain '{used[vf].owner}'"
                raise DeviceInUseError(text, reason="in-use", address=vf)


def _held(
    root: HostRoot, writer: SysfsWriter | None, groups: Mapping[int, PCIDeviceAddress]
) -> dict[int, list[Process]]:
    """
    Return the holders of each held group; an empty list if only the kernel knows that a group is open.

    Descriptors are searched first: a node that is open but not used yet blocks an unbind, and the kernel does not
    report it as busy.
    """
    found = read_group_holders(root, groups)
    if not found and changes_nodes(writer):
        found = {group: [] for group in groups if writer.is_group_open(root.vfio_group(group))}
    return found


def _in_use(groups: Mapping[int, PCIDeviceAddress], held: Mapping[int, list[Process]]) -> DeviceInUseError:
    group, holders = next(iter(held.items()))
    who = holders[0] if holders else "a process that cannot be seen here"
    text = f"IOMMU group {group} of device {groups[group]} is held open by {who}"
    return DeviceInUseError(text, reason="in-use", address=groups[group])
