# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plugin imports nothing until a test requests a host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASE = """
def test_host(fakehost):
    fake = fakehost("bcm5719")
    other = fakehost("driver a\\n0000:01:00.0 14e4:1657 020000 driver=a\\n")
    assert fake.root.path != other.root.path
"""


def test_plugin_imports_no_pyhostdev_module_early() -> None:
    """Loading it brings in the package and the room, no module of the simulation."""
    code = (
        "import sys, pyhostdev.testing.pytest_plugin;"
        "print([m for m in sys.modules if m.startswith('pyhostdev.testing.') and not m.endswith('plugin')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout


def test_fixture_makes_hosts_of_their_own(tmp_path: Path) -> None:
    """In a project that is not ours, by name and by text."""
    (tmp_path / "test_other.py").write_text(CASE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pyhostdev.testing.pytest_plugin", "-p", "no:cacheprovider"]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path], capture_output=True, text=True, check=False, env=alone
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
