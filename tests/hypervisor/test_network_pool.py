# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtual functions that a domain gets from the pool of a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import DomainDef, Host, HostdevManager, PCIDevice, PCIDeviceAddress
from pyhostdev.conf.net_conf import PoolNetDef
from pyhostdev.errors import RefusedError
from pyhostdev.hypervisor.network_pool import has_lost_functions, pool_functions, pool_obstacles, with_pool_functions
from pyhostdev.hypervisor.vf_network import vf_consents
from pyhostdev.hypervisor.virnetwork import read_network
from pyhostdev.qemu import qemu_driver
from pyhostdev.testing import FakeHost
from pyhostdev.tools.main import main

TREE = Path(__file__).parent.parent.parent / "pyhostdev/testing/hosts/sriov.tree"
VFS = tuple(PCIDeviceAddress.parse(f"0000:03:10.{number}") for number in (0, 2, 4, 6))
POOL = "<forward mode='hostdev' managed='yes'><pf dev='enp3s0'/></forward>"
NET = "<interface type='network'>{}<source network='pool'/><model type='virtio'/></interface>"
SOURCE = "<source><address bus='3' slot='0x10' function='{}'/></source>"
HOSTDEV = f"<hostdev mode='subsystem' type='pci' managed='yes'>{SOURCE}</hostdev>"
DOMAIN = """<domain type='qemu'><name>{}</name><memory>65536</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>
<memballoon model='none'/><controller type='usb' model='none'/>{}</devices></domain>"""


class Place:
    """A host with four virtual functions and libvirt's files about networks."""

    def __init__(self, directory: Path) -> None:
        self.top = directory
        self.fake = FakeHost.from_tree(TREE, directory)
        self.host = Host(self.fake.root, writer=self.fake.kernel)

    def network(self, body: str, *, status: bool = True) -> None:
        root = self.fake.root
        path = Path(root.libvirt_network_status("pool") if status else root.libvirt_network("pool"))
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"<network><name>pool</name>{body}</network>"
        path.write_text(f"<networkstatus>{text}</networkstatus>" if status else text)

    def chosen(self, dom: DomainDef) -> list[PCIDeviceAddress]:
        resolved = with_pool_functions(dom, self.host)
        return [net.hostdev.pci_address for net in resolved.interfaces if isinstance(net, PoolNetDef)]

    def said(self, dom: DomainDef) -> list[str]:
        return [finding.message for finding in pool_obstacles(with_pool_functions(dom, self.host), self.host)]

    def prepare(self, dom: DomainDef, manager: HostdevManager) -> None:
        resolved = with_pool_functions(dom, self.host)
        manager.prepare(self.host.plan(resolved, accept=vf_consents(resolved)))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path)
    found.network(POOL)
    return found


def domain(*devices: str, name: str = "vm") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(name, "".join(devices)))


def test_functions_of_a_pf_are_in_the_order_of_their_numbers(place: Place) -> None:
    """A PF gives all its virtual functions; a list of addresses gives these, in its own order."""
    network = read_network(place.fake.root, "pool")
    assert network is not None
    assert VFS == pool_functions(place.fake.root, network.definition)
    listed = "".join(f"<address type='pci' bus='3' slot='0x10' function='{n}'/>" for n in (6, 2))
    place.network(f"<forward mode='hostdev' managed='yes'>{listed}</forward>")
    assert [VFS[3], VFS[1]] == place.chosen(domain(NET.format(""), NET.format("")))


def test_first_free_function_is_chosen(place: Place) -> None:
    """What the domain names itself is not free, nor what an earlier interface got."""
    assert [VFS[0], VFS[1]] == place.chosen(domain(NET.format(""), NET.format("")))
    assert [VFS[1]] == place.chosen(domain(HOSTDEV.format(0), NET.format("")))


