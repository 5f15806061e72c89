# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The facts of a scan as columns: a reader of one fact of all functions creates no objects.
"""

from __future__ import annotations

from collections import Counter
from functools import reduce
from itertools import compress
from operator import and_

from pyhostdev.util import pciscan

_SLOT_SHIFT = 3  # of a key


class ScanColumns:
    """
    One list per fact, with an item for each function of a scan, in order; None stands for a fact that is absent.

    Each access creates a new list, which belongs to the caller. ``packed`` returns the scanner's numbers unchanged, for
    programs that only count or compare them.
    """

    __slots__ = ("_have", "_snapshot", "_sure")

    def __init__(self, snapshot: pciscan.Snapshot) -> None:
        self._snapshot = snapshot
        self._have = snapshot.column("have").tolist()
        self._sure = reduce(and_, set(self._have), -1)  # the bits that all functions have

    def __len__(self) -> int:
        return len(self._snapshot)

    def packed(self, name: str) -> memoryview[int]:
        """
        Return one field of all functions, unsigned and in native byte order; nothing is copied.

        Args:
            name: ``key`` (domain << 16 | bus << 8 | slot << 3 | function) or ``physfn``, which is also a key: 64 bits;
                ``class_``, ``iommu_group`` or ``driver`` (equal for equal drivers, 0 for none): 32 bits; ``vendor``,
                ``device`` or ``have``: 16 bits. An absent field is 0: the bits ``pciscan.HAVE_*`` of ``have``
                distinguish it from the value 0.

        Raises:
            KeyError: there is no such field.
        """
        return self._snapshot.column(name)

    @property
    def address(self) -> list[str]:
        """Addresses in libvirt's spelling."""
        return list(self._snapshot.addresses)

    @property
    def vendor(self) -> list[int | None]:
        """Vendor ids."""
        return self._known("vendor", pciscan.HAVE_VENDOR)

    @property
    def device(self) -> list[int | None]:
        """Device ids."""
        return self._known("device", pciscan.HAVE_DEVICE)

    @property
    def class_(self) -> list[int | None]:
        """Class, sub-class and interface, 24 bits."""
        return self._known("class_", pciscan.HAVE_CLASS)

    @property
    def driver(self) -> list[str | None]:
        """Names of the bound drivers."""
        return list(map(self._snapshot.driver_names.get, self.packed("driver").tolist()))

    @property
    def iommu_group(self) -> list[int | None]:
        """Numbers of the IOMMU groups."""
        return self._known("iommu_group", pciscan.HAVE_IOMMU_GROUP)

    @property
    def physfn(self) -> list[str | None]:
        """Addresses of the PFs that VFs belong to."""
        texts = self._snapshot.physfn_texts
        pairs = zip(self.packed("physfn").tolist(), self._have, strict=True)
        return [texts[key] if have & pciscan.HAVE_PHYSFN else None for key, have in pairs]

    @property
    def shares_slot(self) -> list[bool]:
        """
        Whether the slot has another function that is not a VF: a scan's estimate of multifunction, without a read of
        the device.

        The kernel probes functions 1 to 7 of a slot only if function 0 is marked as multifunction.

        Source: pci_scan_slot (drivers/pci/probe.c)
        """
        is_own = [not have & pciscan.HAVE_PHYSFN for have in self._have]
        own = list(compress(enumerate(self.packed("key").tolist()), is_own))
        counts = Counter([key >> _SLOT_SHIFT for _, key in own])
        shared = [False] * len(self)
        for at, key in own:
            shared[at] = counts[key >> _SLOT_SHIFT] > 1
        return shared

    def _known(self, name: str, bit: int) -> list[int | None]:
        """Return a field as a list, with None where its bit of ``have`` is not set."""
        values = self.packed(name).tolist()
        if self._sure & bit:
            return values  # type: ignore[return-value]  # a list of integers that is not shared
        return [value if have & bit else None for value, have in zip(values, self._have, strict=True)]
