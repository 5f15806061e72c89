# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces on the host: checked before any change, connected at the guest's start, removed at its end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from netns import in_namespace

from pyhostdev import DomainDef, HostRoot
from pyhostdev.conf.network_conf import parse_network
from pyhostdev.errors import OperationError
from pyhostdev.hypervisor import netdev_journal, virnetwork
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.hostdev_result import SET_ASIDE
from pyhostdev.hypervisor.netdev_journal import MacvtapJournal
from pyhostdev.hypervisor.virnetwork import read_network
from pyhostdev.qemu import qemu_driver
from pyhostdev.qemu.qemu_process.interface import Connection, connection_of, interface_obstacles
from pyhostdev.util.deadline import within
from pyhostdev.util.finding import Finding
from pyhostdev.util.virnetdev import is_interface_name

DOMAIN = """<domain type='qemu'><name>vm</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
{devices}
<memballoon model='none'/></devices></domain>"""


def domain(devices: str) -> DomainDef:
    return DomainDef.parse(DOMAIN.format(devices=devices))


class FakeNetwork:
    """A directory with network interfaces and libvirt's files about networks."""

    def __init__(self, directory: Path) -> None:
        self.root = HostRoot(directory)
        self.host = Host(self.root)

    def interface(self, name: str, *parts: str) -> None:
        for part in ("", *parts):
            (Path(self.root.class_net) / name / part).mkdir(parents=True, exist_ok=True)

    def network(self, name: str, body: str, *, status: bool) -> None:
        text = f"<network><name>{name}</name>{body}</network>"
        path = self.root.libvirt_network_status(name) if status else self.root.libvirt_network(name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(f"<networkstatus>{text}</networkstatus>" if status else text)

    def connection(self, net: str) -> Any:
        found = connection_of(self.root, domain(net).interfaces[0])
        return found.message if isinstance(found, Finding) else found


def test_a_plan_reads_each_network_once(there: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan reads a network once for any number of interfaces, even an invalid one; the next plan reads it again."""
    read: list[str] = []

    def recorded(root: HostRoot, name: str) -> Any:
        read.append(name)
        return read_network(root, name)

    monkeypatch.setattr(virnetwork, "read_network", recorded)
    there.network("good", "<bridge name='br0'/>", status=True)
    there.network("bad", "<bridge", status=True)
    names = ("good", "bad", "none") * 3
    dom = domain("".join(f"<interface type='network'><source network='{name}'/></interface>" for name in names))
    for _ in range(2):
        plan = qemu_driver.plan(there.host, dom)
        assert 3 == sum(finding.reason == "network-missing" for finding in plan.findings if finding.line)
        assert ["bad", "good", "none"] == sorted(read)
        read.clear()


@pytest.fixture
def there(tmp_path: Path) -> FakeNetwork:
    return FakeNetwork(tmp_path)


NETWORK = "<interface type='network'><source network='lan'/></interface>"


def test_bridge_of_a_network_is_in_its_status(there: FakeNetwork) -> None:
    """The bridge of an active network is in its status, even if its definition has changed."""
    there.network("lan", "<forward mode='nat'/><bridge name='virbr0'/>", status=True)
    there.network("lan", "<forward mode='nat'/><bridge name='virbr9'/>", status=False)
    assert Connection("bridge", "virbr0") == there.connection(NETWORK)


def test_bridge_of_a_network_is_in_its_definition_if_the_bridge_is_there(there: FakeNetwork) -> None:
    """Without a status the network is active if the host has its bridge."""
    there.network("lan", "<bridge name='virbr9'/>", status=False)
    assert "not active" in there.connection(NETWORK)
    there.interface("virbr9", "bridge")
    assert Connection("bridge", "virbr9") == there.connection(NETWORK)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<forward mode='bridge'/><bridge name='br0'/>", Connection("bridge", "br0")),
        (
            "<forward mode='bridge'><interface dev='eth9'/><interface dev='eth1'/></forward>",
            Connection("direct", "eth1", "bridge"),
        ),
        ("<forward mode='vepa' dev='eth1'/>", Connection("direct", "eth1", "vepa")),
        ("<forward mode='private' dev='eth9'/>", "no interface of the network 'lan'"),
        ("<forward mode='hostdev'><pf dev='eth1'/></forward>", Connection("pool", "lan")),
        ("<forward mode='bridge'/><bridge name='ovs'/><virtualport type='openvswitch'/>", "<virtualport>"),
    ],
)  # fmt: skip
def test_each_kind_of_network_has_its_connection(there: FakeNetwork, body: str, expected: object) -> None:
    """A bridge of the host, an interface that is shared, or a refusal with its reason."""
    there.interface("br0", "bridge")
    there.interface("eth1")
    there.network("lan", body, status=True)
    found = there.connection(NETWORK)
    assert expected == found if isinstance(expected, Connection) else str(expected) in found


@pytest.mark.parametrize("name", ["../secret", "..", "a/b", "unknown"])
def test_network_that_libvirt_does_not_have(there: FakeNetwork, name: str) -> None:
    """A name is looked up in libvirt's directories and nowhere else."""
    assert "libvirt has no network" in there.connection(NETWORK.replace("lan", name))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("<interface type='bridge'><source bridge='eth1'/></interface>", "no bridge 'eth1'"),
        ("<interface type='bridge'><source bridge='../br0'/></interface>", "no bridge"),
        ("<interface type='direct'><source dev='eth9'/></interface>", "no network interface 'eth9'"),
        ("<interface type='ethernet'><target dev='eth1'/></interface>", "already has a network interface 'eth1'"),
        ("<interface type='ethernet'><target dev='tap9' managed='no'/></interface>", "no network interface 'tap9'"),
        ("<interface type='ethernet'><target dev='a-name-of-16-chr'/></interface>", "is not a valid interface name"),
        ("<interface type='ethernet'><mtu size='67'/></interface>", "from 68 to 65521, not 67"),
        ("<interface type='bridge'><source bridge='br0'/><mtu size='65522'/></interface>", "from 68 to 65521"),
        ("<interface type='bridge'><source bridge='br0'/><mtu size='9000'/></interface>", "'br0' has the MTU 1500"),
        (
            "<interface type='bridge'><source bridge='br0'/><model type='virtio'/><driver queues='257'/></interface>",
            "at most 256 queues",
        ),
        ("<interface type='direct'><source dev='eth2'/></interface>", "is a port of a bridge"),
        ("<interface type='direct'><source dev='eth3' mode='passthrough'/></interface>", "already has macvtap0"),
    ],
)
def test_what_cannot_be_connected_is_a_finding(there: FakeNetwork, net: str, said: str) -> None:
    """Every interface is checked before any change."""
    there.interface("br0", "bridge")
    there.interface("eth1")
    there.interface("eth2", "brport")
    there.interface("eth3", "upper_macvtap0")
    (Path(there.root.class_net) / "br0/mtu").write_text("1500\n" if "9000" in net else "65535\n")
    assert [True] == [said in finding.message for finding in interface_obstacles(domain(net), there.host)]


