# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The IOMMU groups of a snapshot in packed form; a host with VFs has about one group per function.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from pyhostdev.util.typed import TypeVar

T = TypeVar("T")

_POSITIONS = 1 << 32


class GroupIndex(Mapping[int, tuple[int, ...]]):
    """
    Maps an IOMMU group number to the positions of its functions, both in order.

    It needs 8 bytes per function; a dictionary of tuples needs 150.

    Args:
        groups: position and group number of each function that is in a group.
    """

    __slots__ = ("_codes",)

    def __init__(self, groups: Iterable[tuple[int, int]]) -> None:
        self._codes = array("Q", sorted([group << 32 | position for position, group in groups]))

    def __getitem__(self, group: int) -> tuple[int, ...]:
        if not isinstance(group, int):  # such as None, for a function without a group
            raise KeyError(group)
        first = bisect_left(self._codes, group << 32)
        last = bisect_left(self._codes, group + 1 << 32, first)
        if first == last:
            raise KeyError(group)
        return tuple(code & 0xFFFFFFFF for code in self._codes[first:last])

    def items(self) -> ItemsView[int, tuple[int, ...]]:
        """Return all groups with their positions, computed in one pass."""
        return {group: tuple(found) for group, found in self.members(range(_POSITIONS)).items()}.items()

    def members(self, values: Sequence[T]) -> dict[int, list[T]]:
        """Return all groups with the values at the positions of their functions, in one pass."""
        made: dict[int, list[T]] = {}
        last = None
        for code in self._codes:
            group = code >> 32
            if group == last:
                made[group].append(values[code & 0xFFFFFFFF])
            else:
                made[group] = [values[code & 0xFFFFFFFF]]
                last = group
        return made

    def __iter__(self) -> Iterator[int]:
        return (group for group, _ in groupby(code >> 32 for code in self._codes))

    def __len__(self) -> int:
        return sum(1 for _ in self)
