# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions about a file of a host."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virfile import is_cdrom

CDROM, DISK = os.makedev(11, 0), os.makedev(8, 0)


def make_node(path: Path, device: int) -> None:
    """Make a block device, which needs root."""
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, device)
    except PermissionError:
        pytest.skip("this user may not make device nodes")


def test_cdrom_is_told_by_its_number(tmp_path: Path) -> None:
    """A drive, by a link, too; not a disk, a file, or a missing path."""
    root = HostRoot(tmp_path / "host")
    (tmp_path / "host/dev").mkdir(parents=True)
    make_node(tmp_path / "host/dev/sr0", CDROM)
    make_node(tmp_path / "host/dev/sda", DISK)
    (tmp_path / "host/dev/cdrom").symlink_to("/dev/sr0")
    (tmp_path / "host/dev/file").touch()
    found = {name: is_cdrom(root, root.join(f"dev/{name}")) for name in ("sr0", "cdrom", "sda", "file", "absent")}
    assert {"sr0", "cdrom"} == {name for name, answer in found.items() if answer}


def test_link_out_of_a_root_leads_to_no_drive(tmp_path: Path) -> None:
    """A directory in the place of / cannot ask about nodes of the live host."""
    (tmp_path / "host/dev").mkdir(parents=True)
    make_node(tmp_path / "outside", CDROM)
    root = HostRoot(tmp_path / "host")
    for number, target in enumerate(("../../outside", str(tmp_path / "outside"))):
        (tmp_path / f"host/dev/{number}").symlink_to(target)
        assert not is_cdrom(root, root.join(f"dev/{number}"))
    assert is_cdrom(HostRoot("/"), str(tmp_path / "outside"))
