# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the tutorials show is run: their Python in order, their commands with the output that they print.

In expected output, ``...`` stands for any text. A tutorial runs in a directory of its own; ``fakehost NAME`` in its
first comment (``<!-- host: NAME -->``) builds a simulated host in ``host/`` there.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost

TUTORIALS = Path(__file__).parent.parent / "docs/tutorials"
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
HOST = re.compile(r"<!-- host: (\w+) -->")
MATCHER = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def shell(command: str, directory: Path) -> str:
    """Run one command line, pyhostdev being the one of this environment; return both streams."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    environment = {**os.environ, "PATH": path, "COLUMNS": "120"}
    done = subprocess.run(
        command, shell=True, cwd=directory, env=environment, text=True, capture_output=True, timeout=120
    )
    return done.stdout + done.stderr


def commands(text: str) -> list[tuple[str, str]]:
    """Return each command of a console block with the output that is expected of it."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(first, rest) for first, _, rest in (part.partition("\n") for part in parts)]


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.md")), ids=lambda path: path.stem)
def test_tutorial(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the tutorial does what the page says."""
    text = path.read_text()
    monkeypatch.chdir(tmp_path)
    host = HOST.search(text)
    if host:
        (tmp_path / "host").mkdir()
        FakeHost.named(host.group(1), tmp_path / "host")
    names: dict[str, object] = {}
    for language, file, body in BLOCK.findall(text):
        if file:
            (tmp_path / file).write_text(body)
        elif language == "python":
            exec(compile(body, str(path), "exec"), names)  # noqa: S102 - the tutorial is ours
        elif language == "console":
            for command, expected in commands(body):
                printed = shell(command, tmp_path)
                assert MATCHER.check_output(expected, printed, FLAGS), f"$ {command}\n{printed}"


def test_every_tutorial_runs_something() -> None:
    """A tutorial without a block that runs would prove nothing."""
    for path in TUTORIALS.glob("*.md"):
        languages = {language for language, _, _ in BLOCK.findall(path.read_text())}
        assert languages & {"python", "console"}, path.name
