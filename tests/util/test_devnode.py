# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real nodes: compared before they are changed, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import HostRoot, OperationError, PCIDeviceAddress, SysfsError
from pyhostdev.util.devnode import LiveNodes
from pyhostdev.util.nodewriter import changes_nodes, opens_nodes
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


def test_live_writer_can_change_nodes(tmp_path: Path) -> None:
    """The writer of the live host is a NodeWriter, and another object is not."""
    assert changes_nodes(ForkedWriter(HostRoot(tmp_path)))
    assert not changes_nodes(object())


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


def test_recreated_node_is_not_changed(node: str) -> None:
    """Another inode, or another device's number, is another node."""
    before = NODES.read_node(node)
    assert before is not None
    for other in (before._replace(inode=before.inode + 1), before._replace(number=os.makedev(1, 5))):
        with pytest.raises(OperationError, match="was replaced"):
            NODES.set_node_owner(node, other._replace(uid=107), device=DEVICE)
    assert before == NODES.read_node(node)


def test_link_is_not_followed(node: str, tmp_path: Path) -> None:
    """A link to the node is refused, and the node is not changed."""
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
    """EBUSY means that a group is open; if the node may not be opened, the answer is unknown."""
    opened = os.open
    for errnum, busy in ((errno.EBUSY, True), (errno.EPERM, False), (errno.ENODEV, False)):

        def refuse(path: str, flags: int, errnum: int = errnum) -> int:
            if flags & os.O_RDWR:
                raise OSError(errnum, "refused")
            return opened(path, flags)

        monkeypatch.setattr(os, "open", refuse)
        assert busy == NODES.is_group_open(node)


def test_live_writer_can_open_nodes(tmp_path: Path) -> None:
    """The helper of the live host opens the nodes that a guest gets as descriptors."""
    assert opens_nodes(ForkedWriter(HostRoot(tmp_path)))
    assert not opens_nodes(object())


def test_node_is_opened_if_it_is_the_expected_one(node: str, tmp_path: Path) -> None:
    """The device number decides, not the name; a link is not followed, and a file is refused."""
    fd = NODES.open_node(node, os.makedev(1, 3), device=DEVICE)
    assert os.path.samestat(os.fstat(fd), os.stat(node))
    assert not os.get_inheritable(fd)
    os.close(fd)
    for number in (os.makedev(1, 5), None):
        with pytest.raises(OperationError, match="was replaced"):
            NODES.open_node(node, number, device=DEVICE)
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(node)
    file.touch()
    for path in (link, file):
        with pytest.raises(OperationError, match="is not a device node"):
            NODES.open_iommufd(str(path))
    with pytest.raises(SysfsError) as error:
        NODES.open_node(str(tmp_path / "none"), 0, device=DEVICE)
    assert errno.ENOENT == error.value.errno


def test_mode_of_accounting_is_set_on_an_iommufd_only(node: str) -> None:
    """Any other device refuses the request."""
    fd = NODES.open_iommufd(node)
    with pytest.raises(SysfsError, match="charge locked memory to each process") as error:
        NODES.charge_to_process(fd, node)
    assert errno.ENOTTY == error.value.errno
    os.close(fd)


def test_open_files_leave_no_descriptor_behind(node: str) -> None:
    """Every examined node is closed, even one that cannot be opened."""
    before = set(os.listdir("/proc/self/fd"))
    fd = NODES.open_iommufd(node)
    assert 1 == len(set(os.listdir("/proc/self/fd")) - before)
    os.close(fd)
    with pytest.raises(OperationError):
        NODES.open_node(node, 0, device=DEVICE)
    assert before == set(os.listdir("/proc/self/fd"))
