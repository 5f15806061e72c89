# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices without XML: query, dry run, consent for each member of the group, bind, and restore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyhostdev import HostdevManager
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Fail
from pyhostdev.tools import arguments
from pyhostdev.tools.main import main

CARD = [f"0001:09:00.{function}" for function in range(4)]


@pytest.fixture
def words(bcm5719: FakeHost) -> list[str]:
    """The arguments that name the host."""
    return ["--root", bcm5719.root.path]


def test_from_question_to_roll_back(
    bcm5719: FakeHost, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A port is asked for and its group refuses; with consent for each member it is bound; a fault rolls back all; the
    release restores drivers and overrides.
    """
    before = bcm5719.snapshot()
    assert 0 == main(["list", "--group", "14", "--columns", "address,driver", *words])
    assert 1 == main(["plan", "--device", "net:enp9s0f0", "--owner", "vm1", *words])
    assert "incomplete-device" in capsys.readouterr().out
    named = ["--device", CARD[0], CARD[3], "--keep", CARD[1], CARD[2], "--owner", "vm1", *words]
    assert 0 == main(["plan", *named, "--json"])
    plan = json.loads(capsys.readouterr().out)
    roles = [(f["name"], f["role"]) for f in plan["groups"][0]["functions"]]
    kept = "unassigned"
    assert [*zip(CARD, ("assigned", kept, kept, "assigned"), strict=True)] == roles
    assert ("vm1", None, before) == (plan["owner"], plan["capabilities"], bcm5719.snapshot())
    with monkeypatch.context() as patch:
        patch.setattr(arguments, "_writer_of", lambda *_: bcm5719.kernel)
        bcm5719.kernel.inject(7, Fail(5))
        assert 3 == main(["prepare", *named, "--simulate"])
    assert before == bcm5719.snapshot()
    assert 0 == main(["prepare", *named, "--simulate"])
    capsys.readouterr()
    assert 0 == main(["status", "--json", *words])
    active = json.loads(capsys.readouterr().out)["active"]
    assert {("vm1", "vfio-pci", "tg3")} == {(d["owner"], d["driver"], d["original_driver"]) for d in active}
    assert 0 == main(["release", "--owner", "vm1", "--simulate", *words])
    assert before == bcm5719.snapshot()


def test_the_words_of_prepare_are_those_of_release(bcm5719: FakeHost, words: list[str]) -> None:
    """The same --device, --keep and --owner release the prepared devices; every byte of the host is as before."""
    before = bcm5719.snapshot()
    named = ["--device", CARD[0], CARD[3], "--keep", CARD[1], CARD[2], "--owner", "vm1", "--simulate", *words]
    assert [0, 0] == [main([verb, *named]) for verb in ("prepare", "release")]
    assert before == bcm5719.snapshot()


def test_some_devices_are_released(bcm5719: FakeHost, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are named; a device of another owner is refused."""
    named = ["--device", CARD[0], "--keep", *CARD[1:], "--owner", "vm1", *words]
    assert 0 == main(["prepare", *named, "--simulate"])
    assert 1 == main(["release", "--owner", "vm2", "--device", CARD[1], "--simulate", *words])
    assert 0 == main(["release", "--owner", "vm1", "--device", CARD[1], CARD[2], "--simulate", *words])
    manager = HostdevManager(bcm5719.host())
    assert [CARD[0], CARD[3]] == [str(device.address) for device in manager.status().active]
    assert "not in use by domain 'vm2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "plan",
        "plan x.xml --device 01:00.0 --owner vm1",
        "plan --device 0001:09:00.0",
        "plan x.xml --owner vm1",
        "plan --device 0001:09:00.0 --owner vm1 --find",
        "plan --device 0001:09:00.0 --owner vm1 --for-start",
        "prepare --keep 0001:09:00.0 --simulate",
        "release x.xml --owner vm1 --simulate",
        "release x.xml --device 0001:09:00.0 --simulate",
        "release x.xml --keep 0001:09:00.0 --simulate",
    ],
)
def test_incomplete_requests_are_usage_errors(line: str, words: list[str]) -> None:
    """A call needs either a file, or devices with an owner."""
    with pytest.raises(SystemExit) as end:
        main([*line.split(), *words])
    assert 2 == end.value.code


@pytest.mark.parametrize(
    "line",
    [
        "plan --device 0001:09:00.0 0001:09:00.0 --owner vm1",
        "plan --device 0001:7f:00.0 --owner vm1",
        "plan --device net:none --owner vm1",
    ],
)
def test_wrong_requests_are_refused(line: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, and nothing is touched."""
    assert 1 == main([*line.split(), *words])
    assert 1 == len(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(("name", "count"), [("bcm5719", 8), ("generate:40", 40), ("own.tree", 1)])
def test_fakehost_builds_hosts(name: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hosts are built by name, by size or from a description; existing files are never overwritten."""
    (tmp_path / "own.tree").write_text("0000:01:00.0 8086:1521 020000\n")
    where, directory = (str(tmp_path / name) if name.endswith(".tree") else name), str(tmp_path / "host")
    assert 0 == main(["fakehost", where, directory])
    capsys.readouterr()
    assert 0 == main(["list", "--json", "--root", directory])
    found = len(json.loads(capsys.readouterr().out))
    assert found == count if name != "generate:40" else found >= count
    assert 1 == main(["fakehost", where, directory])
    assert "is not empty" in capsys.readouterr().err


def test_missing_description_is_refused(tmp_path: Path) -> None:
    """Nothing is built."""
    assert 1 == main(["fakehost", str(tmp_path / "none.tree"), str(tmp_path / "host")])
    assert not (tmp_path / "host").exists()
