# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of vendors and devices, and numbers without an entry in the list."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciids import PCIIds

TEXT = b"""# comment
0001  First
8086  Intel Corporation
\t1521  I350 Gigabit
\t\t8086 0001  Board
# a comment in a section
\t1563  X550
8087  Other
\t1522  Not Intel's
ffff  Last"""


@pytest.mark.parametrize(
    ("vendor", "device", "expected"),
    [
        (0x8086, 0x1521, "Intel Corporation I350 Gigabit"),
        (0x8086, 0x1563, "Intel Corporation X550"),
        (0x8086, 0x1522, "Intel Corporation 1522"),
        (0x8086, 0x0001, "Intel Corporation 0001"),
        (0x1234, 0x1521, "1234 1521"),
        (0xFFFF, 0x0001, "Last 0001"),
        (None, None, "? ?"),
    ],
)
def test_names(vendor: int | None, device: int | None, expected: str) -> None:
    """A device belongs to its vendor, boards are not devices, comments end no section."""
    assert expected == PCIIds(TEXT).name(vendor, device)


def test_the_first_host_with_a_list_answers(tmp_path: Path) -> None:
    """Distributions keep the list in two places; a host without it gets numbers."""
    (tmp_path / "usr/share/hwdata").mkdir(parents=True)
    (tmp_path / "usr/share/hwdata/pci.ids").write_bytes(TEXT)
    (tmp_path / "empty").mkdir()
    empty, full = HostRoot(tmp_path / "empty"), HostRoot(tmp_path)
    assert "First" == PCIIds.read(empty, full).vendor(1)
    assert "8086 1521" == PCIIds.read(empty).name(0x8086, 0x1521)


@pytest.mark.parametrize("place", ["misc", "hwdata", ""])
def test_places(tmp_path: Path, place: str) -> None:
    """Debian, Fedora and older systems keep the list in different places."""
    path = tmp_path / "usr/share" / place / "pci.ids"
    path.parent.mkdir(parents=True)
    path.write_bytes(TEXT)
    assert "First" == PCIIds.read(HostRoot(tmp_path)).vendor(1)


def test_bytes_that_are_not_text() -> None:
    """Control characters are dropped, and invalid UTF-8 is replaced: a name is always printable."""
    assert "Evil\ufffd[31m" == PCIIds(b"8086  Evil\xff\x1b[31m\x00\r\n").vendor(0x8086)
