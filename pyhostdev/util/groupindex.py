# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The IOMMU groups of a snapshot in packed form; a host with VFs has about one group per function.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence

from pyhostdev.util.typed import TypeVar

T = TypeVar("T")

_POSITIONS = 1 << 32


class GroupIndex(Mapping[int, tuple[int, ...]]):
    """
    Maps an IOMMU group number to the positions of its functions, both in order.

    It needs 8 bytes per function; a dictionary of tuples needs 150.

    Args:
        numbers: the group number of each function of the snapshot.
        positions: the functions that are in a group, in order.
    """

    __slots__ = ("_groups", "_positions")

    def __init__(self, numbers: Sequence[int], positions: Iterable[int]) -> None:
        ordered = sorted(positions, key=numbers.__getitem__)
        self._positions = array("I", ordered)
        self._groups = array("I", map(numbers.__getitem__, ordered))  # of the function at each of these positions

    def __getitem__(self, group: int) -> tuple[int, ...]:
        if not isinstance(group, int):  # such as None, for a function without a group
            raise KeyError(group)
        first = bisect_left(self._groups, group)
        last = bisect_right(self._groups, group, first)
        if first == last:
            raise KeyError(group)
        return tuple(self._positions[first:last])

    def items(self) -> ItemsView[int, tuple[int, ...]]:
        """Return all groups with their positions, computed in one pass."""
        return {group: tuple(found) for group, found in self.members(range(_POSITIONS)).items()}.items()

    def members(self, values: Sequence[T]) -> dict[int, list[T]]:
        """Return all groups with the values at the positions of their functions, in one pass."""
        made: dict[int, list[T]] = {}
        last = None
        for group, position in zip(self._groups, self._positions, strict=True):
            if group == last:
                made[group].append(values[position])
            else:
                made[group] = [values[position]]
                last = group
        return made

    def __iter__(self) -> Iterator[int]:
        return iter(dict.fromkeys(self._groups))

    def __len__(self) -> int:
        return len(set(self._groups))
