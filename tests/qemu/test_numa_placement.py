# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host devices behind expander buses of their NUMA nodes: whose cell, which slot, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

TREE = """
driver pcieport class:0604 builtin
driver igb 8086:1521
driver nvme class:010802
driver vfio-pci
0000:00:01.0 8086:2030 060400 driver=pcieport group=1 bridge=03-03 express=root-port numa=0
0000:00:02.0 8086:2030 060400 driver=pcieport group=2 bridge=04-04 express=root-port numa=1
0000:00:03.0 8086:2030 060400 driver=pcieport group=3 bridge=05-05 express=root-port
0000:03:00.0 8086:1521 020000 driver=igb group=13 multifunction express=endpoint flr numa=0
0000:03:00.1 8086:1521 020000 driver=igb group=13 multifunction express=endpoint flr numa=0
0000:03:00.2 8086:1521 020000 driver=igb group=13 multifunction express=endpoint flr numa=0
0000:04:00.0 144d:a808 010802 driver=nvme group=14 express=endpoint flr numa=1
0000:05:00.0 144d:a808 010802 driver=nvme group=15 express=endpoint flr
"""
CELLS = "<cpu><numa><cell id='0' cpus='0' memory='262144'/><cell id='1' cpus='1' memory='262144'/></numa></cpu>"
MEMNODE = "<memnode cellid='{}' mode='strict' nodeset='{}'/>"
CROSSED = f"<numatune>{MEMNODE.format(0, '1')}{MEMNODE.format(1, '0')}</numatune>"
PORTS, DISK, NO_NODE = ("0000:03:00.1", "0000:03:00.2"), "0000:04:00.0", "0000:05:00.0"
Xml = Callable[..., tuple[int, str, str]]


