# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the README shows is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pyhostdev
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools import main
from pyhostdev.tools.demo import GUEST

README = Path(__file__).parent.parent / "README.md"
CHANGING = ("prepare", "release")


def block(name: str) -> str:
    found = re.search(rf"<!-- run: {name} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_library_example(tmp_path: Path) -> None:
    """The library example runs as pasted, and prints the group, the plan and the active devices."""
    example = tmp_path / "example.py"
    example.write_text(block("library"))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, env=environment)
    assert (0, "") == (done.returncode, done.stderr)
    printed = done.stdout
    assert "0001:09:00.3 tg3 True" in printed
    assert "the host devices can be prepared" in printed
    assert printed.count("owner='vm1'") == 4


def test_shell_example(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of the shell example ends with 0 on the seed's host, which is as before afterwards."""
    before = bcm5719.snapshot()
    for line in block("shell").splitlines():
        _, verb, *rest = shlex.split(line)
        words = [verb, *(GUEST if word == "guest.xml" else word for word in rest), "--root", bcm5719.root.path]
        assert (line, 0) == (line, main.main(words + ["--simulate"] * (verb in CHANGING)))
    assert "0001:09:00.0" in capsys.readouterr().out
    assert before == bcm5719.snapshot()


def test_api_is_what_it_says() -> None:
    """Every name of __all__ exists, and nothing else is offered."""
    assert sorted(pyhostdev.__all__) == dir(pyhostdev)
    for name in pyhostdev.__all__:
        assert getattr(pyhostdev, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pyhostdev.nonsense


def test_changelog_names_the_version() -> None:
    """The CHANGELOG speaks of the version that pyproject.toml has."""
    top = README.parent
    version = re.search(r'^version = "(.*)"', (top / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## {version.group(1)}" in (top / "CHANGELOG.md").read_text()
