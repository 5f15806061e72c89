# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which functions of a scan can be given to a guest: ``HostFunctions.obstacles`` of all at once.

Most functions are decided by the columns of the scan and one reading of each group; only the rest need every rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pyhostdev.util.iommugroup import MEMBERS_MAX
from pyhostdev.util.pciassign import DMA_FREE_DRIVERS, VFIO_DENIED
from pyhostdev.util.pciregs import CLASS_BASE_BRIDGE, CLASS_BRIDGE_HOST, CLASS_BRIDGE_PCI, CLASS_DISPLAY
from pyhostdev.util.virfile import list_names

if TYPE_CHECKING:
    from pyhostdev.util.hostquery import HostFunctions
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.hostusage import HostUsage
    from pyhostdev.util.scancolumns import ScanColumns
    from pyhostdev.util.virpci import PCIDevice

    Groups = Mapping[int, Sequence[int]]  # number to the positions of its functions in the scan

Kind = tuple["int | None", "int | None", "int | None"]  # vendor, device, class


def assignable(scan: HostFunctions, columns: ScanColumns, groups: Groups, usage: HostUsage) -> list[PCIDevice]:
    """
    Return the functions without an obstacle, in order.

    Args:
        columns, usage: of the scan.

    Raises:
        SysfsError: the host cannot be read.
    """
    kinds = list(zip(columns.vendor, columns.device, columns.class_, strict=True))
    pfs = set(columns.physfn)
    never = {kind for kind in set(kinds) if _is_bridge(kind)}
    clear = set(_in_clear_groups(scan.root, groups, columns.address, columns.driver))
    plain = {kind for kind in set(kinds) if _is_plain(kind)}
    used = usage.addresses
    found = []
    for position, (address, kind) in enumerate(zip(columns.address, kinds, strict=True)):
        if kind in never or address in pfs:
            continue
        is_clear = kind in plain and position in clear and address not in used
        if is_clear or scan.is_assignable(scan[position]):
            found.append(scan[position])
    return found


def _is_bridge(kind: Kind) -> bool:
    return kind[2] is not None and kind[2] >> 8 in (CLASS_BRIDGE_PCI, CLASS_BRIDGE_HOST)


def _is_plain(kind: Kind) -> bool:
    """Return True if no rule applies to functions of this kind: not a bridge, a display or a denied device."""
    vendor, device, class_ = kind
    if vendor is None or device is None or class_ is None or (vendor, device) in VFIO_DENIED:
        return False
    return class_ >> 16 not in (0, CLASS_DISPLAY, CLASS_BASE_BRIDGE)


def _in_clear_groups(
    root: HostRoot, groups: Groups, addresses: Sequence[str], drivers: Sequence[str | None]
) -> Iterator[int]:
    """Yield the positions of functions in whose group no other driver keeps the DMA for the host."""
    for group, positions in groups.items():
        keepers = [at for at in positions if drivers[at] is not None and drivers[at] not in DMA_FREE_DRIVERS]
        if len(keepers) > 1:
            continue
        names = list_names(root, root.iommu_group_devices(group), MEMBERS_MAX)
        if len(names) <= len(positions) and {addresses[at] for at in positions}.issuperset(names):
            yield from keepers or positions
