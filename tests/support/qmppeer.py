# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Peers that speak QMP nearly as QEMU does: one thing in each conversation is wrong, chosen by a seed.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}
EVENT = {"event": "RTC_CHANGE", "data": {"offset": 1}, "timestamp": {"seconds": 1, "microseconds": 1}}
ANSWERS: dict[str, Any] = {
    "query-version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "hostile"},
    "query-target": {"arch": "x86_64"},
    "query-machines": [
        {"name": "pc-i440fx-7.2", "alias": "pc", "is-default": True, "default-cpu-type": "qemu64-x86_64-cpu"},
        {"name": "pc-q35-7.2", "alias": "q35", "default-ram-id": "pc.ram"},
    ],
    "query-cpu-definitions": [{"name": "qemu64", "typename": "qemu64-x86_64-cpu"}],
    "device-list-properties": [{"name": "addr", "type": "int32"}],
}
TYPES = [{"name": "vfio-pci", "parent": "pci-device"}, {"name": "rng-random"}]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1 << 70, "", "\x1b[31m", "a\nb", "\u009b2J", "\ud800", "x" * 100_000, "n,evil=on"),
    *([], {}, [[]], [None], [[1, {"name": None}]], {"name": []}, {"name": {}}, {"qemu": 1}, {"arch": "../../x"}),
)
LINES: tuple[bytes, ...] = (
    *(b"", b"\xff\xfe", b"null", b"[]", b"1", b'"text"', b"{", b'{"return": NaN, "id": 1e999}', b"{}", b"\x1b]0;x\x07"),
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"return": ' + b"9" * 10_000 + b"}",
    b'{"QMP": {}}',
    b'{"event": 1}',
    b'{"event": "SHUTDOWN"}',
    b'{"event": "RESET", "data": [], "timestamp": 1}',
    b'{"event": "SHUTDOWN", "data": {"reason": {"a": 1}}, "timestamp": {}}',
    b'{"error": 1}',
    b'{"error": {"class": [], "desc": null}}',
    b'{"return": {}, "id": {"a": []}}',
    b'{"return": {}, "id": "__qmp#00001"}',
)
FAULTS = ("none", "value", "line", "identity", "error", "end", "silence", "events", "fragments", "greeting", "twice")


class Peer(threading.Thread):
    """The other end of a monitor; ``fault`` names what is wrong with it."""

    def __init__(self, connection: socket.socket, seed: int) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._random = random.Random(seed)
        self.fault = self._random.choice(FAULTS)
        self._when = self._random.randrange(24)

    def run(self) -> None:
        """Talk until the other side hangs up."""
        with self._connection, contextlib.suppress(OSError):
            self._send(self._greeting())
            for number, question in enumerate(self._questions()):
                if not self._answer(number, question):
                    return

    def _questions(self) -> Iterator[dict[str, Any]]:
        """Yield what is asked; the library puts nothing between two questions."""
        text = ""
        while True:
            part = self._connection.recv(65536)
            if not part:
                return
            text += part.decode()
            with contextlib.suppress(ValueError):  # the rest of the last one is on its way
                while text:
                    question, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:].lstrip()
                    yield question

    def _greeting(self) -> Any:
        return self._broken(GREETING) if self.fault == "greeting" else GREETING

    def _answer(self, number: int, question: dict[str, Any]) -> bool:
        """Answer one question; False when that was the last one."""
        answer = {"return": self._said(question), "id": question.get("id")}
        if self.fault == "fragments":
            self._send_in_fragments(answer)
            return True
        if self.fault not in ("none", "greeting") and number == self._when:
            return self._misbehave(answer)
        self._send(answer)
        return True

    def _said(self, question: dict[str, Any]) -> Any:
        if question["execute"] == "qom-list-types":
            return [] if question["arguments"]["implements"] == "cpu" else TYPES
        return ANSWERS.get(question["execute"], {})

    def _misbehave(self, answer: dict[str, Any]) -> bool:
        if self.fault == "end":
            self._connection.sendall(json.dumps(answer).encode()[: self._random.randrange(60)])
            return False
        if self.fault == "line":
            self._connection.sendall(self._random.choice(LINES) + b"\r\n")
        elif self.fault == "events":
            self._connection.sendall((json.dumps(EVENT).encode() + b"\r\n") * 5000)
        if self.fault != "silence":
            self._send(self._wrong(answer))
        return True

    def _wrong(self, answer: dict[str, Any]) -> Any:
        if self.fault == "value":
            return {**answer, "return": self._broken(answer["return"])}
        if self.fault == "identity":
            return {**answer, "id": self._random.choice([*VALUES, "__qmp#00000", "__qmp#99999"])}
        if self.fault == "error":
            return {
                "error": self._random.choice([*VALUES, {"class": "GenericError", "desc": "no"}]),
                "id": answer["id"],
            }
        if self.fault == "twice":
            self._send(answer)
        return answer

    def _broken(self, value: Any) -> Any:
        """Return a copy in which one place, at any depth, has another value."""
        if isinstance(value, dict) and value and self._random.random() < 0.8:
            key = self._random.choice(list(value))
            return {**value, key: self._broken(value[key])}
        if isinstance(value, list) and value and self._random.random() < 0.8:
            return [self._broken(value[0]), *value[1:]]
        return self._random.choice(VALUES)

    def _send(self, message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\r\n")

    def _send_in_fragments(self, message: Any) -> None:
        data = json.dumps(message).encode() + b"\r\n"
        middle = self._random.randrange(len(data))
        for part in (data[:middle], data[middle:]):
            self._connection.sendall(part)


@contextlib.contextmanager
def peer(seed: int) -> Iterator[tuple[socket.socket, Peer]]:
    """Give a connection to a peer, which ends with the block."""
    ours, theirs = socket.socketpair()
    other = Peer(theirs, seed)
    other.start()
    try:
        yield ours, other
    finally:
        with contextlib.suppress(OSError):  # the library has closed it
            ours.shutdown(socket.SHUT_RDWR)
        ours.close()
        other.join(10)
    assert not other.is_alive()
