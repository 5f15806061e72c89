# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The monitor of one QEMU: the commands that a guest in the foreground needs, and the meaning of QEMU's events.

The library qemu.qmp implements the protocol; the extra ``start`` installs it. A hostile guest may control its QEMU, so
the length of a line is limited, only events about the guest's lifecycle are stored, and any exception of the library
becomes an OperationError.

Mirrors: qemuMonitor (src/qemu/qemu_monitor.c)
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_process.lifecycle import ON_CRASH, ON_POWEROFF, ON_REBOOT
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import printable

if TYPE_CHECKING:
    from qemu.qmp import Message

LINE_BYTES = 1 << 20  # the greeting, an answer or an event has a few hundred bytes
EVENTS_MAX = 64  # unread events; a guest causes one or two at a time
WORDS_MAX = 300  # characters of QEMU's text in an error
HANGUP_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)

# Any other reason (host-qmp-quit, host-signal, ...) means that QEMU itself ends.
# Source: ShutdownCause (QEMU's qapi/run-state.json)
_SHUTDOWN_REASONS = {
    "guest-shutdown": ON_POWEROFF,
    "guest-reset": ON_REBOOT,
    "guest-panic": ON_CRASH,
}


class LifecycleEvent(NamedTuple):
    """A lifecycle event: the key of the domain's action for it, and whether QEMU has stopped the guest."""

    action: str
    stopped: bool


def lifecycle_event(event: str, data: dict[str, Any]) -> LifecycleEvent | None:
    """
    Return the lifecycle event that an event of QEMU stands for; None for any other event.

    A panic that QEMU turns into a shutdown is followed by a SHUTDOWN event; only that one counts.
    """
    if event == "SHUTDOWN":
        action = _SHUTDOWN_REASONS.get(str(data.get("reason")))
        return None if action is None else LifecycleEvent(action, stopped=True)
    if event == "RESET" and data.get("guest"):
        return LifecycleEvent(ON_REBOOT, stopped=False)
    if event == "GUEST_PANICKED" and data.get("action") == "pause":
        return LifecycleEvent(ON_CRASH, stopped=True)
    return None


class _ReceivedEvents(NamedTuple):
    """An event of QEMU about the guest's lifecycle; ``event`` is None if it needs no action."""

    name: str
    event: LifecycleEvent | None


class _LifecycleEvents(EventListener):
    """
    The unread events about the guest's lifecycle; the library's own listener would store all events.

    Several consecutive events of one kind count as one: two resets need one action.
    """

    def __init__(self) -> None:
        super().__init__(names=("SHUTDOWN", "RESET", "GUEST_PANICKED"))
        self._heard: deque[_ReceivedEvents] = deque()
        self._arrived = asyncio.Event()

    async def put(self, event: Message) -> None:
        """
        Store an event; called by the library.

        Raises:
            QMPError: there are too many unread events; the library then closes the connection.
        """
        if self.accept(event):
            self._keep(event)
        await asyncio.sleep(0)  # the buffer may hold many events: handle signals and deadlines in between

    def _keep(self, event: Message) -> None:
        data = event.get("data")
        name = cast(str, event["event"])
        heard = _ReceivedEvents(name, lifecycle_event(name, data if isinstance(data, dict) else {}))
        if self._heard and self._heard[-1] == heard:
            return
        if len(self._heard) >= EVENTS_MAX:
            raise QMPError("There are more unread events than a guest causes")
        self._heard.append(heard)
        self._arrived.set()

    async def next(self) -> _ReceivedEvents:
        """Wait for the next event, and remove it from the list."""
        while not self._heard:
            self._arrived.clear()
            await self._arrived.wait()
        return self._heard.popleft()


def _keeps_nothing(_event: Message) -> bool:
    """Return False for every event: a filter for the library's own listener, which cannot be removed."""
    return False


def _client(name: str | None) -> QMPClient:
    """Return a client with a limit on the length of a line; before 0.0.6 the library has a fixed limit of 10 MiB."""
    try:
        return QMPClient(name, readbuflen=LINE_BYTES)
    except TypeError:
        return QMPClient(name)


