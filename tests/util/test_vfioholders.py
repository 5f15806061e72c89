# SPDX-License-Identifier: LGPL-2.1-or-later
"""The holders of a group: found by number and by the function that the kernel names, never by the text of a path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyhostdev import DeviceInUseError, DomainDef, HostRoot, PCIDeviceAddress, SysfsError
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.virhostdev import HostdevManager
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.procfiles import SimulatedProcess
from pyhostdev.util import vfioholders
from pyhostdev.util.procfs import read_process
from pyhostdev.util.vfioholders import _descriptors, _Signs, read_group_holders
from pyhostdev.util.virfile import Bounds

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]


@pytest.fixture
def prepared(bcm5719: FakeHost, seed_domain: DomainDef) -> FakeHost:
    """A host of a kernel of 2026 with the seed's devices prepared."""
    Path(bcm5719.root.kernel_release).write_text("7.2.13\n")
    Path(bcm5719.root.dev_iommu).parent.mkdir(exist_ok=True)
    Path(bcm5719.root.dev_iommu).touch()
    manager = manager_of(bcm5719)
    manager.prepare(manager.host.plan(seed_domain))
    return bcm5719


def manager_of(fake: FakeHost) -> HostdevManager:
    return HostdevManager(Host(fake.root, writer=fake.kernel))


def node_of(fake: FakeHost, address: PCIDeviceAddress) -> str:
    (name,) = os.listdir(os.path.join(fake.root.pci_device(address), "vfio-dev"))
    return os.path.join(fake.root.dev_vfio_devices, name)


@pytest.mark.fault("F43")
@pytest.mark.parametrize("which", ["group", "function"])
def test_file_of_that_name_holds_nothing(prepared: FakeHost, which: str) -> None:
    """A user's file mounted as /dev/vfio/14 does not keep a device from being released."""
    before = prepared.snapshot()
    node = prepared.root.vfio_group(14) if which == "group" else node_of(prepared, CARD[1])
    stranger = SimulatedProcess(prepared.root, [])
    stranger.add_node(node, inode=os.lstat(node).st_ino + 1)
    assert {} == read_group_holders(prepared.root, [14])
    assert CARD == manager_of(prepared).release("vm1")
    stranger.vanish()
    assert before != prepared.snapshot()


@pytest.mark.parametrize("which", ["group", "node", "deleted-node", "function"])
def test_holder_is_found_however_it_holds(prepared: FakeHost, which: str) -> None:
    """The group's node, a function's own, one that has gone, and what QEMU gets of a group: all are one holder."""
    if which == "function":
        holder = SimulatedProcess(prepared.root, [], [str(CARD[2])])
    else:
        holder = SimulatedProcess(prepared.root, [])
        node = prepared.root.vfio_group(14) if which == "group" else node_of(prepared, CARD[2])
        holder.add_node(node, function=None if which == "group" else str(CARD[2]))
    if which == "deleted-node":
        os.unlink(node_of(prepared, CARD[2]))
        holder.delete_nodes()
    assert [holder.pid] == [process.pid for process in read_group_holders(prepared.root, [14])[14]]
    with pytest.raises(DeviceInUseError, match=rf"held open by 'qemu-system-x86' \(process {holder.pid}\)"):
        manager_of(prepared).release("vm1")
    holder.vanish()
    assert CARD == manager_of(prepared).release("vm1")


def test_another_functions_holder_is_not_this_groups(prepared: FakeHost) -> None:
    """A process with a function of another group open holds nothing here, nor does one with /dev/iommu."""
    holder = SimulatedProcess(prepared.root, [], ["0001:07:00.0"])
    holder.add_descriptor("/dev/iommu", {"ino": "5"})
    assert {} == read_group_holders(prepared.root, [14])


def test_threads_of_a_process_whose_first_one_has_ended_hold(prepared: FakeHost) -> None:
    """The first thread of a process may be a zombie without descriptors while the others are at work."""
    holder = SimulatedProcess(prepared.root, [prepared.root.vfio_group(14)])
    thread = Path(holder.directory, "task", str(holder.pid + 1))
    thread.mkdir(parents=True)
    for name in ("fd", "fdinfo"):
        Path(holder.directory, name).rename(thread / name)
        Path(holder.directory, name).mkdir()
    assert [holder.pid] == [process.pid for process in read_group_holders(prepared.root, [14])[14]]


@pytest.mark.parametrize(
    ("line", "is_ending"),
    [
        ("5 (a) b) S 1 5 5 0 -1 4194304 0", False),
        ("5 (a) b) R 1 5 5 0 -1 4194308 0", True),
        ("5 (x) Z 1 5 5 0 -1 0 0", True),
        ("5 (x) D 1 5", False),
        ("5 (x) S a b c d e f g", False),
    ],
)
def test_process_on_its_way_out(bcm5719: FakeHost, line: str, is_ending: bool) -> None:
    """A zombie, and one in the middle of its exit, close what they have by themselves; names may look like numbers."""
    top = Path(bcm5719.root.proc, "5")
    top.mkdir()
    (top / "comm").write_text("x\n")
    (top / "stat").write_text(f"{line}\n")
    assert is_ending == read_process(bcm5719.root, 5).is_ending
    assert read_process(bcm5719.root, 6).is_ending


class Live:
    """This process's own descriptors, on the live host, with /dev/null as a group's node."""

    def __init__(self) -> None:
        self.root = HostRoot("/")
        self.signs = _Signs(self.root, [])
        self.signs.numbers[os.stat("/dev/null").st_rdev] = 14

    def groups(self, pid: int) -> set[int | None]:
        return {self.signs.group_of(descriptor) for descriptor in _descriptors(self.root, pid)}


def test_number_decides_on_the_live_host(tmp_path: Path) -> None:
    """A device is known by its number under any name, and a file by its name is not one."""
    live = Live()
    script = "import os, sys; os.open(sys.argv[1], os.O_RDONLY); print(flush=True); sys.stdin.readline()"

    def held(path: str) -> bool:
        with subprocess.Popen(
            [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            found = live.groups(child.pid)
            child.communicate(b"\n")
        return 14 in found

    (tmp_path / "14").write_text("")
    assert held("/dev/null")
    assert not held(str(tmp_path / "14"))
    assert not held("/dev/zero")


def test_deleted_node_is_known_by_its_number(tmp_path: Path) -> None:
    """A node that was removed while it was open still has its device's number."""
    path = str(tmp_path / "vfio0")
    try:
        os.mknod(path, 0o600 | 0o020000, os.stat("/dev/null").st_rdev)
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:
        pytest.skip("only root makes device nodes, and not on every file system")
    os.unlink(path)
    try:
        live = Live()
        deleted = [d for d in _descriptors(live.root, os.getpid()) if d.text.startswith(path)]
        assert [14] == [live.signs.group_of(descriptor) for descriptor in deleted]
    finally:
        os.close(fd)


def test_process_with_too_many_files_is_named(prepared: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user can open more files than are searched: the error names a process, so that it can be ended."""
    SimulatedProcess(prepared.root, [])
    busy = SimulatedProcess(prepared.root, [])
    for number in range(3):
        busy.add_node(node_of(prepared, CARD[number]))
    monkeypatch.setattr(vfioholders, "bounds_of", lambda _root: Bounds(1 << 20, 1 << 20, 2))
    with pytest.raises(SysfsError, match=f"more than 2 descriptors, the most of them of .*{busy.pid}"):
        read_group_holders(prepared.root, [14])
