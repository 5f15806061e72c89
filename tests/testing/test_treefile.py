# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text format of hosts: the meaning of each field, and the line named in an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyhostdev.errors import ConfigError
from pyhostdev.testing.configspace import build_config, read_dump
from pyhostdev.testing.driverspec import DriverSpec, driver_kind
from pyhostdev.testing.fakehost import HOSTS, FakeHost, named_hosts
from pyhostdev.testing.treefile import parse_function, parse_host, read_host
from pyhostdev.util import pciconfig, pciregs

NIC = "0000:01:00.0 14e4:1657 020000"

WRONG = {
    "no-class": "0000:01:00.0 14e4:1657",
    "bad-ids": "0000:01:00.0 14e4 020000",
    "short-class": "0000:01:00.0 14e4:1657 0200",
    "bad-address": "0000:01:20.0 14e4:1657 020000",
    "unknown-word": f"{NIC} multifunktion",
    "unknown-value": f"{NIC} color=red",
    "flag-with-value": f"{NIC} flr=yes",
    "value-without": f"{NIC} group",
    "bad-express": f"{NIC} express=card",
    "bad-acs": f"{NIC} acs=maybe",
    "driver-twice": "driver a\ndriver a",
    "function-twice": f"{NIC}\n{NIC}",
    "driver-and-none": f"driver a\n{NIC} driver=a nodriver",
    "driver-not-described": f"{NIC} driver=tg3",
    "driver-not-loaded": f"driver tg3 available\n{NIC} driver=tg3",
    "net-without-driver": f"{NIC} net=eth0",
    "physfn-missing": f"{NIC} physfn=0000:02:00.0",
    "physfn-without-vfs": f"0000:02:00.0 14e4:1657 020000\n{NIC} physfn=0000:02:00.0",
    "parent-no-bridge": f"0000:02:00.0 14e4:1657 020000\n{NIC} parent=0000:02:00.0",
    "dump-first": "  00: e4 14",
    "dump-junk": f"{NIC}\n  00: e4 1",
    "driver-word": "driver a fast",
    "driver-errno": "driver a probe=EWHATEVER",
    "driver-nameless": "driver",
    "driver-path": "driver ../x",
    "unknown-line": "devices 5",
    "member-path": "member 5 a/b",
    "group-text": "group five DMA",
    "mount-short": "mount nvme0n1",
    "member-twice": "member 5 dma0\nmember 6 dma0",
    "physfn-is-a-vf": "0000:01:00.0 14e4:1657 020000 sriov=1 physfn=0000:01:00.0",
    "below-itself": "0000:01:00.0 8086:2030 060400 bridge=01-02",
}


@pytest.mark.parametrize("name", named_hosts())
def test_order_of_functions_does_not_matter(name: str, tmp_path: Path) -> None:
    """A function may stand before the bridge above it; VFs keep their order."""
    lines = Path(HOSTS, f"{name}.tree").read_text().splitlines()
    functions = [line for line in lines if re.match(r"[0-9a-f]{4,8}:", line) and "physfn=" not in line]
    others = [line for line in lines if line not in functions]
    turned = FakeHost(parse_host("\n".join([*others, *reversed(functions)]) + "\n"), tmp_path / "turned")
    assert set(FakeHost.named(name, tmp_path / "host").snapshot()) == set(turned.snapshot())


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_wrong_line_is_named(text: str) -> None:
    """The error has the number of the last line, which is the wrong one, and the host's name."""
    number = 2 + text.count("\n")
    with pytest.raises(ConfigError, match=f"Line {number} of host 'bad': ") as error:
        parse_host(f"# a comment\n{text}\n", name="bad")
    assert number == error.value.line


def test_comments_and_empty_lines_say_nothing() -> None:
    """A host of comments is empty."""
    host = parse_host("# x\n\n   # y\n")
    assert ({}, {}) == (host.functions, host.drivers)


def test_function_words() -> None:
    """Each field sets its value; a function without fields is conventional, alone and unbound."""
    spec = parse_function(f"{NIC} group=3 subsys=1028:02aa rev=0a numa=1 override=x net=a,b boot-vga")
    assert (3, (0x1028, 0x02AA), 10, 1, "x", ("a", "b"), True) == (
        spec.group, spec.subsystem, spec.revision, spec.numa_node, spec.override, spec.net, spec.boot_vga,
    )  # fmt: skip
    plain = parse_function(NIC)
    assert (None, None, None, False, -1) == (
        plain.driver,
        plain.group,
        plain.express,
        plain.multifunction,
        plain.numa_node,
    )