def test_functions_are_read_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work grows with the interfaces plus the functions of the pool, not with their product."""
    read: list[PCIDeviceAddress] = []
    real = Host.pci_device

    def recorded(host: Host, address: PCIDeviceAddress) -> PCIDevice | None:
        read.append(address)
        return real(host, address)

    monkeypatch.setattr(Host, "pci_device", recorded)
    assert [*VFS] == place.chosen(domain(*[NET.format("")] * 40))
    assert [*VFS] == read


def test_two_domains_never_have_the_same_function(place: Place) -> None:
    """The record names the owner: the owner keeps its function, others get the next, a release gives it back."""
    manager = HostdevManager(place.host)
    first, second = domain(NET.format(""), name="one"), domain(NET.format(""), name="two")
    place.prepare(first, manager)
    assert ([VFS[0]], [VFS[1]]) == (place.chosen(first), place.chosen(second))
    place.prepare(second, manager)
    manager.release("one")
    assert ([VFS[1]], [VFS[0]]) == (place.chosen(second), place.chosen(domain(NET.format(""), name="three")))


def test_function_that_is_lost_between_choice_and_preparation(place: Place) -> None:
    """start chooses again only if another domain has the function now."""
    manager = HostdevManager(place.host)
    slow = with_pool_functions(domain(NET.format(""), name="slow"), place.host)
    assert not has_lost_functions(slow, place.host)
    place.prepare(domain(NET.format(""), name="fast"), manager)
    assert has_lost_functions(slow, place.host)


def _no_functions(place: Place) -> None:
    place.network("<forward mode='hostdev'><pf dev='eth9'/></forward>")


def _inactive(place: Place) -> None:
    Path(place.fake.root.libvirt_network_status("pool")).unlink()
    place.network(POOL, status=False)


def _port_profile(place: Place) -> None:
    place.network(f"{POOL}<virtualport type='802.1Qbh'/>")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_no_functions, "has no virtual functions of 'eth9'"),
        (_inactive, "is not active"),
        (_port_profile, "<virtualport> of the network 'pool' is not supported"),
    ],
)
def test_pool_that_cannot_serve(place: Place, change: Callable[[Place], None], said: str) -> None:
    """plan, argv and start say why; nothing is chosen."""
    change(place)
    dom = domain(NET.format(""))
    assert [] == place.chosen(dom)
    (message,) = place.said(dom)
    assert said in message
    assert [message] == [f.message for f in qemu_driver.start_obstacles(dom, place.host) if "network" in f.message]
    with pytest.raises(RefusedError, match="network 'pool'"):
        qemu_driver.domain_to_native(dom, place.host)


def test_exhausted_pool_names_the_uses(place: Place) -> None:
    """The fifth interface of four functions; the refusal says how each is used."""
    dom = domain(*[NET.format("")] * 5)
    assert list(VFS) == place.chosen(dom)
    (message,) = place.said(dom)
    assert f"no free virtual function: {VFS[0]} is in this domain already" in message


def _route(place: Place) -> None:
    with Path(place.fake.root.route).open("a") as table:
        table.write("enp3s0v0\t0000A8C0\t00000000\t0001\n")


def _ipv6_address(place: Place) -> None:
    Path(place.fake.root.ipv6_addresses).write_text(
        f"{'fe80'.ljust(32, '0')} 05 40 20 80 enp3s0v1\n{'2001'.ljust(32, '0')} 04 40 00 80 enp3s0v0\n"
    )


def _bridge_port(place: Place) -> None:
    interface = Path(place.fake.root.pci_device(VFS[0])) / "net/enp3s0v0/master"
    interface.symlink_to("../../../virtual/net/br0")


def _libvirt_port(place: Place) -> None:
    ports = Path(place.fake.root.libvirt_network_states) / "pool.ports"
    ports.mkdir()
    address = "<address domain='0x0000' bus='0x03' slot='0x10' function='0x0'/>"
    (ports / "1.xml").write_text(f"<networkport><plug type='hostdev-pci' managed='yes'>{address}</plug></networkport>")


def _libvirt_domain(place: Place) -> None:
    status = Path(place.fake.root.libvirt_status)
    status.mkdir(parents=True)
    address = "<address domain='0x0000' bus='0x03' slot='0x10' function='0x0'/>"
    (status / "other.xml").write_text(
        f"<domstatus><domain><hostdev type='pci'><source>{address}</source></hostdev></domain></domstatus>"
    )


@pytest.mark.parametrize("use", [_route, _ipv6_address, _bridge_port, _libvirt_port, _libvirt_domain])
def test_function_in_use_is_stepped_over(place: Place, use: Callable[[Place], None]) -> None:
    """The host's own interface, a guest of libvirt: a pool does not take them, and says so when it is exhausted."""
    use(place)
    dom = domain(*[NET.format("")] * 4)
    assert list(VFS[1:]) == place.chosen(dom)
    (message,) = place.said(dom)
    assert f"{VFS[0]} is in use by" in message or f"{VFS[0]} has interface 'enp3s0v0'" in message


