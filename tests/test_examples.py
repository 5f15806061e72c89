# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each program in examples/ does what its docstring says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.tools.demo import GUEST

EXAMPLES = Path(__file__).parent.parent / "examples"
LONGEST = 60


def run(name: str, *words: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env={**os.environ, **env}, timeout=60)


def test_inventory(bcm5719: FakeHost) -> None:
    """One JSON line per function, each port naming the three that share its group."""
    lines = [json.loads(line) for line in run("inventory.py", bcm5719.root.path).stdout.splitlines()]
    port = next(line for line in lines if line["address"] == "0001:09:00.0")
    assert ["0001:09:00.1", "0001:09:00.2", "0001:09:00.3"] == port["shares_group_with"]
    assert "tg3" == port["driver"]


def test_plan_and_prepare(bcm5719: FakeHost) -> None:
    """All four functions are prepared while the program waits, and given back afterwards."""
    before = bcm5719.snapshot()
    done = run("plan_and_prepare.py", GUEST, bcm5719.root.path, stdin="\n")
    assert (0, "given back") == (done.returncode, done.stdout.splitlines()[-1]), done.stderr
    assert "prepared: 0001:09:00.0, 0001:09:00.1, 0001:09:00.2, 0001:09:00.3" in done.stdout
    assert before == bcm5719.snapshot()


def test_own_tool() -> None:
    """The foreign test suite passes with the plugin."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_own_tool.py")]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=120)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_libvirt_hook(bcm5719: FakeHost) -> None:
    """The hook prepares unmanaged devices and gives them back; managed ones are libvirt's."""
    before = bcm5719.snapshot()
    unmanaged = Path(GUEST).read_text().replace("managed='yes'", "managed='no'")
    top = bcm5719.root.path
    done = run("libvirt_hook.py", "seed", "prepare", "begin", "-", stdin=unmanaged, PYHOSTDEV_ROOT=top)
    assert (0, "") == (done.returncode, done.stderr)
    assert before != bcm5719.snapshot()
    assert 0 == run("libvirt_hook.py", "seed", "release", "end", "-", PYHOSTDEV_ROOT=top).returncode
    assert before == bcm5719.snapshot()


def test_libvirt_hook_refuses(bcm5719: FakeHost) -> None:
    """A function that the hook would have to take and that is missing stops the start with its reason."""
    one = Path(GUEST).read_text().replace("function='0x3'/>\n      </source>", "function='0x7'/>\n      </source>")
    done = run("libvirt_hook.py", "seed", "prepare", "begin", "-", stdin=one, PYHOSTDEV_ROOT=bcm5719.root.path)
    assert 1 == done.returncode
    assert "device-missing: " in done.stderr


def test_check_snapshots(tmp_path: Path) -> None:
    """The seed's host can take the seed's guest; a host without the card is refused by name."""
    other = tmp_path / "other.tree"
    seed = Path(HOSTS, "bcm5719.tree")
    other.write_text(seed.read_text().replace("0001:09:00", "0001:0a:00"))
    done = run("check_snapshots.py", GUEST, seed, other)
    assert 1 == done.returncode, done.stderr
    assert [f"{seed}: can take it", f"{other}: refused"] == [s for s in done.stdout.splitlines() if s[0] != " "]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    """An example fits on one screen."""
    assert LONGEST + 10 >= len(path.read_text().splitlines())
