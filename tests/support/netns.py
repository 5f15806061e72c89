# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Real network interfaces without a trace on this machine: code that runs in a network namespace of its own.

    answer = in_namespace("print(1)")

The code runs in a new process with an empty network, its own sysfs and an empty ``/run``; ``add_bridge`` is there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
from functools import lru_cache
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent.parent
_MOUNTS = "mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && exec "
_SIOCBRADDBR = 0x89A0  # linux/sockios.h


def add_bridge(name: str, mtu: int = 1500) -> None:
    """Create a bridge."""
    from pyhostdev.util import virnetdev

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCBRADDBR, struct.pack("=16s", name.encode()))
    virnetdev.set_mtu(name, mtu)
    virnetdev.set_online(name, is_up=True)


@lru_cache(maxsize=1)
def why_not() -> str | None:
    """Return what is missing here for real network interfaces."""
    if shutil.which("unshare") is None:
        return "the program unshare is not installed"
    if not os.path.exists("/dev/net/tun"):
        return "this machine has no /dev/net/tun"
    tried = subprocess.run(["unshare", "-nm", "sh", "-c", f"{_MOUNTS}true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no network namespace can be made: {tried.stderr.strip()}"


def in_namespace(code: str, *args: str, timeout_s: float = 120) -> str:
    """Return what the code prints; the test is skipped where no network namespace can be made."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    head = "import sys\nfrom netns import add_bridge\n"
    words = ["unshare", "-nm", "sh", "-c", f'{_MOUNTS}"$@"', "sh", sys.executable, "-c", head + textwrap.dedent(code)]
    path = os.pathsep.join([str(TOP), str(TOP / "tests/support")])
    done = subprocess.run(
        [*words, *args], capture_output=True, text=True, timeout=timeout_s, env={**os.environ, "PYTHONPATH": path}
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout
