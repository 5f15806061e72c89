# SPDX-License-Identifier: LGPL-2.1-or-later
"""``xml --pin-devices``, ``plan --find`` and ``xml --repoint`` on one host and on the same host renumbered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

TREE = """driver pcieport class:0604 builtin
driver nvme class:010802
driver vfio-pci
0000:00:02.0 8086:2030 060400 driver=pcieport group=1 bridge={0}-{0} express=root-port acs
0000:00:03.0 8086:2032 060400 driver=pcieport group=2 bridge={1}-{1} express=root-port acs
0000:{0}:00.0 144d:a808 010802 driver=nvme group=3 express=endpoint flr
0000:{1}:00.0 144d:a808 010802 driver=nvme group=4 express=endpoint flr
"""
GUEST = """<domain type='qemu'><name>d</name><memory>1048576</memory><os><type arch='x86_64' machine='q35'>hvm</type>
</os><devices><emulator>/nonexistent/qemu</emulator><hostdev mode='subsystem' type='pci' managed='yes'><source>
<address domain='0' bus='2' slot='0' function='0'/></source></hostdev></devices></domain>"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the host, the host with other bus numbers, and a guest."""
    for name, buses in (("before", ("02", "03")), ("after", ("03", "02")), ("empty", ("08", "09"))):
        (tmp_path / f"{name}.tree").write_text(TREE.format(*buses))
        FakeHost.from_tree(tmp_path / f"{name}.tree", tmp_path / name)
    (tmp_path / "guest.xml").write_text(GUEST)
    return tmp_path


def test_pin_find_and_repoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other card at the address is refused, the pinned one is found and declared; then the plan has no obstacle."""

    def run(verb: str, file: str, host: str, *words: str) -> tuple[int, str]:
        code = main([verb, str(place / file), "--root", str(place / host), *words])
        return code, capsys.readouterr().out

    code, text = run("xml", "guest.xml", "before", "--pin-devices", "--pin")
    assert (0, True) == (code, 'path="0000:00/02.0/00.0"' in text)
    (place / "pinned.xml").write_text(text)
    assert 0 == run("plan", "pinned.xml", "before")[0]
    code, text = run("plan", "pinned.xml", "after", "--find")
    assert (1, True) == (code, "changed-identity" in text)
    assert "the device pinned at 0000:02:00.0 is at 0000:03:00.0" in text
    found = json.loads(run("plan", "pinned.xml", "after", "--find", "--json")[1])["found"]
    assert [{"pinned": "0000:02:00.0", "now": ["0000:03:00.0"]}] == found
    assert json.loads(run("plan", "pinned.xml", "after", "--json")[1])["found"] is None
    code, text = run("xml", "pinned.xml", "after", "--repoint")
    (place / "repointed.xml").write_text(text)
    assert (0, 0) == (code, run("plan", "repointed.xml", "after")[0])


def test_find_on_several_hosts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each host is asked where the pinned device is; a domain without pins says so."""
    hosts = [word for name in ("before", "after", "empty") for word in ("--root", str(place / name))]
    assert 0 == main(["xml", str(place / "guest.xml"), "--pin-devices", *hosts[:2]])
    (place / "pinned.xml").write_text(capsys.readouterr().out)
    words = ["plan", str(place / "pinned.xml"), "--find", *hosts]
    assert 0 == main(words)
    places = [line.rpartition(" is at ")[2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert ["0000:02:00.0", "0000:03:00.0", "0000:08:00.0"] == places
    assert 0 == main([*words, "--json"])
    found = [json.loads(line)["found"][0]["now"] for line in capsys.readouterr().out.splitlines()]
    assert [["0000:02:00.0"], ["0000:03:00.0"], ["0000:08:00.0"]] == found
    assert 0 == main(["plan", str(place / "guest.xml"), "--find", *hosts[:2]])
    assert "the domain has no pinned host devices" in capsys.readouterr().out


def test_nothing_to_repoint_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A domain without pins, and a device that this host does not have."""
    words = [str(place / "guest.xml"), "--root", str(place / "empty")]
    assert 1 == main(["xml", *words, "--repoint"])
    assert "has no pinned host devices" in capsys.readouterr().err
    assert 1 == main(["xml", *words, "--pin-devices"])
    assert "device-missing" in capsys.readouterr().err
