# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The monitors of a simulated QEMU: UNIX sockets that speak QMP, served by a thread.

A second client of one socket gets no greeting until the first disconnects. Commands of all sockets are executed one
after the other, and an event goes to every client that has negotiated.

Source: monitor/qmp.c (QEMU 7.2)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from pyhostdev.testing.qemumachine import SimulatedMachine
from pyhostdev.testing.qemuslots import QMPRefusal

_TICK_S = 0.002
_START_TIMEOUT_S = 10.0
_EVENTS_FIRST_SINCE = (11, 0)


class QMPServer(threading.Thread):
    """
    Serve the monitors of one machine.

    Args:
        speed: seconds of virtual time per second.
    """

    def __init__(self, machine: SimulatedMachine, paths: Sequence[str], *, speed: float = 1.0) -> None:
        super().__init__(daemon=True, name="simulated QEMU")
        self.machine = machine
        self.speed = speed
        self.lock = threading.RLock()
        self.clients: set[asyncio.StreamWriter] = set()  # clients that have negotiated
        self.connections: set[asyncio.StreamWriter] = set()
        self._paths = paths
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def begin(self) -> None:
        """
        Listen, and return once clients can connect.

        Raises:
            TimeoutError: the server did not start.
        """
        self.start()
        if not self._listening.wait(_START_TIMEOUT_S):
            raise TimeoutError("The simulated QEMU did not begin to listen")

    def end(self) -> None:
        """Close all sockets, like a QEMU that ends."""
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self.join(_START_TIMEOUT_S)

    def run(self) -> None:
        """Serve until ``end`` is called."""
        asyncio.set_event_loop(self._loop)
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        servers = [await asyncio.start_unix_server(_Monitor(self).serve, sock=_listener(path)) for path in self._paths]
        ticker = asyncio.ensure_future(self._tick())
        self._listening.set()
        await self._over.wait()
        ticker.cancel()
        for server in servers:
            server.close()
        while len(asyncio.all_tasks()) > 1:  # each client's task ends with its connection
            for client in list(self.connections):
                client.close()
            await asyncio.sleep(_TICK_S)

    async def _tick(self) -> None:
        """Let virtual time pass."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            with self.lock:
                self.machine.advance((now - last) * self.speed)
            last = now
            self.flush()

    def flush(self) -> None:
        """Send the waiting events to all clients."""
        with self.lock:
            events, self.machine.outbox = self.machine.outbox, []
        for event in events:
            for client in self.clients:
                send(client, event)

    def answer(self, question: Any) -> dict[str, Any]:
        """Execute one command."""
        name = question.get("execute") if isinstance(question, dict) else None
        if not isinstance(name, str):
            return {"error": QMPRefusal("QMP input lacks member 'execute'").to_json()}
        identity = {"id": question["id"]} if "id" in question else {}
        try:
            with self.lock:
                return {"return": self.machine.execute(name, question.get("arguments")), **identity}
        except QMPRefusal as refusal:
            return {"error": refusal.to_json(), **identity}

    def tell(self, client: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
        """Send an answer and the events of its command; a newer QEMU sends these first."""
        if self.machine.version >= _EVENTS_FIRST_SINCE:
            self.flush()
            send(client, answer)
        else:
            send(client, answer)
            self.flush()


def _listener(path: str) -> socket.socket:
    """Return a listening socket, bound through its directory: an address has at most 107 bytes."""
    directory, name = os.path.split(os.path.abspath(path))
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)
    return listener


class _Monitor:
    """One socket: one client at a time."""

    def __init__(self, server: QMPServer) -> None:
        self._server = server
        self._turn = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client at a time."""
        self._server.connections.add(writer)
        try:
            async with self._turn:
                await self._talk(reader, writer)
        finally:
            self._server.clients.discard(writer)
            self._server.connections.discard(writer)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = self._server.machine.execute("query-version")
        send(writer, {"QMP": {"version": version, "capabilities": ["oob"]}})
        is_negotiated = False
        async for question in _questions(reader):
            name = question.get("execute") if isinstance(question, dict) else None
            if is_negotiated == (name == "qmp_capabilities"):
                error = QMPRefusal(_out_of_turn(name, is_negotiated), "CommandNotFound").to_json()
                send(writer, {"error": error, "id": question.get("id")})
                continue
            if not is_negotiated:
                is_negotiated = True
                self._server.clients.add(writer)
            self._server.tell(writer, self._server.answer(question))
            with contextlib.suppress(ConnectionError):  # the client has disconnected, which its reader reports, too
                await writer.drain()


async def _questions(reader: asyncio.StreamReader) -> Any:
    """Yield the commands of a client; there may be nothing between two of them."""
    text = ""
    while part := await reader.read(65536):
        text += part.decode()
        with contextlib.suppress(ValueError):  # the rest of the last command has not arrived yet
            while text := text.lstrip():
                question, end = json.JSONDecoder().raw_decode(text)
                text = text[end:]
                yield question


def _out_of_turn(name: Any, is_negotiated: bool) -> str:
    if is_negotiated:
        return "Capabilities negotiation is already complete, command ignored"
    return f"Expecting capabilities negotiation with 'qmp_capabilities', not '{name}'"


def send(client: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """Send one line."""
    client.write(json.dumps(message).encode() + b"\r\n")
