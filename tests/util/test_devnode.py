# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real nodes: compared before they are changed, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import OperationError, PCIDeviceAddress, SysfsError
from pyhostdev.util.devnode import LiveNodes, NodeWriter
from pyhostdev.util.sysfs_writer import ForkedWriter

DEVICE = PCIDeviceAddress(0, 1, 0, 0)
NODES = LiveNodes()


@pytest.fixture
def node(tmp_path: Path) -> str:
    """A device node like /dev/null's."""
    path = str(tmp_path / "14")
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    return path


def test_live_writer_can_change_nodes() -> None:
    """What writes to the live host is a NodeWriter."""
    assert issubclass(ForkedWriter, NodeWriter)


def test_node_is_given_and_taken_back(node: str) -> None:
    """Owner and group change, mode and number do not."""
    before = NODES.read_node(node)
    assert before is not None
    assert (os.makedev(1, 3), 0o600) == (before.number, before.mode)
    given = before._replace(uid=107, gid=36)
    NODES.set_node_owner(node, given, device=DEVICE)
    assert given == NODES.read_node(node)
    NODES.set_node_owner(node, before, device=DEVICE)
    assert before == NODES.read_node(node)


def test_node_that_was_made_again_is_not_changed(node: str) -> None:
    """Another inode, or another device's number, is another node."""
    before = NODES.read_node(node)
    assert before is not None
    for other in (before._replace(inode=before.inode + 1), before._replace(number=os.makedev(1, 5))):
        with pytest.raises(OperationError, match="was replaced"):
            NODES.set_node_owner(node, other._replace(uid=107), device=DEVICE)
    assert before == NODES.read_node(node)


def test_link_is_not_followed(node: str, tmp_path: Path) -> None:
    """A link to the node is not the node, and the node behind it stays as it is."""
    link = tmp_path / "link"
    link.symlink_to(node)
    before = NODES.read_node(node)
    assert before is not None
    actions: tuple[Callable[[], object], ...] = (
        lambda: NODES.read_node(str(link)),
        lambda: NODES.set_node_owner(str(link), before._replace(uid=107), device=DEVICE),
    )
    for action in actions:
        with pytest.raises(OperationError, match="not a device node"):
            action()
    assert before == NODES.read_node(node)


def test_missing_node_is_none_or_an_error(tmp_path: Path) -> None:
    """For a query, a missing node is None; for a change, it is ENOENT."""
    path = str(tmp_path / "none")
    assert NODES.read_node(path) is None
    Path(path).touch()
    with pytest.raises(OperationError, match="not a device node"):
        NODES.read_node(path)
    os.unlink(path)
    with pytest.raises(SysfsError):
        NODES.set_node_owner(path, NODES.read_node("/dev/null"), device=DEVICE)  # type: ignore[arg-type]


def test_group_that_is_open_is_busy(node: str, tmp_path: Path) -> None:
    """A node that can be opened is not busy, and neither is a missing one; a file in its place is an error."""
    assert NODES.is_group_open(node) is False
    assert NODES.is_group_open(str(tmp_path / "none")) is False
    (tmp_path / "file").write_text("")
    with pytest.raises(OperationError, match="not a device node"):
        NODES.is_group_open(str(tmp_path / "file"))


def test_answer_of_a_busy_group(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EBUSY means that a group is open; if the kernel may not be asked, nothing is known."""
    opened = os.open
    for errnum, busy in ((errno.EBUSY, True), (errno.EPERM, False), (errno.ENODEV, False)):

        def refuse(path: str, flags: int, errnum: int = errnum) -> int:
            if flags & os.O_RDWR:
                raise OSError(errnum, "refused")
            return opened(path, flags)

        monkeypatch.setattr(os, "open", refuse)
        assert busy == NODES.is_group_open(node)