def test_driver_words() -> None:
    """Availability, module, ids and misbehaviour; a module is spelled as the kernel does."""
    drivers = parse_host(
        "driver tg3 14e4:1657 14e4:* class:02\n"
        "driver mlx5_vfio_pci available module=mlx5-vfio-pci\n"
        "driver pcieport builtin\ndriver odd managed-dma probe=EIO remove=hang\n"
    ).drivers
    assert {
        "tg3": DriverSpec("tg3", ("14e4:1657", "14e4:*", "class:02"), "host", "tg3"),
        "mlx5_vfio_pci": DriverSpec("mlx5_vfio_pci", (), "vfio", "mlx5_vfio_pci", "available"),
        "pcieport": DriverSpec("pcieport", (), "managed-dma", None),
        "odd": DriverSpec("odd", (), "managed-dma", "odd", "loaded", "EIO", "hang"),
    } == drivers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vfio-pci", "vfio"),
        ("xe-vfio-pci", "vfio"),
        ("pds_vfio_pci", "vfio"),
        ("pci-stub", "managed-dma"),
        ("e1000e", "host"),
    ],
)
def test_driver_kind_by_name(name: str, kind: str) -> None:
    """The drivers that leave the group's DMA alone are known by name."""
    assert kind == driver_kind(name)


def config(words: str) -> bytes:
    return build_config(parse_function(f"{NIC} {words}"))


def test_reset_words_show_in_config_space() -> None:
    """flr, af and pm are what a reader of capabilities finds; pm=noreset keeps its state."""
    found = [
        (pciconfig.has_flr(config(words)), pciconfig.has_pm_reset(config(words)))
        for words in ("", "pm", "pm=noreset", "af", "express=endpoint flr", "express=endpoint pm flr")
    ]
    assert [(False, False), (False, True), (False, False), (True, False), (True, False), (True, True)] == found


def test_extended_capabilities_are_one_chain() -> None:
    """ACS, ARI and SR-IOV follow each other, and a port's ari is not a capability of its own."""
    words = "express=endpoint acs ari sriov=7 vf-device=1520 vf-offset=128 vf-stride=2"
    ids = (pciregs.EXT_CAP_ID_ACS, pciregs.EXT_CAP_ID_ARI, pciregs.EXT_CAP_ID_SRIOV)
    assert all(pciconfig.find_extended_capability(config(words), number) for number in ids)
    port = config("express=root-port bridge=02-02 ari")
    assert [0, 0, 0] == [pciconfig.find_extended_capability(port, number) for number in ids]


def test_bridge_has_its_buses() -> None:
    """Header type 1, with the function's own bus as primary."""
    found = config("bridge=02-05 multifunction")
    assert (0x81, bytes((1, 2, 5))) == (found[pciregs.HEADER_TYPE], found[0x18:0x1B])


def test_vf_reads_all_ones_where_a_pf_has_ids() -> None:
    """A VF is never multifunction, whatever its line."""
    found = build_config(parse_function(f"{NIC} multifunction express=endpoint physfn=0000:01:00.1"))
    assert (b"\xff\xff\xff\xff", 0) == (found[:4], found[pciregs.HEADER_TYPE])


def test_dump_lines_replace_generated_bytes(tmp_path: Path) -> None:
    """Below a function, as lspci prints them; bytes beyond the end are an error."""
    fake = FakeHost.from_tree(f"{NIC} pm\n  00: 11 22 33\n  0e: 80\n", tmp_path)
    with open(fake.root.join("sys/bus/pci/devices/0000:01:00.0/config"), "rb") as file:
        found = file.read()
    assert (b"\x11\x22\x33\x16", 0x80, 256) == (found[:4], found[0x0E], len(found))
    with pytest.raises(ConfigError, match="beyond"):
        build_config(parse_host(f"{NIC}\n  100: 00\n").functions.popitem()[1])


@pytest.mark.parametrize(
    ("lines", "size"), [("00: e4 14 57 16", 64), ("80: 01", 256), ("00: e4\nffc: 00 00 00 01", 4096)]
)
def test_dump_by_name(tmp_path: Path, lines: str, size: int) -> None:
    """NAME.hex beside the tree is the whole config space, in the smallest size that holds it."""
    (tmp_path / "nic.hex").write_text(f"# from lspci -xxxx\n{lines}\n")
    (tmp_path / "my.tree").write_text(f"{NIC} dump=nic\n")
    host = read_host(tmp_path / "my.tree")
    assert ("my", size) == (host.name, len(read_dump(host.directory, "nic")))
    (tmp_path / "host").mkdir()
    fake = FakeHost.from_tree(tmp_path / "my.tree", tmp_path / "host")
    with open(fake.root.join("sys/bus/pci/devices/0000:01:00.0/config"), "rb") as file:
        assert read_dump(str(tmp_path), "nic") == file.read()


def test_dump_with_junk_is_refused(tmp_path: Path) -> None:
    """The file is named."""
    (tmp_path / "nic.hex").write_text("00: e4 xx\n")
    with pytest.raises(ConfigError, match="'nic.hex'"):
        read_dump(str(tmp_path), "nic")
