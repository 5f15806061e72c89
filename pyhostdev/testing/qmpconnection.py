# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A connection to a simulated QEMU without a socket; virtual time passes while a client waits for an event.

It has the interface of a client of the library qemu.qmp (``execute`` and ``events``), so tests need neither that
library nor real time.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pyhostdev.testing.qemumachine import SimulatedMachine

_IDLE_S = 0.002  # between two checks of an idle machine


class SimulatedEvents:
    """The unread events of one client."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._unread: deque[dict[str, Any]] = deque()

    def take(self) -> None:
        """Take the events that the machine has sent."""
        self._unread += self._machine.outbox
        self._machine.outbox.clear()

    async def get(self) -> dict[str, Any]:
        """Return the next event; virtual time passes while there is none."""
        while True:
            self.take()
            if self._unread:
                return self._unread.popleft()
            due = self._machine.next_due_s
            if due is None:
                await asyncio.sleep(_IDLE_S)
            else:
                self._machine.advance(due)


class SimulatedConnection:
    """
    One client of a simulated machine.

    Args:
        on_command: called with each command before it is executed; tests kill a process there.
    """

    def __init__(self, machine: SimulatedMachine, on_command: Callable[[str], None] | None = None) -> None:
        self.machine = machine
        self.events = SimulatedEvents(machine)
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._on_command = on_command

    async def execute(self, cmd: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """
        Run one command and return its answer.

        Raises:
            QMPRefusal: the answer is an error.
        """
        if self._on_command is not None:
            self._on_command(cmd)
        self.commands.append((cmd, dict(arguments or {})))
        return self.machine.execute(cmd, arguments)

    def send_fd(self, fd: int) -> None:
        """Send a copy of a descriptor, which the next ``getfd`` names."""
        self.machine.nodes.sent.append(os.dup(fd))
