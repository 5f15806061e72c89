# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Ask an emulator binary what it can do, over QMP and without a machine.

The binary runs without privileges, in its own session, with a clean environment, an empty standard input, limits on its
output and resources, a deadline for each answer and one for all. After the last answer it is killed together with its
process group; if root probes, every process that it started is killed, too. It gets no command quit: a QEMU that quits
drops the output that did not fit into the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_capabilities.answers import checked
from pyhostdev.qemu.qemu_capabilities.asked import ASKED_DEVICES, ASKED_MACHINES, ASKED_OBJECTS
from pyhostdev.util.ownership import Ownership
from pyhostdev.util.spawn import Bounds, spawn

if TYPE_CHECKING:
    from qemu.qmp import Message, QMPClient

ANSWER_S = 30.0  # for the greeting and for one answer
DEADLINE_S = 300.0  # for all: an emulator that is emulated itself needs a minute, and is silent for a second
LINE_BYTES = 16 << 20  # the longest answer, all machine types of one target, has about 100 KiB
WORDS_BYTES = 64 << 10  # of the binary's output that is kept: the capacity of a pipe; the rest is lost
LINE_MAX = 300  # of the output quoted in an error
HANGUP_TIMEOUT_S = 5.0
NOBODY = Ownership(65534, 65534, "65534")  # by number: the name differs between distributions
CPU_S = 300
ADDRESS_BYTES = 16 << 30  # QEMU reserves 1 GiB for translated code, and uses about 1 % of this limit
PROCESSES = 512  # of the user `nobody`; a probed QEMU has four threads
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": "/"}
QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("query-version", {}),
    ("query-target", {}),
    ("query-machines", {}),
    ("query-cpu-definitions", {}),
    ("qom-list-types", {"implements": "device", "abstract": False}),
    ("qom-list-types", {"implements": "cpu", "abstract": False}),
    ("qom-list-types", {"implements": "user-creatable", "abstract": False}),
)
# the commands that list properties; QEMU answers with an error if it lacks the type
PROPERTY_QUESTIONS = (
    *(("device-list-properties", name) for name in ASKED_DEVICES),
    *(("qom-list-properties", name) for name in (*ASKED_OBJECTS, *ASKED_MACHINES)),
)


def _converse_and_kill(connection: socket.socket, pid: int) -> dict[str, Any]:
    try:
        return converse(connection)
    finally:
        _kill(pid)


def ask(binary: str) -> dict[str, Any]:
    """
    Return the facts about a binary, in the form that is stored.

    Raises:
        OperationError: the binary does not run, does not answer, or is not QEMU.
    """
    own_end, child_end = socket.socketpair()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with contextlib.ExitStack() as opened:
        opened.callback(own_end.close)
        opened.callback(os.close, reader)
        try:
            pid = _start(binary, child_end.fileno(), writer)
        finally:
            child_end.close()
            os.close(writer)
        try:
            return _converse_and_kill(own_end, pid)
        except OperationError as err:
            raise OperationError(f"Cannot probe the emulator '{binary}': {err}{_words(reader)}") from err


def converse(connection: socket.socket) -> dict[str, Any]:
    """
    Ask all questions over a connection and return the facts about the binary at the other end.

    Raises:
        OperationError: the answers are not QEMU's, or come too late.
    """
    questions = [*QUESTIONS, *((command, {"typename": name}) for command, name in PROPERTY_QUESTIONS)]
    answers = _run_aside(_talk(connection, questions))
    try:
        data = _described(answers)
        checked(data)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise OperationError(f"it gives invalid answers over QMP ({type(err).__name__})") from err
    return data


def _described(answers: list[Any]) -> dict[str, Any]:
    version, target, machines, cpus, devices, cpu_types, objects, *found = answers
    models = _cpu_models(cpus or [], target["arch"])
    plain = {row["name"] for row in devices} - {row["name"] for row in cpu_types}
    return {
        "arch": target["arch"],
        "version": [version["qemu"][part] for part in ("major", "minor", "micro")],
        "machines": sorted((_machine(row, models) for row in machines), key=lambda row: str(row["name"])),
        "cpus": sorted(set(models.values())),
        "devices": sorted(plain),
        "objects": sorted(row["name"] for row in objects),
        "properties": {
            name: sorted(row["name"] for row in rows)
            for (_, name), rows in zip(PROPERTY_QUESTIONS, found, strict=True)
            if rows is not None
        },
    }


