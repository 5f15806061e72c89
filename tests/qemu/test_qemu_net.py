# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network interfaces: their backends, their devices, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import DomainDef, HostRoot
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.errors import ConfigError
from pyhostdev.hypervisor.host import Host
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.tools.main import main

TESTDATA = Path(__file__).parent.parent.parent / "testdata/qemu"
DOMAIN = """<domain type='{kind}'><name>vm</name><memory>65536</memory><os><type arch='x86_64' machine='{machine}'>hvm\
</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>"""


def domain(devices: str, kind: str = "kvm", machine: str = "q35") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(devices=devices, kind=kind, machine=machine))


def values(argv: list[str], option: str) -> list[Any]:
    return [json.loads(argv[i + 1]) for i, word in enumerate(argv) if word == option]


def netdev(devices: str, kind: str = "kvm") -> Any:
    (found,) = values(build_command_line(domain(devices, kind)), "-netdev")
    return found


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_all_interfaces_are_built_as_reviewed(release: Any, check_golden: Callable[[Path, str], None]) -> None:
    """One interface of every type and every option keeps the command line that was reviewed."""
    dom = DomainDef.parse((TESTDATA / "interfaces.xml").read_bytes())
    argv = build_command_line(dom, host=Host("/nowhere"), state_dir="/state", release=release)
    check_golden(TESTDATA / f"interfaces-{release}.args", "".join(f"{word}\n" for word in argv))


@pytest.mark.parametrize(
    ("kind", "model", "driver", "vhost"),
    [
        ("kvm", "virtio", "", True),
        ("kvm", "virtio", "<driver name='vhost'/>", True),
        ("kvm", "virtio", "<driver name='qemu'/>", False),
        ("kvm", "virtio-non-transitional", "", True),
        ("kvm", "e1000e", "", False),
        ("kvm", "e1000e", "<driver name='vhost'/>", False),
        ("qemu", "virtio", "", False),
    ],
)
def test_the_kernel_moves_packets_of_virtio_under_kvm(kind: str, model: str, driver: str, vhost: bool) -> None:
    """A tap has vhost for a virtio device under KVM, unless the definition wants QEMU to do it."""
    xml = f"<interface type='bridge'><source bridge='br0'/><model type='{model}'/>{driver}</interface>"
    expected = {"vhost": True, "vhostfd": "4"} if vhost else {}
    assert {"type": "tap", "fd": "3", **expected, "id": "hostnet0"} == netdev(xml, kind)


def test_each_queue_has_descriptors_that_the_caller_opens() -> None:
    """The opener is called once per queue and purpose, with the defined interface."""
    asked: list[tuple[str, str]] = []

    def device_fd(purpose: str, net: Any) -> int:
        asked.append((purpose, net.source.bridge))
        return 20 + len(asked)

    xml = "<interface type='bridge'><source bridge='br0'/><model type='virtio'/><driver queues='2'/></interface>"
    argv = build_command_line(domain(xml), device_fd=device_fd)
    assert [("tap", "br0")] * 2 + [("vhost", "br0")] * 2 == asked
    expected = {"type": "tap", "fds": "21:22", "vhost": True, "vhostfds": "23:24", "id": "hostnet0"}
    assert [expected] == values(argv, "-netdev")


@pytest.mark.parametrize(
    ("model", "bridge"),
    [("vmxnet3", True), ("rtl8139", True), ("e1000", True), ("e1000e", False), ("e1000-82545em", False)],
)
def test_a_card_is_conventional_if_libvirt_knows_it_so(model: str, bridge: bool) -> None:
    """A model that libvirt does not know goes to a port of PCI Express."""
    dom = domain(f"<interface type='network'><source network='n'/><model type='{model}'/></interface>")
    found = {c.model for c in define(dom, load("x86_64")).controllers if c.type == "pci"}
    assert bridge is ("pcie-to-pci-bridge" in found)


@pytest.mark.parametrize(
    ("xml", "code", "words"),
    [
        ("<interface type='bridge'><model type='virtio'/></interface>", 27, "no <source>"),
        ("<interface type='bridge'><source/></interface>", 27, "no bridge"),
        ("<interface type='network'><source bridge='b'/></interface>", 27, "no network"),
        ("<interface type='direct'><source mode='vepa'/></interface>", 27, "no dev"),
        ("<interface type='direct'><source dev='e' mode='open'/></interface>", 27, "Invalid mode"),
        ("<interface type='mcast'><source address='1.2.3.4'/></interface>", 27, "no port"),
        ("<interface type='vhostuser'><source type='tcp' path='/s' mode='client'/></interface>", 67, "type 'tcp'"),
        ("<interface type='user'><model type='vir tio;'/></interface>", 8, "vir tio;"),
        (
            "<interface type='user'><model type='virtio'/><driver rx_queue_size='500'/></interface>",
            67,
            "power of 2, not 500",
        ),
        ("<interface type='user'><mtu size='1500'/></interface>", 67, "cannot have <mtu>"),
        ("<interface type='user'><ip address='10.0.0.0' prefix='28'/></interface>", 67, "4 to 27"),
        ("<interface type='user'><ip address='10.0.0.1'/><ip address='10.0.0.2'/></interface>", 67, "one IPv4"),
        ("<interface type='ethernet'><ip address='10.0.0.1'/></interface>", 67, "cannot have <ip>"),
        ("<interface type='ethernet'><backend type='passt'/></interface>", 67, "passt"),
        (
            "<interface type='vhostuser'><source type='unix' path='/s' mode='client'/><model type='e1000'/>"
            "</interface>",
            67,
            "virtio model",
        ),
        (
            "<controller type='usb' model='none'/><hostdev mode='subsystem' type='usb'><source>"
            "<vendor id='1'/><product id='2'/></source></hostdev>",
            67,
            "needs USB",
        ),
    ],
)
def test_what_libvirt_refuses_is_refused_with_its_number(xml: str, code: int, words: str) -> None:
    """A wrong interface is refused when it is defined, with libvirt's number and our sentence."""
    with pytest.raises(ConfigError, match=words) as refusal:
        define(domain(xml), load("x86_64"))
    assert code == refusal.value.libvirt_code


