# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A QMP connection with the library qemu.qmp: a client, and the events about devices.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from qemu.qmp import EventListener, QMPClient

from pyhostdev.qemu.qemu_hotplug.connection import MonitorLost, words_of

if TYPE_CHECKING:
    from qemu.qmp import Message

LINE_BYTES = 1 << 20
EVENTS_MAX = 1024  # more than a guest has devices; the oldest may be dropped, because QEMU's list of devices decides
CONNECT_TIMEOUT_S = 30.0
HANGUP_TIMEOUT_S = 5.0
NAMES = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "RESET")


class DeviceEvents(EventListener):
    """The unread events about devices, of one client."""

    def __init__(self) -> None:
        super().__init__(names=NAMES)
        self._unread: deque[Message] = deque(maxlen=EVENTS_MAX)
        self._arrived = asyncio.Event()

    async def put(self, event: Message) -> None:
        """Store an event; called by the library."""
        if self.accept(event):
            self._unread.append(event)
            self._arrived.set()
        await asyncio.sleep(0)  # the buffer may hold many events: let deadlines run in between

    async def get(self) -> Message:
        """Wait for the next event, and take it."""
        while not self._unread:
            self._arrived.clear()
            await self._arrived.wait()
        return self._unread.popleft()


class ClientConnection:
    """A negotiated client, and the events since its creation."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self.events = DeviceEvents()
        client.register_listener(self.events)

    async def execute(self, cmd: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run one command; an error that QEMU answers has an ``error_class``."""
        return await self._client.execute(cmd, dict(arguments) if arguments else None)

    def send_fd(self, fd: int) -> None:
        """Send a copy of a descriptor beside the commands."""
        self._client.send_fd_scm(fd)


def _client() -> QMPClient:
    """Return a client with a limit on the length of a line; before 0.0.6 the library has a fixed limit of 10 MiB."""
    try:
        client = QMPClient("hotplug", readbuflen=LINE_BYTES)
    except TypeError:
        client = QMPClient("hotplug")
    client.events.event_filter = lambda event: False  # the library's own listener would store all events
    return client


@contextlib.asynccontextmanager
async def connected(path: str) -> AsyncIterator[ClientConnection]:
    """
    Connect to a monitor's socket; disconnect at the end of the block.

    Raises:
        MonitorLost: the monitor does not answer.
    """
    client = _client()
    connection = ClientConnection(client)
    try:
        await asyncio.wait_for(client.connect(path), CONNECT_TIMEOUT_S)
    except Exception as err:  # garbage after the greeting raises an AssertionError of the library
        raise MonitorLost(f"QEMU's control socket does not answer: {words_of(err) or type(err).__name__}") from err
    try:
        yield connection
    finally:
        with contextlib.suppress(Exception):  # it raises the error of its reader, which was already reported
            await asyncio.wait_for(client.disconnect(), HANGUP_TIMEOUT_S)
