# SPDX-License-Identifier: LGPL-2.1-or-later
"""A monitor's view equals a scan after any change, and lookups make no system call."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sizes import examples

from pyhostdev.errors import ConfigError, SysfsError
from pyhostdev.testing.events import SimulatedEvents
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util import events, pciscan
from pyhostdev.util.events import PCIEvent, PCIMonitor
from pyhostdev.util.hostquery import HostFunctions
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virpci import PCIDevice

INDEXES = ("groups", "slots", "buses", "drivers", "virtual_functions", "identities")
FIELDS = (
    "address", "vendor", "device", "subsystem_vendor", "subsystem_device", "class_", "driver", "iommu_group", "physfn",
)  # fmt: skip
PF = PCIDeviceAddress.parse("0000:03:00.0")
CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]

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


def facts(dev: PCIDevice) -> tuple[Any, ...]:
    return tuple(getattr(dev, field) for field in FIELDS)


def view(functions: HostFunctions) -> dict[str, Any]:
    """Return the results of all lookups, as values."""
    found: dict[str, Any] = {
        name: {key: [facts(dev) for dev in devs] for key, devs in getattr(functions, name).items()} for name in INDEXES
    }
    found["all"] = [facts(dev) for dev in functions]
    found["length"] = len(functions)
    found["found"] = [facts(dev) for d in functions if (dev := functions.find(d.address))]
    return found


def full_scan(root: HostRoot) -> dict[str, Any]:
    return view(Scan(root, pciscan.scan(root)))


def monitor_of(fake: FakeHost, **options: Any) -> PCIMonitor:
    return PCIMonitor(fake.root, SimulatedEvents(fake.kernel, **options))


def write(fake: FakeHost, address: PCIDeviceAddress, attribute: str, value: str) -> None:
    fake.kernel.write(os.path.join(fake.root.pci_device(address), attribute), value.encode(), device=address)


def bind(kernel: SimulatedKernel, driver: str, verb: str, address: PCIDeviceAddress) -> None:
    path = os.path.join(kernel.root.pci_driver(driver), verb)
    kernel.write(path, str(address).encode(), device=address)


def unplug(fake: FakeHost, address: PCIDeviceAddress) -> None:
    if os.path.isdir(fake.root.pci_device(address)):
        fake.remove_function(address)


def plug(fake: FakeHost, address: PCIDeviceAddress) -> None:
    if address in CARD:  # where VFs can be, nothing else can
        fake.add_function(f"{address} 8086:1521 020000 group=9 express=endpoint multifunction")


def rescan_bus(fake: FakeHost, address: PCIDeviceAddress) -> None:
    fake.kernel.write(fake.root.join("sys/bus/pci/rescan"), b"1", device=address)


def move(driver: str, verb: str) -> Callable[[FakeHost, PCIDeviceAddress], None]:
    return lambda fake, address: bind(fake.kernel, driver, verb, address)


def store(attribute: str, value: str) -> Callable[[FakeHost, PCIDeviceAddress], None]:
    return lambda fake, address: write(fake, address, attribute, value)


ACTIONS: dict[str, Callable[[FakeHost, PCIDeviceAddress], None]] = {
    "override": store("driver_override", "vfio-pci"),
    "no override": store("driver_override", "\n"),
    "unbind vfio-pci": move("vfio-pci", "unbind"),
    "bind vfio-pci": move("vfio-pci", "bind"),
    "unbind igb": move("igb", "unbind"),
    "bind igb": move("igb", "bind"),
    "unbind ixgbevf": move("ixgbevf", "unbind"),
    "no autoprobe": store("sriov_drivers_autoprobe", "0"),
    "VFs": store("sriov_numvfs", "3"),
    "no VFs": store("sriov_numvfs", "0"),
    "remove": store("remove", "1"),
    "rescan": rescan_bus,
    "unplug": unplug,
    "plug": plug,
    "poll": lambda fake, address: None,
}
WHERE = [PF, *CARD, PCIDeviceAddress.parse("0000:03:10.0"), PCIDeviceAddress.parse("0000:03:10.2")]


@settings(max_examples=examples(16), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.sampled_from(WHERE)), max_size=14),
    limit=st.sampled_from([2, 10000]),
)
def test_monitor_equals_a_scan(steps: list[tuple[str, PCIDeviceAddress]], limit: int) -> None:
    """After any sequence of changes and polls, the view equals a full scan, even after lost events."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        fake = FakeHost.from_tree(HOST, directory)
        with monitor_of(fake, limit=limit) as monitor:
            view(monitor.functions)  # all indexes are there and have to follow
            for name, address in steps:
                with suppress(SysfsError, ConfigError):  # the kernel refuses much of it
                    ACTIONS[name](fake, address)
                if name == "poll":
                    monitor.poll()
            monitor.poll()
            assert full_scan(fake.root) == view(monitor.functions)


