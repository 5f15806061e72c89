# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of what QEMU and guests do is made from the tests that prove it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs/hotplug.md"
HEADER = "| test | rule |\n|---|---|\n"


def rows() -> list[str]:
    """Return a row for each test of the simulated QEMU: its name and its rule."""
    tree = ast.parse((TOP / "tests/testing/test_qemu.py").read_text())
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [f"| {name_of(test)} | {' '.join((ast.get_docstring(test) or '').split())} |" for test in tests]


def name_of(test: ast.FunctionDef) -> str:
    return test.name.removeprefix("test_").replace("_", " ")


def test_the_table_is_what_is_tested(request: pytest.FixtureRequest) -> None:
    """A new test is a new row; --regenerate writes the table anew."""
    text, _, table = PAGE.read_text().partition(HEADER)
    wanted = "\n".join(rows()) + "\n"
    if request.config.getoption("--regenerate", default=False):
        PAGE.write_text(text + HEADER + wanted)
        table = wanted
    assert wanted == table
    assert len(rows()) > 30
