# SPDX-License-Identifier: LGPL-2.1-or-later
"""``addresses`` and ``xml --pin``: what is printed, and exit code 6 when a device moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

DOMAIN = """<domain type='qemu'><name>d</name><memory>1048576</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/nonexistent/qemu</emulator>
<controller type='pci' index='8' model='pci-bridge'/>{}
<interface type='user'><mac address='52:54:00:00:00:01'/><model type='e1000'/></interface>
</devices></domain>"""
MORE = "<interface type='user'><mac address='52:54:00:00:00:02'/><model type='e1000'/></interface>"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a host and two definitions, the second with one more interface before the other."""
    FakeHost.named("bcm5719", tmp_path / "host")
    (tmp_path / "one.xml").write_text(DOMAIN.format(""))
    (tmp_path / "two.xml").write_text(DOMAIN.format(MORE))
    return tmp_path


def run(place: Path, verb: str, file: str, *words: str) -> int:
    """Run a verb on the host."""
    return main([verb, str(place / file), "--root", str(place / "host"), *words])


def test_a_table_of_all_devices(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each device with its address and the reason; 0 without a comparison."""
    assert 0 == run(place, "addresses", "one.xml")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["DEVICE", "ADDRESS", "WHY"] == lines[0]
    assert ["interface", "52:54:00:00:00:01", "0000:00:02.0", "chosen"] not in lines  # the bridges come first
    assert any(line[:2] == ["interface", "52:54:00:00:00:01"] and line[-1] == "chosen" for line in lines)
    assert any(line[:1] == ["memballoon"] and line[-2:] == ["device", "added"] for line in lines)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--diff", "two.xml"], 6),
        (["--diff", "one.xml"], 0),
        (["--against-libvirt", "12.8"], 0),
        (["--against-libvirt", "9.0"], 6),
        (["--libvirt", "11.3", "--against-libvirt", "12.8"], 0),
    ],
    ids=str,
)
def test_six_when_something_moves(
    words: list[str], code: int, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6 for another definition, or for the defaults of another libvirt."""
    monkeypatch.chdir(place)
    assert code == run(place, "addresses", "one.xml", *words)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert bool(code) == any(row.startswith("moved") for row in rows)


def test_a_pinned_definition_stays(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No release moves the devices of a pinned definition; its machine is unchanged."""
    assert 0 == run(place, "xml", "one.xml", "--pin")
    text = capsys.readouterr().out
    assert "machine='pc'" in text
    (place / "pinned.xml").write_text(text)
    for release in ("9.0", "11.3", "12.8"):
        assert 0 == run(place, "addresses", "pinned.xml", "--against-libvirt", release)
    assert 0 == run(place, "addresses", "one.xml", "--diff", str(place / "pinned.xml"))


def test_a_wrong_definition_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown attributes and elements of a host device are errors in both files."""
    (place / "bad.xml").write_text(DOMAIN.format("<hostdev mode='subsystem' type='pci' manged='yes'/>"))
    assert 1 == run(place, "addresses", "bad.xml")
    assert 1 == run(place, "addresses", "one.xml", "--diff", str(place / "bad.xml"))
    assert 1 == run(place, "addresses", "one.xml", "--diff", str(place / "none.xml"))
    assert "none.xml" in capsys.readouterr().err


def test_an_origin_is_named_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two definitions with the same capabilities have one note, and two releases have two."""
    assert 6 == run(place, "addresses", "one.xml", "--diff", str(place / "two.xml"))
    assert 1 == capsys.readouterr().err.count("note: answered")
    assert 6 == run(place, "addresses", "one.xml", "--against-libvirt", "9.0")
    assert 2 == capsys.readouterr().err.count("note: answered")


def test_one_standard_input(capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot be both definitions."""
    with pytest.raises(SystemExit) as end:
        main(["addresses", "-", "--diff", "-"])
    assert (2, True) == (end.value.code, "cannot both be standard input" in capsys.readouterr().err)
