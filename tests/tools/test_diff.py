# SPDX-License-Identifier: LGPL-2.1-or-later
"""``diff`` prints one line per difference, and nothing for equal hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyhostdev import Host
from pyhostdev.hypervisor.hostdiff import compare_hosts
from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.tools.demo import GUEST
from pyhostdev.tools.main import main

TREE = """driver pcieport class:0604 builtin
driver nvme class:010802
driver ixgbe 8086:1563
driver ixgbevf 8086:1565
driver vfio-pci
0000:00:02.0 8086:2030 060400 driver=pcieport group=1 bridge=02-02 express=root-port acs
0000:00:03.0 8086:2032 060400 driver=pcieport group=2 bridge=03-03 express=root-port acs
0000:02:00.0 144d:a808 010802 driver=nvme group=3 express=endpoint flr
0000:02:00.1 144d:a809 010802 driver=nvme group=3 express=endpoint flr
0000:03:00.0 8086:1563 020000 driver=ixgbe group=4 numa=0 express=endpoint flr sriov=8 vf-device=1565 vf-offset=128
0000:03:10.0 8086:1565 020000 driver=ixgbevf group=5 physfn=0000:03:00.0 express=endpoint flr
"""
NIC, DISK, SECOND = "0000:03:00.0", "0000:02:00.0", "0000:02:00.1"


def made(directory: Path, *changes: tuple[str, str]) -> Host:
    """Return a copy of the first host with these changes of its description."""
    text = TREE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    directory.mkdir()
    (directory / "h.tree").write_text(text)
    return Host(FakeHost.from_tree(directory / "h.tree", directory / "root").root)


@pytest.mark.parametrize("name", named_hosts())
def test_a_host_is_like_itself(name: str, tmp_path: Path) -> None:
    """No difference, whatever the host has."""
    hosts = [Host(FakeHost.named(name, tmp_path / part).root) for part in "ab"]
    assert [] == compare_hosts(*hosts)


RENUMBERED = [("bridge=03-03", "bridge=04-04"), ("0000:03:00.0 8086", "0000:04:00.0 8086")]
RENUMBERED += [("0000:03:10.0", "0000:04:10.0"), ("physfn=0000:03", "physfn=0000:04")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("numa=0", "numa=1")], [("numa-node", NIC, NIC, "0", "1")]),
        ([("driver=ixgbe group", "nodriver group")], [("driver", NIC, NIC, "ixgbe", None)]),
        ([("driver=ixgbe group", "driver=ixgbe override=x group")], [("override", NIC, NIC, None, "x")]),
        ([("2:00.1 144d:a809 010802 driver=nvme group=3", "2:00.1 144d:a809 010802 driver=nvme group=7")], "split"),
        ([("group=4", "group=9"), ("group=5", "group=10")], []),
        ([("sriov=8", "sriov=4")], [("virtual-functions", NIC, NIC, "1 of 8", "1 of 4")]),
        (RENUMBERED, [("moved", NIC, "0000:04:00.0"), ("moved", "0000:03:10.0", "0000:04:10.0")]),
    ],
    ids=["numa", "driver", "override", "split", "numbers", "vfs", "moved"],
)
def test_each_kind_of_difference(changes: list[tuple[str, str]], expected: object, tmp_path: Path) -> None:
    """One change of a host is one difference of its functions; numbers of groups are ignored."""
    found = [
        tuple(c and str(c) for c in change)
        for change in compare_hosts(made(tmp_path / "a"), made(tmp_path / "b", *changes))
    ]
    if expected == "split":
        pair = f"{DISK} {SECOND}"
        assert [("group-split", DISK, DISK, pair, DISK), ("group-split", SECOND, SECOND, pair, SECOND)] == found
        back = compare_hosts(Host(tmp_path / "b" / "root"), Host(tmp_path / "a" / "root"))
        assert {"group-merged"} == {change.change for change in back}
    elif expected and len(expected[0]) == 3:  # type: ignore[index]
        assert expected == [change[:3] for change in found]
    else:
        assert expected == found


def test_functions_that_come_and_go(tmp_path: Path) -> None:
    """Another device at the same address is another function."""
    changes = compare_hosts(made(tmp_path / "a"), made(tmp_path / "b", ("144d:a809", "144d:a80a")))
    assert [("gone", SECOND, None), ("added", None, SECOND)] == [
        (c.change, c.address and str(c.address), c.now and str(c.now)) for c in changes
    ]


def test_exit_codes_and_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for equal hosts, 6 for different ones, 1 for an unreadable host; the plans of a domain are compared."""
    roots = [FakeHost.named("bcm5719", tmp_path / part).root.path for part in "ab"]
    assert 0 == main(["diff", *roots, "--domain", GUEST])
    assert "same plan  seed    can be prepared, 12 steps  can be prepared, 12 steps\n" in capsys.readouterr().out
    assert 0 == main(["prepare", GUEST, "--root", roots[1], "--simulate"])
    file = str(tmp_path / "b.tar.gz")
    assert 0 == main(["snapshot", file, "--root", roots[1]])
    capsys.readouterr()
    assert 6 == main(["diff", roots[0], file, "--domain", GUEST])
    text = capsys.readouterr().out
    assert "driver    0001:09:00.0  tg3" in text
    assert "in use by domain 'seed'" in text
    assert 6 == main(["diff", roots[0], file, "--json", "--domain", GUEST])
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert (True, True, False) == (plan["differs"], plan["before"]["ok"], plan["after"]["ok"])
    assert 1 == main(["diff", roots[0], str(tmp_path / "none")])


def test_plans_are_those_of_each_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan has the functions that the host's networks give, and is made as the host's libvirt would."""
    guest = tmp_path / "guest.xml"
    guest.write_text(
        "<domain type='qemu'><name>vm</name><memory>65536</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>"
        "<devices><interface type='network'><source network='pool'/></interface></devices></domain>"
    )
    hosts = [FakeHost.named("sriov", tmp_path / part).root for part in "ab"]
    for root, library in zip(hosts, ("libvirt.so.0.9000.0", "libvirt.so.0.12008.0"), strict=True):
        network = Path(root.libvirt_network_status("pool"))
        network.parent.mkdir(parents=True)
        pool = "<forward mode='hostdev' managed='yes'><pf dev='enp3s0'/></forward>"
        network.write_text(f"<networkstatus><network><name>pool</name>{pool}</network></networkstatus>")
        Path(root.library_directories[1]).mkdir(parents=True)
        Path(root.library_directories[1], "libvirt.so.0").symlink_to(library)
        variant = Path(root.modules_alias("6.1.0-fake"))
        variant.write_text(f"{variant.read_text()}alias vfio_pci:v00008086d00001565sv*sd*bc*sc*i* ixgbe_vfio_pci\n")
    code = main(["diff", hosts[0].path, hosts[1].path, "--json", "--domain", str(guest)])
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    drivers = [
        {step["to"] for step in plan[side]["steps"] if step["action"] == "detach"} for side in ("before", "after")
    ]
    assert (6, [{"vfio-pci"}, {"ixgbe_vfio_pci"}]) == (code, drivers)
