# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which functions of a scan can be given to a guest: ``HostFunctions.obstacles`` of all at once.

Most functions are decided by the columns of the scan and the lists of the host's IOMMUs, which show the members of
groups that the scan did not see; only the rest need every rule.
"""

from __future__ import annotations

import stat
from itertools import compress
from typing import TYPE_CHECKING

from pyhostdev.util import pciscan
from pyhostdev.util.iommugroup import VFIO_DEV
from pyhostdev.util.pciassign import DMA_FREE_DRIVERS, VFIO_DENIED
from pyhostdev.util.pciregs import CLASS_BASE_BRIDGE, CLASS_BRIDGE_HOST, CLASS_BRIDGE_PCI, CLASS_DISPLAY
from pyhostdev.util.pcisnapshot import KIND
from pyhostdev.util.virfile import list_all_names, list_names, read_link_names, read_statuses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostquery import HostFunctions
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.hostusage import HostUsage

Kind = tuple[int, int, int, int]  # class, vendor, device, and which of them are known
_IDENTITY = pciscan.HAVE_VENDOR | pciscan.HAVE_DEVICE | pciscan.HAVE_CLASS
_DOMAIN_DIGITS = 4  # of a domain that the firmware describes
_NEVER, _PLAIN, _DISPLAY, _UNSURE = range(4)  # one byte for each function of the scan


def assignable(scan: HostFunctions, snapshot: pciscan.Snapshot, usage: HostUsage) -> list[int]:
    """
    Return the positions of the functions without an obstacle, in order.

    Args:
        snapshot, usage: of the scan.

    Raises:
        SysfsError: the host cannot be read.
    """
    verdicts = bytearray(map(_Verdicts().__getitem__, KIND.iter_unpack(snapshot.packed)))
    for pf in set(snapshot.column("physfn")):
        position = snapshot.find_key(pf)
        if position is not None:
            verdicts[position] = _NEVER
    _look_at_groups(scan.root, snapshot, verdicts)
    _look_at_uses(snapshot, usage, verdicts)
    for at in _positions(verdicts, _UNSURE):
        if not scan.is_assignable(scan[at]):
            verdicts[at] = _NEVER
    return list(compress(range(len(verdicts)), verdicts))


def _positions(verdicts: bytearray, verdict: int) -> Iterator[int]:
    """Yield the positions of the functions with a verdict; it may be changed meanwhile."""
    at = -1
    while (at := verdicts.find(verdict, at + 1)) >= 0:
        yield at


class _Verdicts(dict[Kind, int]):
    """The verdict on each kind of function; it is made for the first function of a kind."""

    def __missing__(self, kind: Kind) -> int:
        self[kind] = verdict = _verdict(kind)
        return verdict


def _verdict(kind: Kind) -> int:
    """
    Classify a kind: a bridge is never assignable; a display and a plain device depend on their group and uses.

    A denied device and one of unknown class are unsure: every rule is applied to them.
    """
    class_, vendor, device, have = kind
    if have & pciscan.HAVE_CLASS and class_ >> 8 in (CLASS_BRIDGE_PCI, CLASS_BRIDGE_HOST):
        return _NEVER
    if have & _IDENTITY != _IDENTITY or (vendor, device) in VFIO_DENIED:
        return _UNSURE
    return {0: _UNSURE, CLASS_BASE_BRIDGE: _UNSURE, CLASS_DISPLAY: _DISPLAY}.get(class_ >> 16, _PLAIN)


def _look_at_uses(snapshot: pciscan.Snapshot, usage: HostUsage, verdicts: bytearray) -> None:
    """Leave functions that the host uses to the rules, and displays for which the host shows a use."""
    used = usage.addresses.intersection(snapshot.addresses)
    for at, address in enumerate(snapshot.addresses) if used else ():
        if address in used and verdicts[at] != _NEVER:
            verdicts[at] = _UNSURE
    shown = list(_positions(verdicts, _DISPLAY))
    for at, uses in zip(shown, usage.of_all([snapshot.address(at) for at in shown]), strict=True):
        if uses:
            verdicts[at] = _UNSURE


def _look_at_groups(root: HostRoot, snapshot: pciscan.Snapshot, verdicts: bytearray) -> None:
    """
    Exclude the functions in whose group another one keeps the DMA for the host.

    A group with members that are not functions of the scan decides nothing: its functions are left to the rules.
    """
    numbers = _group_numbers(snapshot)
    with_others = _groups_with_others(root, snapshot, numbers, set(compress(numbers, verdicts)))
    if with_others or None in numbers:
        for at, number in enumerate(numbers):
            if (number is None or number in with_others) and verdicts[at] != _NEVER:
                verdicts[at] = _UNSURE
    addresses = snapshot.addresses
    has_made = bool(addresses) and _is_made(addresses[-1])  # they are sorted
    made = {number for number, a in zip(numbers, addresses, strict=True) if _is_made(a)} if has_made else set()
    for at in _blocked(root, snapshot, numbers):
        if numbers[at] in made:
            verdicts[at] = _UNSURE if verdicts[at] != _NEVER else _NEVER
        elif numbers[at] not in with_others:
            verdicts[at] = _NEVER


def _is_made(address: str) -> bool:
    """Return True for a function in a PCI domain that a driver created: it does not block that driver's device."""
    return address.index(":") > _DOMAIN_DIGITS