def test_what_can_be_connected_has_no_finding(there: FakeNetwork) -> None:
    """Interfaces that need no tap are not looked at."""
    there.interface("br0", "bridge")
    there.interface("tap1")
    there.interface("vnet3")
    there.interface("eth3", "upper_macvtap0")
    nets = (
        "<interface type='bridge'><source bridge='br0'/><target dev='vnet3'/><mtu size='1500'/></interface>"
        "<interface type='user'/><interface type='direct'><source dev='eth3'/></interface>"
        "<interface type='ethernet'><target dev='tap1' managed='no'/></interface><interface type='ethernet'/>"
    )
    assert [] == list(interface_obstacles(domain(nets), there.host))


def test_a_pool_names_its_functions() -> None:
    """The functions of a network with a pool."""
    body = b"""<network><name>p</name><forward mode='hostdev' managed='yes'><pf dev='eth3'/>
      <address type='pci' domain='0x0000' bus='0x3d' slot='0x02' function='0x1'/></forward></network>"""
    pool = parse_network(body)
    assert (True, "eth3", ["0000:3d:02.1"], True) == (
        pool.is_pool,
        pool.pf,
        list(map(str, pool.functions)),
        pool.managed,
    )


@pytest.mark.parametrize(
    ("name", "valid"),
    [("vnet0", True), ("a" * 15, True), ("a" * 16, False), ("", False), ("a/b", False), ("a b", False)],
)
def test_names_of_interfaces(name: str, valid: bool) -> None:
    """The kernel takes 15 bytes without slash, colon or blank."""
    assert valid is is_interface_name(name)


