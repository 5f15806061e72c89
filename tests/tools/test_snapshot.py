# SPDX-License-Identifier: LGPL-2.1-or-later
"""A snapshot takes the place of its host in every reading verb, alone or among others."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.tools.demo import GUEST
from pyhostdev.tools.main import main
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virfile import read_bytes

CARD = "0001:09:00.0"


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a verb and return its exit code and output."""
    code = main([*words])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("name", named_hosts())
def test_every_answer_is_the_hosts(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """list, show of each function, and status: byte for byte."""
    fake = FakeHost.named(name, tmp_path / "host")
    file = str(tmp_path / "s.tar.gz")
    assert 0 == main(["snapshot", file, "--root", fake.root.path])
    questions = [["list"], ["list", "--json", "--verify"], ["status", "--json"]]
    questions += [["show", line] for line in sorted(os.listdir(fake.root.pci_devices))[-2:]]
    for words in questions:
        assert ask(capsys, *words, "--root", fake.root.path) == ask(capsys, *words, "--root", file)


def test_plans_and_command_lines_are_the_hosts(
    bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A snapshot gives the host's answers, before and after prepare."""
    file, root = str(tmp_path / "s.tar.gz"), bcm5719.root.path
    for _ in range(2):
        assert 0 == main(["snapshot", file, "--root", root])
        for words in (["plan", GUEST], ["plan", GUEST, "--json"], ["argv", GUEST], ["xml", GUEST], ["status"]):
            code, text = ask(capsys, *words, "--root", root)
            assert (code, text.replace(root, "")) == ask(capsys, *words, "--root", file)
        assert 0 == main(["prepare", GUEST, "--root", root, "--simulate"])


def test_the_kernel_of_this_machine_is_read() -> None:
    """The kernel refuses a large read below /proc/sys: a file is read in smaller pieces."""
    root = HostRoot("/")
    assert os.uname().release.encode() == (read_bytes(root, root.kernel_release, 16 << 20) or b"").strip()


def test_what_could_not_be_read_is_told(
    bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user can read 64 bytes of configuration space: the snapshot has only these, and lists the file."""
    config = Path(bcm5719.root.pci_device(CARD), "config")
    sizes = {4096: config.stat().st_size}
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, n: real(fd, 64)[:0] if n < 4096 and n != 65537 else real(fd, min(n, 64)))
    file = str(tmp_path / "s.tar.gz")
    assert 0 == main(["snapshot", file, "--root", bcm5719.root.path])
    monkeypatch.undo()
    assert "cannot read" in capsys.readouterr().err
    code, text = ask(capsys, "show", CARD, "--json", "--root", file)
    assert (0, True, {4096: 4096}) == (code, json.loads(text)["pci_express"], sizes)
    main(["list", "--root", file])
    assert f"snapshot '{file}' lacks" in capsys.readouterr().err


def test_a_snapshot_is_private_and_not_changed(bcm5719: FakeHost, tmp_path: Path) -> None:
    """Only the owner can read a snapshot; changing verbs refuse it; unpacked files are removed."""
    file = tmp_path / "s.tar.gz"
    assert 0 == main(["snapshot", str(file), "--root", bcm5719.root.path])
    before = file.read_bytes()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert 1 == main(["prepare", GUEST, "--simulate", "--root", str(file)])
    assert before == file.read_bytes()
    assert 0 == main(["snapshot", str(file), "--root", str(file)])
    assert before == file.read_bytes()
    assert ["s.tar.gz"] == [path.name for path in tmp_path.iterdir() if path.name.startswith("s.")]
    assert 1 == main(["snapshot", str(tmp_path / "none" / "s.tar.gz"), "--root", bcm5719.root.path])


def test_a_tree_is_a_host(bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--tree writes what FakeHost reads, also of a snapshot."""
    file, tree = str(tmp_path / "s.tar.gz"), str(tmp_path / "h.tree")
    assert 0 == main(["snapshot", file, "--root", bcm5719.root.path])
    assert 0 == main(["snapshot", tree, "--tree", "--root", file])
    other = FakeHost.from_tree(tree, tmp_path / "other")
    assert ask(capsys, "list", "--root", bcm5719.root.path) == ask(capsys, "list", "--root", other.root.path)


@pytest.fixture
def hosts(tmp_path: Path) -> list[str]:
    """Three candidates for a guest: a suitable snapshot, an unsuitable one, and a file that is not a snapshot."""
    roots = []
    for name in ("bcm5719", "sriov"):
        fake = FakeHost.named(name, tmp_path / name)
        roots.append(str(tmp_path / f"{name}.tar.gz"))
        assert 0 == main(["snapshot", roots[-1], "--root", fake.root.path])
    (tmp_path / "broken.tar.gz").write_bytes(b"no snapshot")
    return [*roots, str(tmp_path / "broken.tar.gz"), str(tmp_path / "bcm5719")]


def test_which_host_can_take_the_guest(hosts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A table has one line per host, in order; exit code 0 if one is suitable, else 1; nothing is written."""
    roots = [word for root in hosts for word in ("--root", root)]
    code, text = ask(capsys, "plan", GUEST, *roots)
    lines = [line.split()[:2] for line in text.splitlines()[1:]]
    assert (0, [*zip(hosts, ("yes", "no", "no", "yes"), strict=True)]) == (code, [tuple(line) for line in lines])
    assert "device-missing" in text and "host-unreadable" in text
    assert 1 == ask(capsys, "plan", GUEST, *roots[2:6])[0]
    assert 1 == ask(capsys, "plan", GUEST, *roots, "--state-dir", "/nonexistent")[0]


def test_one_object_for_each_host(hosts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints a plan a line; the plan of one host is the one that is printed alone."""
    roots = [word for root in hosts for word in ("--root", root)]
    _, text = ask(capsys, "plan", GUEST, *roots, "--json")
    plans = [json.loads(line) for line in text.splitlines()]
    assert hosts == [plan["root"] for plan in plans]
    assert [True, False, False, True] == [plan["ok"] for plan in plans]
    alone = json.loads(ask(capsys, "plan", GUEST, "--json", "--root", hosts[0])[1])
    assert {**alone, "root": hosts[0]} == plans[0]
