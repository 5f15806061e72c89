# SPDX-License-Identifier: LGPL-2.1-or-later
"""A refreshed scan equals a full one after any change, and reads only what may have changed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from sizes import examples

from pyhostdev.errors import ConfigError, SysfsError
from pyhostdev.hypervisor.host import Host
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.generator import make_tree
from pyhostdev.util import events, pciscan, scanproof, scanrefresh
from pyhostdev.util.events import PCIMonitor
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciscan import Snapshot, Tuning

AS_SYSFS = Tuning(linked=True, stamped=True)
TMPFS = "/dev/shm"  # as sysfs, tmpfs uses no inode number twice

PF = PCIDeviceAddress.parse("0000:03:00.0")
CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
VFS = [PCIDeviceAddress.parse(f"0000:03:10.{function}") for function in (0, 2)]
HOST = """
driver pcieport class:0604 builtin
driver ixgbe 8086:1563
driver ixgbevf 8086:1565
driver igb 8086:1521
driver vfio-pci
0000:00:03.0 8086:2032 060400 driver=pcieport group=2 bridge=03-03 express=root-port acs
0000:03:00.0 8086:1563 020000 driver=ixgbe group=4 express=endpoint flr sriov=4 vf-device=1565 vf-offset=128 vf-stride=2
0001:00:01.0 8086:2032 060400 driver=pcieport group=8 bridge=09-09 express=root-port acs
0001:09:00.0 8086:1521 020000 driver=igb group=9 express=endpoint multifunction
0001:09:00.1 8086:1521 020000 driver=vfio-pci override=vfio-pci group=9 express=endpoint multifunction
0001:09:00.2 8086:1521 020000 group=9 express=endpoint multifunction
"""

pytestmark = pytest.mark.skipif(not os.access(TMPFS, os.W_OK), reason="needs a tmpfs")


def store(name: str, value: str) -> Callable[[FakeHost, PCIDeviceAddress], None]:
    """Return an action that writes an attribute of a function."""

    def act(fake: FakeHost, address: PCIDeviceAddress) -> None:
        fake.kernel.write(os.path.join(fake.root.pci_device(address), name), value.encode(), device=address)

    return act


def move(driver: str, verb: str) -> Callable[[FakeHost, PCIDeviceAddress], None]:
    """Return an action that binds a function to a driver, or unbinds it."""

    def act(fake: FakeHost, address: PCIDeviceAddress) -> None:
        path = os.path.join(fake.root.pci_driver(driver), verb)
        fake.kernel.write(path, str(address).encode(), device=address)

    return act


def toggle_driver(fake: FakeHost, address: PCIDeviceAddress) -> None:
    """Unbind a function from its driver, or bind it to vfio-pci."""
    link = os.path.join(fake.root.pci_device(address), "driver")
    if os.path.lexists(link):
        move(os.path.basename(os.readlink(link)), "unbind")(fake, address)
    else:
        store("driver_override", "vfio-pci")(fake, address)
        move("vfio-pci", "bind")(fake, address)


def take_home(fake: FakeHost, address: PCIDeviceAddress) -> None:
    """Let the kernel probe a driver for a function without one."""
    store("driver_override", "\n")(fake, address)
    fake.kernel.write(fake.root.drivers_probe, str(address).encode(), device=address)


def toggle_function(fake: FakeHost, address: PCIDeviceAddress) -> None:
    """Unplug a function, or plug it in."""
    if os.path.isdir(fake.root.pci_device(address)):
        fake.remove_function(address)
    else:
        fake.add_function(f"{address} 8086:1521 020000 group=9 express=endpoint multifunction")


def replace_function(fake: FakeHost, address: PCIDeviceAddress) -> None:
    """Replace a device by another one, in another group."""
    if os.path.isdir(fake.root.pci_device(address)):
        fake.remove_function(address)
    fake.add_function(f"{address} 14e4:1657 020000 group={20 + address.function} express=endpoint multifunction")


def toggle_vfs(fake: FakeHost, address: PCIDeviceAddress) -> None:
    """Make VFs, or remove them."""
    has_vfs = os.path.isdir(fake.root.pci_device(VFS[0]))
    store("sriov_numvfs", "0" if has_vfs else "3")(fake, PF)


Change = tuple[Callable[[FakeHost, PCIDeviceAddress], None], PCIDeviceAddress]

CHANGES: dict[Callable[[FakeHost, PCIDeviceAddress], None], list[PCIDeviceAddress]] = {
    toggle_driver: [*CARD[:3], PF, *VFS],
    take_home: [*CARD[:3], PF, *VFS],
    toggle_function: CARD[1:],
    replace_function: CARD[1:],
    toggle_vfs: [PF],
}
ANY_CHANGE = st.sampled_from([(act, address) for act, addresses in CHANGES.items() for address in addresses])


def watched(root: HostRoot) -> list[str]:
    """Return the directories whose times the proof contains."""
    drivers = [root.join(root.pci_drivers, name) for name in os.listdir(root.pci_drivers)]
    return [path for path in (root.pci_devices, root.pci_drivers, root.iommu_groups, *drivers) if os.path.isdir(path)]


class Clock:
    """The clock of directories and scans; it advances on request."""

    def __init__(self, root: HostRoot, tick_ns: int) -> None:
        self.root = root
        self.tick_ns = tick_ns
        self.now_ns = time.time_ns()
        self.told: dict[str, int] = {}

    def time_ns(self) -> int:
        """Return the time, as time.time_ns does."""
        return self.now_ns

    def stamp(self) -> None:
        """Give each directory that has changed the time of the last tick."""
        for path in watched(self.root):
            if os.stat(path).st_mtime_ns != self.told.get(path):
                self.told[path] = self.now_ns // self.tick_ns * self.tick_ns
                os.utime(path, ns=(self.told[path], self.told[path]))


class Changes(RuleBasedStateMachine):
    """Scans, changes of the host and refreshes of any earlier scan, in any order, even during a change."""

    scans = Bundle("scans")
    tick_ns = 1

    def __init__(self) -> None:
        super().__init__()
        self.undo = ExitStack()
        directory = self.undo.enter_context(tempfile.TemporaryDirectory(dir=TMPFS))
        self.fake = FakeHost.from_tree(HOST, directory)
        self.clock = Clock(self.fake.root, self.tick_ns)
        self.undo.enter_context(mock.patch.object(scanproof, "time", self.clock))

    def teardown(self) -> None:
        self.undo.close()

    @initialize(target=scans)
    def begin(self) -> Snapshot:
        self.clock.stamp()
        return scanrefresh.scan(self.fake.root, AS_SYSFS)

    def act(self, change: Change) -> None:
        """Make a change, one tick after the earlier ones."""
        with suppress(SysfsError, ConfigError):  # the kernel refuses some of it
            change[0](self.fake, change[1])
        self.clock.now_ns += 1000
        self.clock.stamp()

    @rule(change=ANY_CHANGE)
    def change(self, change: Change) -> None:
        self.act(change)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.clock.now_ns += seconds * 1_000_000_000

    @rule(old=scans, target=scans)
    def refresh(self, old: Snapshot) -> Snapshot:
        found = scanrefresh.refresh(self.fake.root, old)
        assert list(pciscan.scan_with(self.fake.root, AS_SYSFS)) == list(found)
        assert found.addresses == [record.address for record in found]
        return found

    @rule(old=scans, change=ANY_CHANGE, target=scans)
    def refresh_meanwhile(self, old: Snapshot, change: Change) -> Snapshot:
        """The host changes after the times were read: this refresh or the next one sees it."""
        read_marks = scanproof.read_marks

        def and_change(*args: Any) -> scanproof.Marks | None:
            marks = read_marks(*args)
            self.act(change)
            return marks

        with mock.patch.object(scanrefresh, "read_marks", and_change):
            return scanrefresh.refresh(self.fake.root, old)


class ChangesOfCoarseTime(Changes):
    """The same test with a coarse clock: many changes have the same time."""

    tick_ns = 4_000_000


MANY = settings(
    max_examples=examples(8), stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChanges = Changes.TestCase
TestChanges.settings = MANY
TestChangesOfCoarseTime = ChangesOfCoarseTime.TestCase
TestChangesOfCoarseTime.settings = MANY


@pytest.fixture
def fake() -> Iterator[FakeHost]:
    """A host whose last change is old enough for a proof."""
    with tempfile.TemporaryDirectory(dir=TMPFS) as directory:
        made = FakeHost.from_tree(HOST, directory)
        shift_back(made.root)
        yield made


def shift_back(root: HostRoot) -> None:
    """Let the last change of each directory be long ago."""
    then = time.time_ns() - 10 * scanproof.SETTLE_NS
    for path in watched(root):
        os.utime(path, ns=(then, then))


class Calls:
    """What a refresh lists and reads."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        self.read: list[str] = []
        self.scans = 0


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Count what is listed, read and scanned."""
    calls = Calls()
    entries, read = pciscan.FunctionReader.entries, pciscan.FunctionReader.read

    def counted_entries(self: Any, path: str, **options: Any) -> bytes:
        calls.listed.append(os.path.basename(path))
        return entries(self, path, **options)

    def counted_read(self: Any, addresses: Any) -> Snapshot:
        asked = sorted(addresses)
        calls.read += [str(address) for address in asked]
        return read(self, asked)

    def counted_scan(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.scans += 1
            return function(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(pciscan.FunctionReader, "entries", counted_entries)
        patch.setattr(pciscan.FunctionReader, "read", counted_read)
        patch.setattr(pciscan, "scan_with", counted_scan(pciscan.scan_with))
        patch.setattr(pciscan, "scan_listed", counted_scan(pciscan.scan_listed))
        yield calls


def test_unchanged_host_is_not_read(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a change, nothing is listed or read, and the records are the same object."""
    old = scanrefresh.scan(fake.root, AS_SYSFS)
    with counted(monkeypatch) as calls:
        assert old is scanrefresh.refresh(fake.root, old)
    assert ([], [], 0) == (calls.listed, calls.read, calls.scans)


def test_bind_lists_its_drivers(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a function moves between two drivers, their two lists are read, and no function."""
    old = scanrefresh.scan(fake.root, AS_SYSFS)
    move("igb", "unbind")(fake, CARD[0])
    store("driver_override", "vfio-pci")(fake, CARD[0])
    move("vfio-pci", "bind")(fake, CARD[0])
    with counted(monkeypatch) as calls:
        found = scanrefresh.refresh(fake.root, old)
    assert ({"igb", "vfio-pci"}, [], 0) == (set(calls.listed), calls.read, calls.scans)
    assert list(pciscan.scan_with(fake.root, AS_SYSFS)) == list(found)
    assert "igb" in [record.driver for record in old]


def test_vfs_are_read_alone(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a PF gets VFs, only the VFs are read; if they are removed, nothing is read."""
    old = scanrefresh.scan(fake.root, AS_SYSFS)
    store("sriov_numvfs", "3")(fake, PF)
    with counted(monkeypatch) as calls:
        found = scanrefresh.refresh(fake.root, old)
    assert (["0000:03:10.0", "0000:03:10.2", "0000:03:10.4"], 0) == (calls.read, calls.scans)
    assert list(pciscan.scan_with(fake.root, AS_SYSFS)) == list(found)
    shift_back(fake.root)
    settled = scanrefresh.refresh(fake.root, found)
    store("sriov_numvfs", "0")(fake, PF)
    with counted(monkeypatch) as calls:
        found = scanrefresh.refresh(fake.root, settled)
    assert ([], 0) == (calls.read, calls.scans)
    assert list(old) == list(found)


def test_young_function_is_read_again(fake: FakeHost) -> None:
    """A VF is listed before it is linked to its PF: a recently listed function is read once more."""
    old = scanrefresh.scan(fake.root, AS_SYSFS)
    store("sriov_numvfs", "1")(fake, PF)
    link = os.path.join(fake.root.pci_device(VFS[0]), "physfn")
    target = os.readlink(link)
    os.unlink(link)
    early = scanrefresh.refresh(fake.root, old)
    os.symlink(target, link)
    late = scanrefresh.refresh(fake.root, early)
    assert ([None], [str(PF)]) == tuple([r.physfn for r in s if r.address == str(VFS[0])] for s in (early, late))


def test_function_that_gets_a_group_later(fake: FakeHost) -> None:
    """A function without a group is read each time: it may join an existing group."""
    link = os.path.join(fake.root.pci_device(CARD[2]), "iommu_group")
    target = os.readlink(link)
    os.unlink(link)
    old = scanrefresh.scan(fake.root, AS_SYSFS)
    os.symlink(target, link)
    found = scanrefresh.refresh(fake.root, old)
    assert list(pciscan.scan_with(fake.root, AS_SYSFS)) == list(found) != list(old)


def test_group_whose_number_is_used_again(fake: FakeHost) -> None:
    """Functions of a removed group are read again, even if another group has its number."""
    old = scanrefresh.scan(fake.root, AS_SYSFS)
    first = fake.root.join(fake.root.iommu_groups, "9")
    shutil.rmtree(first)
    os.makedirs(os.path.join(first, "devices"))
    link = os.path.join(fake.root.pci_device(CARD[0]), "iommu_group")
    os.unlink(link)
    found = scanrefresh.refresh(fake.root, old)
    assert list(pciscan.scan_with(fake.root, AS_SYSFS)) == list(found) != list(old)


def test_driver_that_is_loaded_and_unloaded(fake: FakeHost) -> None:
    """A loaded driver is watched; an unloaded driver's functions are unbound."""
    old = scanrefresh.scan(fake.root, AS_SYSFS)
    path = Path(fake.root.pci_driver("late"))
    path.mkdir()
    driver = Path(fake.root.pci_device(CARD[2]), "driver")
    (path / str(CARD[2])).symlink_to("../../../../devices/x")
    driver.symlink_to("../../../bus/pci/drivers/late")
    bound = scanrefresh.refresh(fake.root, old)
    assert ["late"] == [record.driver for record in bound if record.address == str(CARD[2])]
    shutil.rmtree(path)
    driver.unlink()
    assert list(old) == list(scanrefresh.refresh(fake.root, bound))


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(linked=True)])
def test_directory_proves_nothing(fake: FakeHost, tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory outside sysfs is read in full each time, whatever its times."""
    old = scanrefresh.scan(fake.root, tuning)
    assert old.proof is None
    with counted(monkeypatch) as calls:
        assert list(old) == list(scanrefresh.refresh(fake.root, old))
    assert 1 == calls.scans


@pytest.mark.parametrize(
    ("release", "expected"),
    [("6.1.0-28-amd64", True), ("6.18.3", True), ("6.18", True), ("7.2.13-lab", True), ("6.10.2", False),
     ("7.20.1", False), ("5.4.0", False), ("6", False), ("", False), ("6.x", False), ("4.4.0", False)],
)  # fmt: skip
def test_kernels_that_are_proven(release: str, expected: bool) -> None:
    """Only series where the rule was measured count; any other is read in full."""
    assert expected is scanproof.is_proven(release)


def test_other_kernel_is_read_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live host's directories are trusted on a proven kernel only."""
    if not os.path.isdir(HostRoot().pci_drivers):
        pytest.skip("this machine has no PCI bus")
    monkeypatch.setattr(scanproof, "is_proven", lambda release: False)
    assert scanrefresh.scan(HostRoot()).proof is None
    monkeypatch.setattr(scanproof, "is_proven", lambda release: True)
    assert scanrefresh.scan(HostRoot()).proof is not None


def test_live_host_equals_a_scan() -> None:
    """On this machine, a refresh equals a scan, twice in a row."""
    if not os.path.isdir(HostRoot().pci_drivers):
        pytest.skip("this machine has no PCI bus")
    scan = Host().scan()
    expected = list(pciscan.scan(HostRoot()))
    assert expected == list(scan.refresh().refresh()._snapshot)


def test_crowd_equals_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a large host, many changed functions cause a scan; a few are read one by one."""
    with tempfile.TemporaryDirectory(dir=TMPFS) as directory:
        make_tree(directory, 600)
        root = HostRoot(directory)
        shift_back(root)
        old = scanrefresh.scan(root, AS_SYSFS)
        assert list(pciscan.scan_with(root, AS_SYSFS)) == list(old)
        links = sorted(os.scandir(root.pci_devices), key=lambda entry: entry.name)
        targets = {entry.path: os.readlink(entry.path) for entry in links[100:130]}
        for path in targets:
            os.unlink(path)
        found = scanrefresh.refresh(root, old)
        assert [record.address for record in old if record not in list(found)] == [e.name for e in links[100:130]]
        for path, target in targets.items():
            os.symlink(target, path)
        with counted(monkeypatch) as calls:
            back = scanrefresh.refresh(root, found)
        assert (30, 0) == (len(calls.read), calls.scans)
        assert [record._replace(driver=None) for record in old] == [record._replace(driver=None) for record in back]


def test_scan_since_another_host(fake: FakeHost) -> None:
    """``since`` of another host proves nothing about this one."""
    with tempfile.TemporaryDirectory(dir=TMPFS) as directory:
        other = FakeHost.from_tree("0000:00:00.0 8086:0000 060000\n", directory)
        scan = Host(fake.root).scan(since=Host(other.root).scan())
        assert len(Host(fake.root).scan()) == len(scan) > 1


def test_refresh_leaves_the_old_scan(fake: FakeHost) -> None:
    """A refresh returns a new scan; the old one is unchanged."""
    scan = Scan(fake.root, scanrefresh.scan(fake.root, AS_SYSFS))
    first = scan.find(CARD[0])
    move("igb", "unbind")(fake, CARD[0])
    again = Host(fake.root).scan(since=scan).find(CARD[0])
    assert ("igb", None) == (first and first.driver, again and again.driver)
    assert scan.find(CARD[0]) is first


def test_monitor_refreshes_after_lost_events(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """After lost events, a monitor only reads what is not proven unchanged."""

    class Lossy:
        lost = False

        def receive(self, timeout_s: float) -> None:
            if self.lost:
                self.lost = False
                raise events.events_lost()

        def restart(self) -> None: ...

        def fileno(self) -> int:
            return -1

        def close(self) -> None: ...

    monkeypatch.setattr(scanrefresh, "Tuning", lambda: AS_SYSFS)
    source = Lossy()
    with PCIMonitor(fake.root, source) as monitor:
        move("igb", "unbind")(fake, CARD[0])
        source.lost = True
        with counted(monkeypatch) as calls:
            monitor.poll()
        assert (["igb"], [], 0) == (calls.listed, calls.read, calls.scans)
        assert (1, []) == (monitor.rescans, monitor.functions.with_driver("igb"))