def _group_numbers(snapshot: pciscan.Snapshot) -> list[int | None]:
    numbers: list[int | None] = [*snapshot.column("iommu_group").tolist()]
    for at, have in enumerate(snapshot.column("have").tolist()):
        if not have & pciscan.HAVE_IOMMU_GROUP:
            numbers[at] = None
    return numbers


def _groups_with_others(
    root: HostRoot, snapshot: pciscan.Snapshot, numbers: list[int | None], groups: set[int | None]
) -> set[int]:
    """
    Return those of some groups that have a member which is not a function of the scan; perhaps other such groups, too.

    A device is in its IOMMU's list of devices for as long as it is in a group, so a group whose functions are all in
    such a list is not listed itself. A sparse directory has no such lists, and a group that VFIO made for a function
    without an IOMMU is in none.

    Host: sys/class/iommu/NAME/devices; sys/kernel/iommu_groups/N/devices of the other groups

    Source: iommu_init_device, iommu_deinit_device (drivers/iommu/iommu.c); before 5.8 each driver
    """
    unlisted, other_devices = set(snapshot.addresses), []
    for directory, names in _devices_of_iommus(root):
        other_devices += [f"{directory}/{name}/iommu_group" for name in set(names).difference(snapshot.addresses)]
        unlisted.difference_update(names)
    found = {int(name) for name in read_link_names(root, other_devices) if name and name.isdecimal()}
    places = (at for at, address in enumerate(snapshot.addresses) if address in unlisted) if unlisted else ()
    unchecked = sorted({n for at in places if (n := numbers[at]) is not None and n in groups})
    are_known = pciscan.known_groups(root, snapshot, unchecked)
    return found.union(n for n, is_known in zip(unchecked, are_known, strict=True) if not is_known)


def _devices_of_iommus(root: HostRoot) -> list[tuple[str, list[str]]]:
    """Return the directories in which the host's IOMMUs list their devices, with the names there."""
    directories = [f"{root.class_iommu}/{name}/devices" for name in list_names(root, root.class_iommu)]
    return list(zip(directories, list_all_names(root, directories), strict=True))


def _blocked(root: HostRoot, snapshot: pciscan.Snapshot, numbers: list[int | None]) -> list[int]:
    """Return the functions in whose group another function of the scan keeps the DMA for the host."""
    last = dict(zip(numbers, range(len(numbers)), strict=True))
    several = {number for at, number in enumerate(numbers) if last[number] != at} - {None}
    members = [at for at, number in enumerate(numbers) if number in several]
    keepers: dict[int | None, list[int]] = {}
    for at in _read_keepers(root, snapshot, members):
        keepers.setdefault(numbers[at], []).append(at)
    return [at for at in members if keepers.get(numbers[at], [at]) != [at]]


def _read_keepers(root: HostRoot, snapshot: pciscan.Snapshot, positions: list[int]) -> list[int]:
    """Return those of some functions whose drivers keep the DMA."""
    free = {0, *(offset for offset, name in snapshot.driver_names.items() if name in DMA_FREE_DRIVERS)}
    drivers = snapshot.column("driver")
    kept = [at for at in positions if drivers[at] not in free]
    statuses = read_statuses(root, [f"{root.pci_devices}/{snapshot.addresses[at]}/{VFIO_DEV}" for at in kept])
    vfio = {at for at, s in zip(kept, statuses, strict=True) if s is not None and stat.S_ISDIR(s.mode)}
    return [at for at in kept if at not in vfio]