def test_a_macvtap_without_mode_is_vepa() -> None:
    """libvirt writes the default into the definition."""
    dom = define(domain("<interface type='direct'><source dev='eth0'/></interface>"), load("x86_64"))
    assert dom.interfaces[0].source is not None
    assert "vepa" == dom.interfaces[0].source.mode


USB = """<controller type='usb' model='qemu-xhci'/><hostdev mode='subsystem' type='usb'><source{policy}>\
<vendor id='0x046d'/><product id='0xc52b'/>{address}</source></hostdev>"""


def usb_host(directory: Path, *devices: tuple[str, int, int]) -> Host:
    """Make a host with USB devices: vendor and product, bus, number."""
    for place, (name, bus, number) in enumerate(devices):
        vendor, product = name.split(":")
        there = Path(HostRoot(directory).usb_devices) / f"{bus}-{place + 1}"
        there.mkdir(parents=True)
        (there.parent / f"{there.name}:1.0").mkdir()
        for attribute, text in (("idVendor", vendor), ("idProduct", product), ("busnum", bus), ("devnum", number)):
            (there / attribute).write_text(f"{text}\n")
    return Host(directory)


def usb_argument(host: Host | None, policy: str = "", address: str = "") -> Any:
    argv = build_command_line(domain(USB.format(policy=policy, address=address)), host=host)
    return next(device for device in values(argv, "-device") if device["driver"] == "usb-host")


def test_a_usb_device_is_looked_up_by_vendor_and_product(tmp_path: Path) -> None:
    """The bus and device numbers, which change with each plug, are read from the host."""
    host = usb_host(tmp_path, ("1d6b:0002", 1, 1), ("046d:c52b", 1, 4), ("046d:c52c", 2, 5))
    assert "/dev/bus/usb/001/004" == usb_argument(host)["hostdevice"]


def test_a_usb_device_that_is_there_twice_needs_its_address(tmp_path: Path) -> None:
    """Two equal devices are ambiguous: one must be named by its address."""
    host = usb_host(tmp_path, ("046d:c52b", 1, 4), ("046d:c52b", 2, 5))
    with pytest.raises(ConfigError, match="bus 1 device 4, bus 2 device 5") as refusal:
        usb_argument(host)
    assert ("usb-ambiguous", 9) == (refusal.value.reason, refusal.value.libvirt_code)
    assert "/dev/bus/usb/002/005" == usb_argument(host, address="<address bus='2' device='5'/>")["hostdevice"]


def test_a_usb_device_that_is_absent_is_refused_unless_it_may_be(tmp_path: Path) -> None:
    """startupPolicy='optional' prints the device without a place, as libvirt does."""
    host = usb_host(tmp_path, ("1d6b:0002", 1, 1))
    with pytest.raises(ConfigError, match="046d:c52b is not on this host") as refusal:
        usb_argument(host)
    assert "device-missing" == refusal.value.reason
    assert "hostdevice" not in usb_argument(host, policy=" startupPolicy='optional'")


def test_argv_of_an_absent_usb_device_lets_qemu_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """argv works on another machine; a note reports what start would refuse."""
    usb_host(tmp_path, ("1d6b:0002", 1, 1))
    file = tmp_path / "guest.xml"
    file.write_text(domain(USB.format(policy="", address="")).format())
    assert 0 == main(["argv", str(file), "--root", str(tmp_path), "--json"])
    said = capsys.readouterr()
    assert "046d:c52b is not on this host" in said.err
    (found,) = (json.loads(word) for word in json.loads(said.out) if "usb-host" in word)
    assert (0x046D, 0xC52B) == (found["vendorid"], found["productid"])
    assert 1 == main(["plan", str(file), "--root", str(tmp_path), "--for-start"])


def test_without_a_host_no_usb_device_is_found() -> None:
    """Without a host, the device's address is unknown."""
    with pytest.raises(ConfigError, match="without a host") as refusal:
        usb_argument(None)
    assert 1 == refusal.value.libvirt_code