def _cpu_models(definitions: list[dict[str, Any]], target: str) -> dict[str, str]:
    """Return model names by type name; of several models of one type, the first is the one that users write."""
    models: dict[str, str] = {}
    for row in definitions:
        name = row["name"].upper() if target == "ppc64" else row["name"]
        models.setdefault(row.get("typename", name), name)
    return models


def _machine(row: dict[str, Any], models: dict[str, str]) -> dict[str, Any]:
    """Return the values of a machine that we use, without those that QEMU does not report."""
    kept = {
        "name": row["name"],
        "alias": row.get("alias"),
        "is_default": row.get("is-default"),
        "default_cpu": models.get(row.get("default-cpu-type", "")),
        "ram_id": row.get("default-ram-id"),
        "max_cpus": row.get("cpu-max"),
    }
    found = {key: value for key, value in kept.items() if value}
    return {**found, "acpi": row["acpi"]} if "acpi" in row else found


def _start(binary: str, monitor_fd: int, output_fd: int) -> int:
    argv = [binary, "-M", "none", "-S", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-chardev", f"socket,id=qmp,fd={monitor_fd}", "-mon", "chardev=qmp,mode=control"]
    ownership = NOBODY if os.geteuid() == 0 else None
    bounds = Bounds(CPU_S, ADDRESS_BYTES, PROCESSES if ownership else 0)
    return spawn(argv, env=ENVIRONMENT, output_fd=output_fd, keep_fds=[monitor_fd], ownership=ownership, bounds=bounds)


def _kill(pid: int) -> None:
    """Kill the binary, its process group and its PID namespace, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _words(reader: int) -> str:
    """Return the last line of the binary's output as the end of an error message; empty without output."""
    try:
        text = os.read(reader, WORDS_BYTES).decode("utf-8", "replace")
    except BlockingIOError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    return f"; it wrote {lines[-1].strip()[-LINE_MAX:]!a}" if lines else ""


def _run_aside(talk: Any) -> list[Any]:
    """Run a coroutine to its end, in a new thread if this thread already runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(talk)
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.extend(asyncio.run(talk))
        except BaseException as err:
            failed.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found


async def _talk(connection: socket.socket, questions: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    try:
        return await asyncio.wait_for(_converse(connection, questions), DEADLINE_S)
    except asyncio.TimeoutError:
        raise OperationError(f"it did not answer all questions within {DEADLINE_S:g} s") from None


async def _answer(client: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Return the answer to a question, None if QEMU refuses it."""
    from qemu.qmp import ExecuteError

    try:
        return await asyncio.wait_for(client.execute(name, arguments or None), ANSWER_S)
    except ExecuteError:
        return None


async def _converse(connection: socket.socket, questions: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    client = _client()
    answers: list[Any] = []
    try:
        await asyncio.wait_for(client.connect(connection), ANSWER_S)
        for name, arguments in questions:
            answers.append(await _answer(client, name, arguments))
    except asyncio.TimeoutError:
        raise OperationError(f"it was silent for {ANSWER_S:g} s after {len(answers)} answers") from None
    except Exception as err:  # the library passes on any exception of its reader, even RecursionError
        raise OperationError(f"it does not speak QMP ({type(err).__name__})") from err
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.disconnect(), HANGUP_TIMEOUT_S)
    return answers


def _client() -> QMPClient:
    """Return a client with a limit on the length of a line that stores no events."""
    from qemu.qmp import QMPClient

    try:
        client = QMPClient("probe", readbuflen=LINE_BYTES)
    except TypeError:  # before 0.0.6 the library has a fixed limit of 10 MiB
        client = QMPClient("probe")
    client.events.event_filter = _keeps_nothing
    return client


def _keeps_nothing(_event: Message) -> bool:
    return False
