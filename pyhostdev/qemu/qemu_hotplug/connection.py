# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The QMP connection to a running QEMU: commands and events.

A client of the library qemu.qmp implements it, as does the simulated connection of ``pyhostdev.testing``. QEMU's
errors are distinguished by their class; the text is for the user.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, OperationError
from pyhostdev.util.virxml import printable

ANSWER_TIMEOUT_S = 30.0
ADD_TIMEOUT_S = 600.0  # the first function of a container pins all of the guest's memory
WORDS_MAX = 400

NOT_FOUND = "DeviceNotFound"
PERIPHERAL = "/machine/peripheral"
OBJECTS = "/objects"


class Events(Protocol):
    """The unread events of a connection."""

    async def get(self) -> Mapping[str, Any]:
        """Wait for the next event and return it."""


class QMPConnection(Protocol):
    """
    A negotiated connection to a QEMU.

    Its events contain at least DEVICE_DELETED and DEVICE_UNPLUG_GUEST_ERROR, collected since before the first command.
    """

    @property
    def events(self) -> Events:
        """The events that only this user of the connection reads."""

    async def execute(self, cmd: str, arguments: dict[str, Any] | None = None) -> Any:
        """
        Run one command and return its answer.

        Raises:
            Exception: with an ``error_class`` if QEMU refuses, without one if the connection ended.
        """


@runtime_checkable
class FDConnection(Protocol):
    """The further abilities of a connection over a UNIX socket."""

    def send_fd(self, fd: int) -> None:
        """
        Send a copy of a descriptor, for the ``getfd`` that follows.

        Raises:
            Exception: the connection cannot, or has ended.
        """


class QEMURefusedError(OperationError):
    """QEMU refused a command; the message quotes QEMU's."""

    libvirt_code = VIR_ERR_INTERNAL_ERROR

    def __init__(self, command: str, err: Exception) -> None:
        super().__init__(f"QEMU refused '{command}': {words_of(err)}")
        self.command = command
        self.error_class = str(getattr(err, "error_class", ""))
        self.words = words_of(err)


class MonitorLost(OperationError):  # noqa: N818 - a condition, not an error name
    """The connection ended or does not answer; usually QEMU has ended."""

    libvirt_code = VIR_ERR_INTERNAL_ERROR


def words_of(err: BaseException) -> str:
    """Return the text of an error as one line of limited length, without control characters."""
    text = printable(" ".join(str(err)[: 4 * WORDS_MAX].split()))
    return text if len(text) <= WORDS_MAX else f"{text[:WORDS_MAX]}..."


class Monitor:
    """The commands of hot-plug on a connection."""

    def __init__(self, connection: QMPConnection) -> None:
        self.connection = connection

    async def _ask(self, command: str, timeout_s: float = ANSWER_TIMEOUT_S, **arguments: Any) -> Any:
        """
        Run one command.

        Raises:
            QEMURefusedError: the answer is an error.
            MonitorLost: QEMU does not answer.
        """
        try:
            return await asyncio.wait_for(self.connection.execute(command, arguments or None), timeout_s)
        except (asyncio.TimeoutError, TimeoutError) as err:
            raise MonitorLost(f"QEMU's monitor did not answer '{command}' within {timeout_s:g} s") from err
        except Exception as err:
            if hasattr(err, "error_class"):
                raise QEMURefusedError(command, err) from err
            why = words_of(err) or type(err).__name__
            raise MonitorLost(f"The connection to QEMU ended during '{command}': {why}") from err

    async def device_add(self, properties: Mapping[str, Any]) -> None:
        """Plug one device; each property must have the JSON type that QEMU expects."""
        await self._ask("device_add", ADD_TIMEOUT_S, **properties)

    async def object_add(self, properties: Mapping[str, Any]) -> None:
        """Add an object that is not a device."""
        await self._ask("object-add", **properties)

    @property
    def takes_descriptors(self) -> bool:
        """True if the connection can pass descriptors."""
        return isinstance(self.connection, FDConnection)

    async def pass_descriptor(self, name: str, fd: int) -> None:
        """
        Give QEMU a copy of a descriptor, which a later command uses up by its name.

        Raises:
            QEMURefusedError, MonitorLost: it does not take one.
        """
        assert isinstance(self.connection, FDConnection)
        try:
            self.connection.send_fd(fd)
        except Exception as err:
            raise MonitorLost(f"QEMU's monitor does not take a descriptor: {words_of(err)}") from err
        await self._ask("getfd", fdname=name)

    async def close_passed(self, name: str) -> None:
        """Let QEMU close a descriptor that no command has used up, if it has one of this name."""
        with contextlib.suppress(QEMURefusedError):
            await self._ask("closefd", fdname=name)

    async def object_ids(self) -> set[str]:
        """Return the ids of all objects that are not devices."""
        return await self._names_at(OBJECTS)

    async def device_del(self, device_id: str) -> None:
        """Ask the guest to release one device."""
        await self._ask("device_del", id=device_id)

    async def present_ids(self) -> set[str]:
        """
        Return the ids of all devices that have one.

        Raises:
            OperationError: the answer is malformed.
        """
        return await self._names_at(PERIPHERAL)

    async def _names_at(self, path: str) -> set[str]:
        answer = await self._ask("qom-list", path=path)
        if not isinstance(answer, list):
            raise MonitorLost("QEMU's list of devices is malformed")
        return {str(item["name"]) for item in answer if isinstance(item, dict) and "name" in item}

    async def has_run(self) -> bool:
        """Return True if the guest has run; before that it cannot handle an unplug request."""
        answer = await self._ask("query-status")
        return isinstance(answer, dict) and answer.get("status") not in ("prelaunch", "inmigrate", None)
