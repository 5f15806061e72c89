# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Commands to a guest's QEMU over the second monitor that ``start`` gives it, while no verb uses it.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

RUNTIME = Path("/run/pyhostdev/lib/qemu")
ANSWER_S = 120


def ask(name: str, command: str, **arguments: Any) -> Any:
    """
    Run one command of the monitor, and return its answer.

    Raises:
        OSError: the guest does not run.
        ValueError: the answer is an error.
    """
    found = sorted(RUNTIME.glob(f"domain-*-{name}/control.sock"))
    if not found:
        raise FileNotFoundError(f"guest '{name}' has no control socket")
    directory = os.open(found[-1].parent, os.O_PATH)  # the path may be longer than an address
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(f"/proc/self/fd/{directory}/{found[-1].name}")
            return _talk(connection, command, arguments)
    finally:
        os.close(directory)


def is_running(name: str) -> bool:
    """Tell whether a guest's processors run."""
    try:
        return bool(ask(name, "query-status")["running"])
    except (OSError, ValueError):
        return False  # its sockets are not there yet


def _talk(connection: socket.socket, command: str, arguments: dict[str, Any]) -> Any:
    lines = connection.makefile("rwb")
    json.loads(lines.readline())  # the greeting
    for words in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
        lines.write(json.dumps(words).encode() + b"\n")
        lines.flush()
        while "event" in (answer := json.loads(lines.readline())):
            pass
        if "error" in answer:
            raise ValueError(f"{command}: {answer['error']['desc']}")
    return answer["return"]