@pytest.fixture
def fake(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """A host with a PF that has no VFs yet, and a card in one group."""
    return fakehost(HOST)


def test_monitor_follows_a_bind(fake: FakeHost) -> None:
    """An unbind and a bind move a function between drivers; only that function gets a new object."""
    with monitor_of(fake) as monitor:
        first, other = monitor.functions.find(CARD[0]), monitor.functions.find(CARD[1])
        bind(fake.kernel, "igb", "unbind", CARD[0])
        assert [PCIEvent("unbind", CARD[0])] == monitor.poll()
        assert ([], "igb") == (monitor.functions.with_driver("igb"), first and first.driver)
        assert monitor.functions.find(CARD[1]) is other
        bind(fake.kernel, "igb", "bind", CARD[0])
        assert [PCIEvent("bind", CARD[0])] == monitor.poll()
        assert [CARD[0]] == [dev.address for dev in monitor.functions.drivers["igb"]]
        again = monitor.functions.find(CARD[0])
        assert [] == monitor.poll()
        assert monitor.functions.find(CARD[0]) is again  # nothing is read twice
        assert 0 == monitor.rescans


def test_monitor_follows_vfs(fake: FakeHost) -> None:
    """VFs that appear are found through their PF, and disappear when they are removed from it."""
    with monitor_of(fake) as monitor:
        write(fake, PF, "sriov_numvfs", "3")
        monitor.poll()
        assert ["0000:03:10.0", "0000:03:10.2", "0000:03:10.4"] == [
            str(vf.address) for vf in monitor.functions.virtual_functions[PF]
        ]
        write(fake, PF, "sriov_numvfs", "0")
        monitor.poll()
        assert PF not in monitor.functions.virtual_functions
        assert 0 == monitor.rescans


class Scripted:
    """A source that returns the given events."""

    def __init__(self, *script: PCIEvent | OSError) -> None:
        self.script = list(script)
        self.restarts = 0

    def receive(self, timeout_s: float) -> PCIEvent | None:
        if not self.script:
            return None
        event = self.script.pop(0)
        if isinstance(event, OSError):
            raise event
        return event

    def restart(self) -> None:
        self.restarts += 1

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


def test_vf_whose_link_came_late(fake: FakeHost) -> None:
    """A VF's event comes before its link to the PF; the PF's own event corrects the view."""
    write(fake, PF, "sriov_drivers_autoprobe", "0")
    write(fake, PF, "sriov_numvfs", "1")
    vf = PCIDeviceAddress.parse("0000:03:10.0")
    link = os.path.join(fake.root.pci_device(vf), "physfn")
    target = os.readlink(link)
    os.unlink(link)
    source = Scripted()
    with PCIMonitor(fake.root, source) as monitor:
        assert {} == dict(monitor.functions.virtual_functions)
        os.symlink(target, link)
        source.script = [PCIEvent("change", PF)]
        monitor.poll()
        assert [vf] == [dev.address for dev in monitor.functions.virtual_functions[PF]]


@pytest.mark.parametrize("error", [events.events_lost(), OSError("Error while polling")])
def test_lost_events_mean_a_rescan(fake: FakeHost, error: OSError) -> None:
    """After lost events, the source first listens again, then everything is read."""
    source = Scripted()
    with PCIMonitor(fake.root, source) as monitor:
        bind(fake.kernel, "igb", "unbind", CARD[0])
        assert [] == monitor.poll()
        assert ["igb"] == [dev.driver for dev in monitor.functions.drivers["igb"]]
        source.script = [error]
        assert [] == monitor.poll()
        assert (1, 1) == (source.restarts, monitor.rescans)
        assert full_scan(fake.root) == view(monitor.functions)


def test_storm_means_a_rescan(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many changes, one scan is cheaper than many refreshes."""
    monkeypatch.setattr(events, "_REFRESH_MIN", 2)
    source = Scripted(*[PCIEvent("change", address) for address in CARD[:3]])
    with PCIMonitor(fake.root, source) as monitor:
        assert 3 == len(monitor.poll())
        assert 1 == monitor.rescans


def test_storm_is_taken_in_parts(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll returns during a storm of events; the next poll handles the rest."""
    monkeypatch.setattr(events, "BATCH_MAX", 2)
    source = Scripted(*[PCIEvent("bind", address) for address in CARD[:3]])
    with PCIMonitor(fake.root, source) as monitor:
        assert [2, 1, 0] == [len(monitor.poll()) for _ in range(3)]


def test_what_cannot_be_read_is_read_later(fake: FakeHost) -> None:
    """An event for an unreadable function is not forgotten: the next poll reads the function."""
    path = os.path.join(fake.root.pci_device(CARD[0]), "driver")
    source = Scripted(PCIEvent("unbind", CARD[0]))
    with PCIMonitor(fake.root, source) as monitor:
        before = view(monitor.functions)
        os.unlink(path)
        os.mkdir(path)  # a link is what it should be
        with pytest.raises(SysfsError):
            monitor.poll()
        assert before == view(monitor.functions)
        os.rmdir(path)
        monitor.poll()
        assert [] == monitor.functions.with_driver("igb")


def test_refresh_needs_no_event(fake: FakeHost) -> None:
    """Functions can be read again by address; the existing ones are returned, in order."""
    source = Scripted()
    with PCIMonitor(fake.root, source) as monitor:
        bind(fake.kernel, "igb", "unbind", CARD[0])
        found = monitor.refresh([CARD[3], CARD[1], CARD[0]])
        assert [(CARD[0], None), (CARD[1], "vfio-pci")] == [(dev.address, dev.driver) for dev in found]
        assert full_scan(fake.root) == view(monitor.functions)


def test_lookups_read_nothing(fake: FakeHost) -> None:
    """Between two polls every index works without the host."""
    write(fake, PF, "sriov_numvfs", "3")
    with monitor_of(fake) as monitor:
        expected = full_scan(fake.root)
        shutil.rmtree(fake.root.path)
        assert expected == view(monitor.functions)
        assert 7 == len(monitor.functions.filter("::0200"))
        pf = monitor.functions.find(PF)
        assert pf is not None
        assert [] == monitor.functions.free_virtual_functions(pf)
        assert 3 == len(monitor.functions.iommu_group_members(monitor.functions[-1]))


def test_lookups_make_no_system_call(fake: FakeHost) -> None:
    """Lookups between two polls make no system call, according to strace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    code = f"""
import os
from pyhostdev.util.events import PCIMonitor
from pyhostdev.util.hostroot import HostRoot
class Quiet:
    def receive(self, timeout_s): return None
    def close(self): pass
monitor = PCIMonitor(HostRoot({fake.root.path!r}), Quiet())
functions = monitor.functions
def look():
    dev = functions[-1]
    return (functions.find(dev.address), functions.groups[9], functions.drivers["igb"], len(functions),
            functions.slots[1, 9, 0], dict(functions.virtual_functions), functions.filter("8086:"))
look()
os.access("/begin-of-look", 0)
for _ in range(100): look()
os.access("/end-of-look", 0)
"""
    done = subprocess.run(["strace", "-o", "/dev/stderr", sys.executable, "-c", code], capture_output=True, text=True)
    if "ptrace" in done.stderr and "begin-of-look" not in done.stderr:
        pytest.skip("strace cannot trace here")
    assert 0 == done.returncode, done.stderr[-2000:]
    between = done.stderr.partition("begin-of-look")[2].partition("end-of-look")[0].splitlines()[1:-1]
    assert [] == [line for line in between if "brk(" not in line and "mmap(" not in line and "munmap(" not in line]


def test_directory_needs_a_source(fake: FakeHost) -> None:
    """A directory without a source of events is refused at once."""
    with pytest.raises(ConfigError, match="has no source of events"):
        PCIMonitor(fake.root)


def test_monitor_leaks_no_descriptor(fake: FakeHost, tmp_path: Path) -> None:
    """A monitor leaves no descriptor behind, even if its creation fails."""
    before = sorted(os.listdir("/proc/self/fd"))
    with monitor_of(fake) as monitor:
        bind(fake.kernel, "igb", "unbind", CARD[0])
        monitor.poll()
    kernel = SimulatedKernel(HostRoot(tmp_path / "empty"))
    with pytest.raises(SysfsError):
        PCIMonitor(kernel.root, SimulatedEvents(kernel))
    assert before == sorted(os.listdir("/proc/self/fd"))


def test_live_host_is_followed() -> None:
    """On the live host, a monitor receives the kernel's events, even as an ordinary user."""
    root = HostRoot("/")
    if not os.path.isdir(root.pci_devices):
        pytest.skip("this machine has no PCI bus")
    with PCIMonitor(root) as monitor:
        assert 0 <= monitor.fileno()
        monitor.poll()
        assert full_scan(root) == view(monitor.functions)


def test_pyudev_is_imported_by_the_source_only() -> None:
    """Importing the monitor does not load pyudev."""
    code = "import sys, pyhostdev.util.events; sys.exit('pyudev' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code]).returncode
