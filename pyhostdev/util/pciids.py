# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Names of vendors and devices, from the distribution's list.

Only the wanted lines are looked up: the list has 40,000, and a host has few kinds of devices.
"""

from __future__ import annotations

import re
from itertools import groupby

from pyhostdev.errors import SysfsError
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.virfile import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyhostdev.util.hostroot import HostRoot

_FILE_MAX = 16 << 20
_SECTION_MAX = 2 << 20  # bytes about one vendor; the longest has 200 KiB
_NAME_MAX = 256  # bytes of a line; the longest has 120
_SECTION_END = rb"\n(?![\t#\n])"


class PCIIds:
    """The list of names; empty if the host has none."""

    def __init__(self, text: bytes) -> None:
        self._text = b"\n" + text
        self._vendors: dict[int, bytes] = {}

    @classmethod
    def read(cls, *roots: HostRoot) -> PCIIds:
        """Return the list of the first of these hosts that has one; a snapshot has the names of its own devices."""
        for root in roots:
            for path in root.pci_ids():
                try:
                    data = read_bytes(root, path, _FILE_MAX)
                except SysfsError:
                    continue
                if data is not None:
                    return cls(data)
        return cls(b"")

    def _section(self, vendor: int) -> bytes:
        """Return the lines of one vendor, its own first."""
        if vendor not in self._vendors:
            start = self._text.find(b"\n%04x  " % vendor)
            last = start + _SECTION_MAX
            end = re.compile(_SECTION_END).search(self._text, start + 1, last)
            self._vendors[vendor] = b"" if start < 0 else self._text[start : end.start() if end else last]
        return self._vendors[vendor]

    def vendor(self, vendor: int | None) -> str | None:
        """Return a vendor's name, None if it is not in the list."""
        if vendor is None:
            return None
        return _words(self._section(vendor).lstrip(b"\n")[6:])

    def device(self, vendor: int | None, device: int | None) -> str | None:
        """Return a device's name, None if it is not in the list."""
        if vendor is None or device is None:
            return None
        return _words(self._section(vendor).partition(b"\n\t%04x  " % device)[2])

    def name(self, vendor: int | None, device: int | None) -> str:
        """Return vendor and device in words, numbers where the list has no name."""
        numbers = [None if number is None else f"{number:04x}" for number in (vendor, device)]
        words = (self.vendor(vendor) or numbers[0] or "?", self.device(vendor, device) or numbers[1] or "?")
        return " ".join(words)

    def excerpt(self, ids: Iterable[tuple[int, int]]) -> bytes:
        """Return a list with only the names of these vendors and devices, sorted."""
        lines = []
        for vendor, pairs in groupby(sorted(set(ids)), key=lambda pair: pair[0]):
            name = self.vendor(vendor)
            if name is not None:
                lines.append(f"{vendor:04x}  {name}")
                names = ((device, self.device(vendor, device)) for _, device in pairs)
                lines += [f"\t{device:04x}  {found}" for device, found in names if found is not None]
        return "".join(f"{line}\n" for line in lines).encode()


def _words(text: bytes) -> str | None:
    """Return the rest of a line, without characters that no terminal and no XML should get; None if it is empty."""
    words = text[:_NAME_MAX].partition(b"\n")[0].decode("utf-8", "replace").strip()
    return "".join(c for c in words if c.isprintable()) or None
