# SPDX-License-Identifier: LGPL-2.1-or-later
"""The overrides saved by driverctl: one file per device, possibly changed in an editor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyhostdev import PCIDeviceAddress, SysfsError
from pyhostdev.util.driverctl import read_driverctl_override
from pyhostdev.util.hostroot import HostRoot

ADDRESS = PCIDeviceAddress(0, 3, 0, 1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The file of one device, in an existing directory."""
    path = Path(HostRoot(tmp_path).driverctl_override(ADDRESS))
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"vfio-pci\n", "vfio-pci"),
        (b"vfio-pci", "vfio-pci"),
        (b" none \nmore\n", "none"),
        (b"", None),
        (b"\n", None),
        (b"\xff/\n", "\\xff/"),
        (b"a" * 500, "a" * 64),
    ],
)
def test_first_line_is_the_driver(saved: Path, tmp_path: Path, data: bytes, expected: str | None) -> None:
    """The first line is used, without blanks, whatever its bytes are; an empty file means no override."""
    saved.write_bytes(data)
    assert expected == read_driverctl_override(HostRoot(tmp_path), ADDRESS)


def test_host_without_driverctl(tmp_path: Path) -> None:
    """Without the directory there is no override."""
    assert read_driverctl_override(HostRoot(tmp_path), ADDRESS) is None


def test_pipe_is_not_waited_for(saved: Path, tmp_path: Path) -> None:
    """A pipe in place of the file is an error at once."""
    os.mkfifo(saved)
    with pytest.raises(SysfsError, match="read a saved override"):
        read_driverctl_override(HostRoot(tmp_path), ADDRESS)


def test_directory_is_an_error(saved: Path, tmp_path: Path) -> None:
    """An existing but unreadable file is an error, not treated as absent."""
    saved.mkdir()
    with pytest.raises(SysfsError, match="read a saved override"):
        read_driverctl_override(HostRoot(tmp_path), ADDRESS)
