# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The facts of a scan as columns, for readers of one fact of all functions: no objects are created.
"""

from __future__ import annotations

from collections import Counter

from pyhostdev.util import pciscan

_SLOT_SHIFT = 3  # of a key


class ScanColumns:
    """
    One list a fact, of all functions of a scan in their order; None is what the host does not have.

    A list is made each time it is asked for and belongs to the caller. ``packed`` has the numbers as the scanner left
    them, for programs that count or compare numbers only.
    """

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: pciscan.Snapshot) -> None:
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot)

    def packed(self, name: str) -> memoryview[int]:
        """
        Return one field of all functions, unsigned and in the order of the machine; nothing is copied.

        Args:
            name: ``key`` (domain << 16 | bus << 8 | slot << 3 | function) and ``physfn``, a key too, of 64 bits;
                ``class_``, ``iommu_group`` and ``driver`` (equal for equal drivers, 0 without) of 32 bits; ``vendor``,
                ``device`` and ``have`` of 16 bits. A field that the host does not have is 0: the bits
                ``pciscan.HAVE_*`` of ``have`` tell that from a zero.

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
        return [None if key is None else texts[key] for key in self._known("physfn", pciscan.HAVE_PHYSFN)]

    @property
    def shares_slot(self) -> list[bool]:
        """
        Whether the slot has another function that is not a VF: multifunction as far as a scan knows without reading
        it.

        The kernel looks for the functions 1 to 7 of a slot only where function 0 says that there are more.

        Source: pci_scan_slot (drivers/pci/probe.c)
        """
        pairs = zip(self.packed("key").tolist(), self.packed("have").tolist(), strict=True)
        slots = [None if have & pciscan.HAVE_PHYSFN else key >> _SLOT_SHIFT for key, have in pairs]
        counts = Counter(slots)
        return [slot is not None and counts[slot] > 1 for slot in slots]

    def _known(self, name: str, bit: int) -> list[int | None]:
        """Return a field as a list, where a bit of ``have`` says that it is known."""
        pairs = zip(self.packed(name).tolist(), self.packed("have").tolist(), strict=True)
        return [value if have & bit else None for value, have in pairs]