def guest(*addresses: str, machine: str = "q35", arch: str = "x86_64", cells: str = CELLS, more: str = "") -> str:
    """Return a guest with these functions of the host."""
    found = []
    for address in addresses:
        domain, bus, rest = address.split(":")
        source = f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{rest[:2]}' function='0x{rest[3]}'/>"
        found.append(f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{source}</source></hostdev>")
    return (
        "<domain type='qemu'><name>vm1</name><memory unit='KiB'>524288</memory><vcpu>2</vcpu>"
        f"<os><type arch='{arch}' machine='{machine}'>hvm</type></os>{cells}<devices>"
        f"<controller type='usb' model='none'/>{''.join(found)}{more}<memballoon model='none'/></devices></domain>"
    )


@pytest.fixture
def fake(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """A host with two NUMA nodes, and a device that is near neither."""
    return fakehost(TREE)


@pytest.fixture
def xml(fake: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Xml:
    """A function that runs xml --complete --numa, and leaves its output in placed.xml."""

    def run(text: str, *words: str) -> tuple[int, str, str]:
        path = tmp_path / "guest.xml"
        path.write_text(text)
        capsys.readouterr()
        code = main(["xml", str(path), "--root", fake.root.path, "--complete", "--numa", *words])
        out, err = capsys.readouterr()
        (tmp_path / "placed.xml").write_text(out)
        return code, out, err

    return run


def buses(out: str) -> dict[int, tuple[str, int | None, int]]:
    """Return model, NUMA node and the bus above of each expander bus and of each port on one, by index."""
    top = etree.fromstring(out)
    found: dict[int, tuple[str, int | None, int]] = {}
    for controller in top.iterfind("devices/controller[@type='pci']"):
        node, above = controller.findtext("target/node"), controller.find("address")
        bus = -1 if above is None else int(str(above.get("bus")), 16)
        if node is not None or bus in found:
            model = str(controller.get("model"))
            found[int(str(controller.get("index")))] = (model, None if node is None else int(node), bus)
    return found


def places(out: str) -> dict[str, tuple[int, int, int] | None]:
    """Return bus, slot and function in the guest of each host function; None if it is not assigned."""
    found: dict[str, tuple[int, int, int] | None] = {}
    for hostdev in etree.fromstring(out).iterfind("devices/hostdev"):
        source = hostdev.find("source/address")
        fields = (int(str(source.get(key)), 16) for key in ("domain", "bus", "slot", "function"))
        name = "{:04x}:{:02x}:{:02x}.{}".format(*fields)
        place = hostdev.find("address[@type='pci']")
        numbers = ("bus", "slot", "function")
        found[name] = None if place is None else tuple(int(str(place.get(key)), 16) for key in numbers)  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(("more", "nodes"), [("", [0, 1]), (CROSSED, [1, 0])], ids=["by-number", "memnode"])
def test_q35(xml: Xml, fake: FakeHost, more: str, nodes: list[int]) -> None:
    """A card has one port on the expander bus of its cell, with its functions in one slot; a kept one has no place."""
    before = fake.snapshot()
    code, out, err = xml(guest(*PORTS, DISK, cells=CELLS + more))
    assert 0 == code, err
    assert [
        ("pcie-expander-bus", nodes[0], 0),
        ("pcie-root-port", None, 1),
        ("pcie-expander-bus", nodes[1], 0),
        ("pcie-root-port", None, 3),
    ] == list(buses(out).values())
    assert {PORTS[0]: (2, 0, 0), PORTS[1]: (2, 0, 2), DISK: (4, 0, 0), "0000:03:00.0": None} == places(out)
    assert before == fake.snapshot()


def test_i440fx(xml: Xml) -> None:
    """Each card has a slot of the expander bus."""
    code, out, err = xml(guest(*PORTS, DISK, machine="pc"))
    assert 0 == code, err
    assert [("pci-expander-bus", 0, 0), ("pci-expander-bus", 1, 0)] == list(buses(out).values())
    assert {PORTS[0]: (1, 0, 0), PORTS[1]: (1, 0, 2), DISK: (2, 0, 0), "0000:03:00.0": None} == places(out)


def test_bus_numbers_do_not_overlap(xml: Xml) -> None:
    """Between the numbers of two expander buses, there is one for each port of the lower one."""
    code, out, _ = xml(guest("0000:03:00.0", "0000:03:00.1", "0000:03:00.2", DISK))
    numbers = [int(str(found)) for found in etree.fromstring(out).xpath("//target/@busNr")]
    assert (0, [254, 252]) == (code, numbers)


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("libvirt", ["9.0", "11.3", "12.8"])
def test_addresses_and_argv_follow(
    xml: Xml, fake: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: str, libvirt: str
) -> None:
    """In every release the places are those that addresses then reports as written, and argv uses them."""
    code, out, _ = xml(guest(*PORTS, DISK, machine=machine), "--libvirt", libvirt)
    words = [str(tmp_path / "placed.xml"), "--root", fake.root.path, "--libvirt", libvirt, "--json"]
    assert (0, 0) == (code, main(["addresses", *words]))
    listed = [found for found in json.loads(capsys.readouterr().out)["addresses"] if found["kind"] == "hostdev"]
    told = {found["address"]: found["why"] for found in listed}
    wanted = [place for place in places(out).values() if place is not None]
    assert dict.fromkeys(("0000:{:02x}:{:02x}.{}".format(*place) for place in wanted), "written") == told
    assert 0 == main(["argv", *words])
    argv: list[str] = json.loads(capsys.readouterr().out)
    devices: list[dict[str, Any]] = [json.loads(word) for word in argv if word.startswith('{"driver"')]
    expander = {"q35": "pxb-pcie", "pc": "pxb"}[machine]
    assert [0, 1] == [device["numa_node"] for device in devices if device["driver"] == expander]
    above = {device["id"]: device.get("bus") for device in devices}
    given = {device["host"]: device["bus"] for device in devices if device["driver"] == "vfio-pci"}
    tops = {host: above[bus] if machine == "q35" else bus for host, bus in given.items()}
    assert tops[PORTS[0]] == tops[PORTS[1]] != tops[DISK]


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is missing")
@pytest.mark.parametrize(("machine", "card"), [("q35", "e1000e"), ("pc", "e1000")])
def test_emulator_accepts_the_buses(
    xml: Xml, fake: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: str, card: str
) -> None:
    """A real QEMU, with an emulated card in the place of each host device, has a root bus for each node."""
    assert 0 == xml(guest(*PORTS, DISK, machine=machine), "--qemu", "7.2")[0]
    words = ["argv", str(tmp_path / "placed.xml"), "--root", fake.root.path, "--json", "--qemu", "7.2"]
    assert 0 == main(words)
    argv = json.loads(capsys.readouterr().out)
    line = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    for option, value in itertools.pairwise(argv):
        if option == "-device" and '"vfio-pci"' in value:
            place = {key: word for key, word in json.loads(value).items() if key in ("bus", "addr", "multifunction")}
            line += [option, json.dumps({"driver": card, **place})]
        elif option in ("-machine", "-m", "-smp", "-numa", "-device") or "memory-backend" in value:
            line += [option, value]
    asked = "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", "query-pci", "quit"))
    done = subprocess.run(line, input=asked, capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
    answers = [json.loads(text).get("return") for text in done.stdout.splitlines()]
    (found,) = [answer for answer in answers if isinstance(answer, list)]
    assert {0, 252, 254} == {bus["bus"] for bus in found}


def test_devices_with_a_place_or_without_a_node_are_left(xml: Xml) -> None:
    """A written address stays; a device of no node gets its place as usual, with a note; again changes nothing."""
    code, out, err = xml(guest(NO_NODE, DISK))
    assert (0, True) == (code, f"reports no NUMA node for device {NO_NODE}" in err)
    assert {1: ("pcie-expander-bus", 1, 0), 2: ("pcie-root-port", None, 1)} == buses(out)
    assert places(out)[NO_NODE] is not None
    assert (0, out) == xml(out)[:2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (guest(DISK, cells=""), "no cell of the guest's <numa>"),
        (guest(DISK, cells="<cpu><numa><cell id='0' cpus='0-1' memory='524288'/></numa></cpu>"), "near NUMA node 1"),
        (guest(DISK, cells=CELLS + CROSSED.replace("nodeset='0'", "nodeset='0-1'")), "several cells of the guest's"),
        (guest(DISK, machine="pseries", arch="ppc64"), "has no expander bus for a NUMA node"),
    ],
    ids=["no cells", "no such cell", "two cells", "pseries"],
)
def test_refused(xml: Xml, text: str, words: str) -> None:
    """Nothing is printed when the guest has no node for a device, several, or no expander bus."""
    code, out, err = xml(text)
    assert (1, "", True) == (code, out, words in err), err
    assert "no-guest-node" in err
