# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A real libvirtd runs guests with the hook of pyhostdev, and its node devices equal ours.

LIBVIRT_ROOT is a Debian root that has libvirt and QEMU; by default, libvirtd is that of this machine. Everything runs
in namespaces of its own: no setting, guest or network of the machine is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "libvirtd_hook.py"
SUPPORT = Path(__file__).parents[1] / "support"
ALONE = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
PROGRAMS = ("libvirtd", "virsh", "qemu-system-x86_64")
CODE, OUT, ERR = range(3)  # of what virsh answered


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What libvirtd_hook.py saw."""
    if os.geteuid() != 0:
        pytest.skip("libvirtd needs root")
    root = os.environ.get("LIBVIRT_ROOT", "")
    path = os.pathsep.join(f"{root}/usr/{name}" for name in ("sbin", "bin", "local/bin"))
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: missing")
    done = subprocess.run([*ALONE, sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd=TOP)
    assert 0 == done.returncode, done.stdout + done.stderr
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def test_daemon_that_ends_at_its_start_is_not_waited_for(tmp_path: Path) -> None:
    """libvirtd ends, for example, if its user is missing; its message is the error."""
    if os.geteuid() != 0:
        pytest.skip("libvirtd needs root")
    daemon = tmp_path / "libvirtd"
    daemon.write_text("#!/bin/sh\necho the user is missing > /var/log/libvirt/libvirtd.log\nexit 3\n")
    daemon.chmod(0o755)
    code = f"from pathlib import Path; from libvirtd import Libvirtd; Libvirtd(Path({str(tmp_path)!r}))"
    around = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(SUPPORT)}
    line = [*ALONE, sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env=around, timeout=60)
    assert "RuntimeError: libvirtd ended with 3: the user is missing" in done.stderr


def test_guest_without_host_devices_starts_and_outlives_the_daemon(found: dict[str, Any]) -> None:
    """The hook lets it pass, at its start and when a new daemon finds it running."""
    machine = found["machine"]
    assert machine["installed"]
    assert 0 == machine["plain"][CODE], machine["plain"]
    assert "running" == machine["after kill"][OUT].strip()
    assert 0 == machine["destroyed"][CODE]


@pytest.mark.parametrize("name", ["refused", "unmanaged"])
def test_refused_start_shows_the_words_of_the_plan(found: dict[str, Any], name: str) -> None:
    """The error of virsh and the daemon's log have the reason, the address and the sentence."""
    machine = found["machine"]
    assert 1 == machine[name][CODE]
    assert "device-missing: Device 0000:7f:1f.7" in machine[name][ERR]
    assert machine["logged"]


def test_nothing_is_left(found: dict[str, Any]) -> None:
    """No guest, no record, no hook."""
    machine = found["machine"]
    assert ([], [], True) == (machine["left"], machine["records"], machine["uninstalled"])


def test_start_that_libvirt_fails_is_given_back(found: dict[str, Any]) -> None:
    """libvirt calls the hook's release after a start that failed later: every byte is as before."""
    simulated = found["simulated"]
    assert (1, True, True) == (simulated["failed"][CODE], simulated["called"], simulated["given back"])
    assert "device-missing" not in simulated["failed"][ERR]


def test_killed_daemon_in_the_middle_of_a_start(found: dict[str, Any]) -> None:
    """The devices stay the guest's until its next start, which uses them and gives them back; releases repeat."""
    simulated = found["simulated"]
    assert {f"0001:09:00.{function}": "four" for function in range(4)} == simulated["in the middle"]
    assert (1, True) == (simulated["again"][CODE], simulated["given back again"])
    assert ([0, 0], True) == (simulated["releases"], simulated["as before"])


def test_node_devices(found: dict[str, Any]) -> None:
    """Every PCI function that libvirt knows has the same XML."""
    if not found["nodedev"]:
        pytest.skip("libvirt's node device driver knows no PCI function here: its list needs udev's database")
    for name, both in found["nodedev"].items():
        assert both["libvirt"] == both["pyhostdev"], name