def _words(err: BaseException) -> str:
    """Return the text of an error as one line of limited length, without control characters."""
    text = printable(" ".join(str(err)[: 4 * WORDS_MAX].split()))
    return text if len(text) <= WORDS_MAX else f"{text[:WORDS_MAX]}..."


def _is_unknown_command(err: BaseException | None) -> bool:
    return isinstance(err, ExecuteError) and err.error_class == "CommandNotFound"


class QEMUMonitor:
    """
    A connected monitor after its greeting.

    Every method raises OperationError, with QEMU's own text, if QEMU refuses or the connection has ended.
    """

    def __init__(self, name: str | None) -> None:
        self._client = _client(name)
        self._client.events.event_filter = _keeps_nothing
        self._events = _LifecycleEvents()
        self._client.register_listener(self._events)

    @property
    def client(self) -> QMPClient:
        """The library's client, to which further listeners can be added."""
        return self._client

    async def connect(self, path: str) -> None:
        """Connect to a UNIX socket, wait for QEMU's greeting, and negotiate."""
        try:
            await self._client.connect(path)
        except Exception as err:  # invalid data after the greeting raises an AssertionError
            raise OperationError(f"Cannot talk to QEMU's monitor: {_words(err) or type(err).__name__}") from err

    async def close(self) -> None:
        """
        Close the connection, within a deadline.

        The library raises the exception with which its reader ended: the end of the stream, or an error caused by
        invalid data. It was already handled as the end of the connection, so it is only logged.
        """
        try:
            await asyncio.wait_for(self._client.disconnect(), HANGUP_TIMEOUT_S)
        except Exception as err:
            _log.debug("The monitor's connection ended with %s", type(err).__name__)

    async def execute(self, command: str, **arguments: object) -> object:
        """Run one command and return QEMU's answer."""
        try:
            return await self._client.execute(command, dict(arguments) or None)
        except ExecuteError as err:
            raise OperationError(f"QEMU refused '{command}': {_words(err)}") from err
        except (QMPError, OSError) as err:
            raise OperationError(f"QEMU went away during '{command}': {_words(err)}") from err

    async def next_lifecycle_event(self) -> LifecycleEvent:
        """Wait for the next event of the guest that needs an action of the domain, and return it."""
        while True:
            heard = await self._next_event()
            if heard.event is not None:
                return heard.event

    async def _next_event(self) -> _ReceivedEvents:
        event = asyncio.ensure_future(self._events.next())
        hangup = asyncio.ensure_future(self._client.runstate_changed())
        try:
            await asyncio.wait({event, hangup}, return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                return event.result()
            raise OperationError("QEMU closed its monitor")
        finally:
            event.cancel()
            hangup.cancel()

    async def stop_on_reboot(self) -> None:
        """
        Let QEMU stop the guest instead of resetting it, so that the guest runs no instruction after a reboot.

        A QEMU before 6.0 cannot do so; it reports the reset when the guest runs again.
        """
        try:
            await self.execute("set-action", reboot="shutdown")
        except OperationError as err:
            if not _is_unknown_command(err.__cause__):
                raise

    async def set_link_down(self, device: str) -> None:
        """
        Switch off the link of a guest's network card.

        Raises:
            OperationError: QEMU refuses.
        """
        await self.execute("set_link", name=device, up=False)

    async def cont(self) -> None:
        """Let the guest's processors run."""
        await self.execute("cont")

    async def stop(self) -> None:
        """Pause the guest's processors."""
        await self.execute("stop")

    async def restart(self) -> None:
        """Reset a guest that QEMU has stopped, and let it run."""
        await self.execute("system_reset")
        await self._reset_done()  # until then QEMU refuses to continue after a shutdown
        await self.cont()

    async def _reset_done(self) -> None:
        while True:
            heard = await self._next_event()
            if heard.name == "RESET":
                return

    async def quit(self) -> bool:
        """
        Send QEMU the quit command; return False if the connection is gone.

        A connection that closes before the answer counts as an answer.
        """
        try:
            await self._client.execute("quit")
        except ExecInterruptedError:
            return True
        except QMPError:
            return False
        return True
