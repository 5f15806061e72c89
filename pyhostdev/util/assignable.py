# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which functions of a scan can be given to a guest: ``HostFunctions.obstacles`` of all at once.

Most functions are decided by the columns of the scan and one reading of each group; only the rest need every rule.
"""

from __future__ import annotations

import stat
from collections import Counter
from typing import TYPE_CHECKING

from pyhostdev.util import pciscan
from pyhostdev.util.iommugroup import VFIO_DEV
from pyhostdev.util.pciassign import DMA_FREE_DRIVERS, VFIO_DENIED
from pyhostdev.util.pciregs import CLASS_BASE_BRIDGE, CLASS_BRIDGE_HOST, CLASS_BRIDGE_PCI, CLASS_DISPLAY
from pyhostdev.util.virfile import read_statuses

if TYPE_CHECKING:
    from collections.abc import Container

    from pyhostdev.util.hostquery import HostFunctions
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.hostusage import HostUsage

Kind = tuple[int, int, int]  # vendor, device, class
_IDENTITY = pciscan.HAVE_VENDOR | pciscan.HAVE_DEVICE | pciscan.HAVE_CLASS
_NEVER, _PLAIN, _DISPLAY, _UNSURE = range(4)
_NOBODY, _SEVERAL, _UNKNOWN = -1, -2, -3  # in the place of the position of the only keeper


def assignable(scan: HostFunctions, snapshot: pciscan.Snapshot, usage: HostUsage) -> list[int]:
    """
    Return the positions of the functions without an obstacle, in order.

    Args:
        snapshot, usage: of the scan.

    Raises:
        SysfsError: the host cannot be read.
    """
    verdicts = _by_kind(snapshot)
    for pf in set(snapshot.column("physfn")):
        position = snapshot.find_key(pf)
        if position is not None:
            verdicts[position] = _NEVER
    clear, unknown = _by_group(scan.root, snapshot, verdicts)
    used, addresses = usage.addresses, snapshot.addresses
    shown = [at for at in clear if verdicts[at] == _DISPLAY and addresses[at] not in used]
    uses = usage.of_all([snapshot.address(at) for at in shown])
    good = {at for at, found in zip(shown, uses, strict=True) if not found}
    good.update(at for at in clear if verdicts[at] == _PLAIN and addresses[at] not in used)
    unsure = [*unknown, *(at for at in clear if verdicts[at] == _UNSURE or addresses[at] in used)]
    good.update(at for at in unsure if scan.is_assignable(scan[at]))
    return sorted(good)


def _by_kind(snapshot: pciscan.Snapshot) -> list[int]:
    """Return what the kind of each function decides."""
    names = ("vendor", "device", "class_", "have")
    rows = list(zip(*(snapshot.column(name).tolist() for name in names), strict=True))
    told = {row: _verdict(row[:3], row[3]) for row in set(rows)}
    return [told[row] for row in rows]


def _verdict(kind: Kind, have: int) -> int:
    """
    Classify a kind: a bridge is never assignable; a display and a plain device depend on their group and uses.

    A denied device and one of unknown class are unsure: every rule is applied to them.
    """
    vendor, device, class_ = kind
    if have & pciscan.HAVE_CLASS and class_ >> 8 in (CLASS_BRIDGE_PCI, CLASS_BRIDGE_HOST):
        return _NEVER
    if have & _IDENTITY != _IDENTITY or (vendor, device) in VFIO_DENIED:
        return _UNSURE
    return {0: _UNSURE, CLASS_BASE_BRIDGE: _UNSURE, CLASS_DISPLAY: _DISPLAY}.get(class_ >> 16, _PLAIN)


def _by_group(root: HostRoot, snapshot: pciscan.Snapshot, verdicts: list[int]) -> tuple[list[int], list[int]]:
    """
    Return the functions in whose group no other member keeps the DMA for the host, and those with an unknown group.

    Each group is listed once; one with members that are not functions of the scan decides nothing.
    """
    numbers = _group_numbers(snapshot)
    wanted = sorted({n for n, verdict in zip(numbers, verdicts, strict=True) if n is not None and verdict != _NEVER})
    known = pciscan.known_groups(root, snapshot, wanted)
    keepers = dict.fromkeys((n for n, is_known in zip(wanted, known, strict=True) if is_known), _NOBODY)
    for at in _read_keepers(root, snapshot, numbers, keepers):
        number = numbers[at]
        assert number is not None
        keepers[number] = at if keepers[number] == _NOBODY else _SEVERAL
    clear: list[int] = []
    unknown: list[int] = []
    for at, (number, verdict) in enumerate(zip(numbers, verdicts, strict=True)):
        if verdict != _NEVER:
            keeper = keepers.get(number, _UNKNOWN)  # type: ignore[arg-type]  # None is in no group
            if keeper in (at, _NOBODY):
                clear.append(at)
            elif keeper == _UNKNOWN:
                unknown.append(at)
    return clear, unknown


def _group_numbers(snapshot: pciscan.Snapshot) -> list[int | None]:
    pairs = zip(snapshot.column("iommu_group").tolist(), snapshot.column("have").tolist(), strict=True)
    return [number if have & pciscan.HAVE_IOMMU_GROUP else None for number, have in pairs]


def _read_keepers(
    root: HostRoot, snapshot: pciscan.Snapshot, numbers: list[int | None], groups: Container[int | None]
) -> list[int]:
    """Return the functions whose drivers keep the DMA of some groups; a VFIO driver is looked for where it matters."""
    free = {0, *(offset for offset, name in snapshot.driver_names.items() if name in DMA_FREE_DRIVERS)}
    drivers = snapshot.column("driver").tolist()
    kept = [at for at, driver in enumerate(drivers) if driver not in free and numbers[at] in groups]
    counts = Counter([numbers[at] for at in kept])
    shared = [at for at in kept if counts[numbers[at]] > 1]
    paths = [f"{root.pci_devices}/{snapshot.addresses[at]}/{VFIO_DEV}" for at in shared]
    statuses = dict(zip(shared, read_statuses(root, paths), strict=True))
    vfio = {at for at, status in statuses.items() if status is not None and stat.S_ISDIR(status.mode)}
    return [at for at in kept if at not in vfio]