def test_interface_is_a_host_device_with_the_networks_settings(place: Place) -> None:
    """Identity, address and alias as libvirt gives them; the interface's VLAN goes before the network's."""
    place.network(POOL.replace("<pf", "<driver name='vfio'/><pf") + "<vlan><tag id='7'/></vlan>")
    mac = "<mac address='52:54:00:00:00:01'/>"
    own = f"{mac.replace('01', '02')}<vlan><tag id='8'/></vlan>"
    dom = domain(NET.format(mac), NET.format(own), HOSTDEV.format(6))
    first, second = with_pool_functions(dom, place.host).interfaces
    assert ("52:54:00:00:00:01", '<vlan><tag id="7"/></vlan>') == (first.mac, first.vlan)
    assert ("52:54:00:00:00:02", '<vlan><tag id="8"/></vlan>') == (second.mac, second.vlan)
    assert first.hostdev is not None
    assert ("vfio", True) == (first.hostdev.driver_name, first.hostdev.managed)
    argv = qemu_driver.domain_to_native(dom, place.host)
    assigned = [json.loads(word) for word in argv if '"vfio-pci"' in word]
    expected = [("hostdev2", str(VFS[3])), ("hostdev0", str(VFS[0])), ("hostdev1", str(VFS[1]))]
    assert expected == [(device["id"], device["host"]) for device in assigned]
    assert not any('"tap"' in word for word in argv)


def test_interface_keeps_its_guest_address(place: Place) -> None:
    """The address that the definition gets is the one that the function has in the guest."""
    dom = domain(NET.format(""))
    defined = qemu_driver.define(dom, place.host)
    (device,) = (json.loads(w) for w in qemu_driver.domain_to_native(dom, place.host) if '"vfio-pci"' in w)
    place_ = defined.interfaces[0].info.pci
    assert place_ is not None
    assert {VFS[0]: place_.pci} == qemu_driver.guest_addresses(dom, place.host)
    assert ("pci.1", "0x0") == (device["bus"], device["addr"])


def test_prepare_takes_and_release_returns(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verbs: prepare says which function it takes, and refuses when the pool has none."""
    file = tmp_path / "vm.xml"
    file.write_text(DOMAIN.format("vm", NET.format("")))
    here = ["--simulate", "--root", str(place.top)]
    assert 0 == main(["prepare", str(file), *here, "--accept", f"vf-network:{VFS[0]}"])
    assert f"The network 'pool' gives device {VFS[0]}" in capsys.readouterr().err
    assert 0 == main(["release", "--owner", "vm", *here])
    _no_functions(place)
    assert 1 == main(["prepare", str(file), *here])
    assert "has no virtual functions" in capsys.readouterr().err


def test_held_function_is_stepped_over(place: Place) -> None:
    """A function that a program has open is not free, although no record names it."""
    manager = HostdevManager(place.host)
    manager.prepare(place.host.plan(domain(HOSTDEV.format(0), name="unmanaged")))
    with place.fake.kernel.open_group(5):
        Path(place.host.state_dir, f"{VFS[0]}.json").unlink()
        assert [VFS[1]] == place.chosen(domain(NET.format("")))


@pytest.mark.parametrize(("body", "is_ignored"), [(POOL, False), ("<bridge name='virbr0'/>", True)])
def test_what_a_function_of_a_pool_has_is_not_called_ignored(place: Place, body: str, is_ignored: bool) -> None:
    """``trustGuestRxFilters`` is the trust that start sets on the function's PF; a tap has nothing like it."""
    place.network(body)
    dom = domain(NET.replace("'network'>", "'network' trustGuestRxFilters='yes'>").format(""))
    notes = [item.message for item in qemu_driver.start_obstacles(dom, place.host) if item.reason == "ignored"]
    assert is_ignored == any("trustGuestRxFilters" in note for note in notes)
