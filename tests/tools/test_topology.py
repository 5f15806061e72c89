# SPDX-License-Identifier: LGPL-2.1-or-later
"""``topology``: each function once, below its port or PF; groups as boxes of a graph; names cannot break the graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.tools.demo import GUEST
from pyhostdev.tools.main import main

ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


def shown(capsys: pytest.CaptureFixture[str], fake: FakeHost, *words: str) -> str:
    """Return what the verb prints."""
    capsys.readouterr()
    assert 0 == main(["topology", "--root", fake.root.path, *words])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", named_hosts())
def test_every_function_is_there_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the tree and in the graph."""
    fake = FakeHost.named(name, tmp_path)
    expected = sorted(Path(fake.root.pci_devices, name).name for name in Path(fake.root.pci_devices).iterdir())
    assert expected == sorted(re.findall(rf"({ADDRESS})  [0-9a-f?]", shown(capsys, fake)))
    graph = shown(capsys, fake, "--dot")
    assert expected == sorted(re.findall(rf'"({ADDRESS})" \[', graph))
    assert graph.count("{") == graph.count("}") == 1 + graph.count("subgraph")


def test_vfs_are_below_their_pf(fakehost: Callable[[str], FakeHost], capsys: pytest.CaptureFixture[str]) -> None:
    """And the PF below its root port."""
    graph = shown(capsys, fakehost("sriov"), "--dot")
    assert '"0000:00:03.0" -> "0000:03:00.0";' in graph
    assert '"0000:03:00.0" -> "0000:03:10.2";' in graph


@pytest.mark.parametrize("form", [[], ["--dot"]], ids=["tree", "graph"])
def test_filters_keep_the_bridges_above(
    form: list[str], fakehost: Callable[[str], FakeHost], capsys: pytest.CaptureFixture[str]
) -> None:
    """A function that passes is shown with its PF and its port, and nothing else."""
    text = shown(capsys, fakehost("sriov"), "--group", "6", *form)
    assert {"0000:00:03.0", "0000:03:00.0", "0000:03:10.2"} == set(re.findall(ADDRESS, text))
    assert "0 functions" in shown(capsys, fakehost("sriov"), "--driver", "vfio-pci")


def test_roles_of_a_domain(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """What the guest gets and what is kept away from it."""
    text = shown(capsys, bcm5719, "--domain", GUEST)
    assert (2, 2) == (text.count("[given]"), text.count("[kept]"))
    assert 4 == shown(capsys, bcm5719, "--domain", GUEST, "--dot").count("fillcolor")


def test_ports_are_told_apart(fakehost: Callable[[str], FakeHost], capsys: pytest.CaptureFixture[str]) -> None:
    """Root ports, the ports of a switch, and other bridges; without their capabilities all are bridges."""
    lines = [
        "0000:00:01.0 8086:2030 060400 group=1 bridge=01-04 express=root-port",
        "0000:01:00.0 10b5:8747 060400 group=2 bridge=02-04 express=upstream-port",
        "0000:02:08.0 10b5:8747 060400 group=3 bridge=03-03 express=downstream-port",
        "0000:00:1e.0 8086:244e 060401 group=4 bridge=05-05",
        "0000:03:00.0 8086:1563 020000 group=5 express=endpoint",
    ]
    fake = fakehost("\n".join(lines) + "\n")
    words = ("root port", "switch, upstream port", "switch, downstream port", "bridge")
    for form in ((), ("--dot",)):
        text = shown(capsys, fake, *form)
        assert [1] * 4 == [len(re.findall(rf"(?:  |\\n){word}(?:  |\\n)", text)) for word in words]
    for address in ("0000:00:01.0", "0000:01:00.0", "0000:02:08.0"):
        config = Path(fake.root.pci_device(address), "config")
        config.write_bytes(config.read_bytes()[:64])
    assert 4 == shown(capsys, fake).count("  bridge  ")


def test_who_has_what(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """The owner of a function in use is shown, and a declared function that the host lacks is noted."""
    assert 0 == main(["prepare", GUEST, "--root", bcm5719.root.path, "--simulate"])
    assert 4 == shown(capsys, bcm5719).count("[in use by 'seed']")
    assert 2 == shown(capsys, bcm5719, "--domain", GUEST).count("[kept, in use by 'seed']")
    assert 0 == main(
        ["topology", "--root", FakeHost.named("sriov", f"{bcm5719.root.path}-2").root.path, "--domain", GUEST]
    )
    assert 4 == capsys.readouterr().err.count("is not on this host")


def test_a_drivers_name_cannot_break_the_graph(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Quotes and backslashes are escaped."""
    link = Path(bcm5719.root.pci_device("0001:09:00.0"), "driver")
    link.unlink()
    link.symlink_to('../x"];evil\\')
    assert '\\nx\\"];evil\\\\"' in shown(capsys, bcm5719, "--dot")