def test_a_call_that_does_not_return_has_a_deadline() -> None:
    """A hanging driver only costs the deadline; an exception of the call is raised."""
    import threading

    stop = threading.Event()
    with pytest.raises(OperationError, match="set an address within"):
        within(0.05, "set an address", stop.wait)
    stop.set()
    assert 7 == within(5, "count", lambda: 7)
    with pytest.raises(KeyError):
        within(5, "fail", lambda: dict[str, int]()["a"])


def test_macvtap_of_a_living_guest_is_kept(there: FakeNetwork) -> None:
    """The lock of the record is held as long as pyhostdev or QEMU lives."""
    journal = MacvtapJournal(there.host)
    lock = journal.begin("macvtap7", "vm")
    assert [("macvtap7", "vm", "kept")] == [item[:3] for item in MacvtapJournal(there.host).recover()]
    with pytest.raises(OperationError, match="another guest"):
        MacvtapJournal(there.host).begin("macvtap7", "other")
    journal.end("macvtap7", lock)
    assert [] == list(journal.recover())


def test_macvtap_of_a_dead_guest_is_removed(there: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """recover removes the interface whose number was recorded, and not another one of the same name."""
    import os

    removed: list[tuple[str, int]] = []
    monkeypatch.setattr(netdev_journal.virnetdev, "interface_index", {"macvtap7": 7, "macvtap8": 80}.get)
    monkeypatch.setattr(netdev_journal.netlink, "remove_link", lambda name, index: removed.append((name, index)))
    journal = MacvtapJournal(there.host)
    for name, index in (("macvtap7", 7), ("macvtap8", 8)):
        lock = journal.begin(name, "vm")
        journal.note(name, "vm", index=index)
        os.close(lock)  # as the end of both programs does
    found = list(MacvtapJournal(there.host).recover())
    assert [("macvtap7", "vm", "restored"), ("macvtap8", "vm", "restored")] == [item[:3] for item in found]
    assert [("macvtap7", 7)] == removed
    assert [] == list(journal.recover())


def test_file_that_is_not_a_record_is_set_aside(there: FakeNetwork) -> None:
    """It is kept for inspection, under a name that is never read."""
    journal = MacvtapJournal(there.host)
    for name, text in (("a", b"x"), ("b", b"{}"), ("c", b"[1]")):
        journal.state.replace(f"{name}.netdev", text)
    assert [SET_ASIDE] * 3 == [item.outcome for item in journal.recover()]
    assert ["a.netdev.bad", "b.netdev.bad", "c.netdev.bad"] == journal.state.names()


CONNECT = """
import os
from pathlib import Path
from pyhostdev import DomainDef, Host
from pyhostdev.qemu.qemu_process.descriptors import DeviceDescriptors

add_bridge("br7", mtu=1300)
def names(): return sorted(set(os.listdir("/sys/class/net")) - {"lo", "br7"})
dom = DomainDef.parse(sys.argv[1])
with DeviceDescriptors(dom, Host("/")) as devices:
    for name in names():
        there = Path("/sys/class/net", name)
        port = there / "brport"
        isolated = (port / "isolated").read_text().strip() if port.exists() else "-"
        up = int((there / "flags").read_text(), 16) & 1
        print(name, (there / "mtu").read_text().strip(), (there / "address").read_text().strip(), isolated, up)
    print(len(devices.fds), devices.links_down, dom.interfaces[0].driver_name)
print(names())
"""


def test_taps_are_made_and_gone_again() -> None:
    """Bridge, MTU, MAC address, isolation, queues and state match the definition; at the end the tap is removed."""
    nets = """<interface type='bridge'><mac address='52:54:00:4a:00:01'/><source bridge='br7'/><port isolated='yes'/>
      <model type='virtio'/><driver queues='2'/><link state='down'/></interface>
      <interface type='ethernet'><mac address='52:54:00:4a:00:02'/><target dev='own0'/><model type='e1000e'/>
      <mtu size='1400'/></interface>"""
    answer = in_namespace(CONNECT, DOMAIN.format(devices=nets)).splitlines()
    expected = ["own0 1400 fe:54:00:4a:00:02 - 1", "vnet0 1300 fe:54:00:4a:00:01 1 1", "3 ['net0'] qemu", "[]"]
    assert expected == answer


FAIL = """
import os
from pyhostdev import DomainDef, Host, OperationError
from pyhostdev.qemu.qemu_process.descriptors import DeviceDescriptors

add_bridge("br7")
try:
    with DeviceDescriptors(DomainDef.parse(sys.argv[1]), Host("/")):
        print("connected")
except OperationError as err:
    print(err)
print(sorted(os.listdir("/sys/class/net")), len(os.listdir("/proc/self/fd")))
"""


def test_failure_leaves_no_tap_behind() -> None:
    """If the second interface fails, the first one is removed."""
    nets = """<interface type='bridge'><mac address='52:54:00:4a:00:01'/><source bridge='br7'/></interface>
      <interface type='ethernet'><mac address='52:54:00:4a:00:02'/><target dev='br7'/></interface>"""
    said, left = in_namespace(FAIL, DOMAIN.format(devices=nets)).splitlines()
    assert "Cannot open the tap of the network interface 'br7'" in said
    assert "['br7', 'lo'] 4" == left


START = """
import os, signal, subprocess, time
from pathlib import Path

add_bridge("br7")
Path("/run/libvirt/network").mkdir(parents=True)
Path("/run/libvirt/network/lan.xml").write_text(
    "<networkstatus><network><name>lan</name><bridge name='br7'/></network></networkstatus>"
)
def ports(): return sorted(os.listdir("/sys/class/net/br7/brif"))
def wait(wanted):
    end = time.monotonic() + 60
    while not wanted() and time.monotonic() < end:
        time.sleep(0.1)
    return wanted()
Path("/run/guest.xml").write_text(sys.argv[1])
def start():
    return subprocess.Popen([sys.executable, "-m", "pyhostdev", "start", "/run/guest.xml", "--user", "root"])
def emulators():
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().startswith("qemu-system") and os.readlink(path.parent / "ns/net") == here:
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found
here = os.readlink("/proc/self/ns/net")

guest = start()
print(wait(lambda: emulators() and ports()), end=" ")
guest.send_signal(signal.SIGTERM)
print(guest.wait(), ports())

guest = start()
wait(emulators)
guest.kill()
guest.wait()
time.sleep(1)
print(ports(), len(emulators()), end=" ")
os.kill(emulators()[0], signal.SIGKILL)
print(wait(lambda: not ports()))
"""


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed")
def test_a_guest_runs_on_a_network_of_libvirt() -> None:
    """A real QEMU with a tap on the network's bridge; the tap ends with the guest, however it and pyhostdev end."""
    pytest.importorskip("qemu.qmp", reason="the library qemu.qmp is not installed")
    net = "<interface type='network'><source network='lan'/><model type='virtio'/><link state='down'/></interface>"
    ended, killed = in_namespace(START, DOMAIN.format(devices=net), timeout_s=240).splitlines()
    assert "['vnet0'] 0 []" == ended
    assert "['vnet0'] 1 True" == killed
