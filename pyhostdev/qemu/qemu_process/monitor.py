# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The monitor of one QEMU: the few commands a guest in the foreground needs, and what its events mean.

The protocol itself is the library qemu.qmp's; it comes with ``pip install 'pyhostdev[start]'``. What is at the other
end may have been taken over by its guest: lines are bounded, events are kept only when they are about the guest's life,
and whatever the library makes of garbage becomes an OperationError.

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

LINE_BYTES = 1 << 20  # the greeting, answers without content, events: a few hundred bytes each
EVENTS_MAX = 64  # that wait to be looked at; one after the other, a guest makes one or two
WORDS_MAX = 300  # of QEMU's own in an error
HANGUP_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)

# A reason that is not here (host-qmp-quit, host-signal, ...) is the end of QEMU itself.
# Source: ShutdownCause (QEMU's qapi/run-state.json)
_SHUTDOWN_REASONS = {
    "guest-shutdown": ON_POWEROFF,
    "guest-reset": ON_REBOOT,
    "guest-panic": ON_CRASH,
}


class LifecycleEvent(NamedTuple):
    """What a guest did: the domain's action for it, and whether QEMU has stopped the guest."""

    action: str
    stopped: bool


def lifecycle_event(event: str, data: dict[str, Any]) -> LifecycleEvent | None:
    """
    Tell which of a domain's lifecycle actions an event of QEMU asks for, if any.

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
    """An event of QEMU's that is about the guest's life."""

    name: str
    event: LifecycleEvent | None


class _LifecycleEvents(EventListener):
    """
    The unread events about the guest's life; the library's own listener keeps all of them.

    Several consecutive events of one kind count as one: a guest that was reset twice was reset.
    """

    def __init__(self) -> None:
        super().__init__(names=("SHUTDOWN", "RESET", "GUEST_PANICKED"))
        self._heard: deque[_ReceivedEvents] = deque()
        self._arrived = asyncio.Event()

    async def put(self, event: Message) -> None:
        """
        Take an event from the library.

        Raises:
            QMPError: too many wait already; the library hangs up then.
        """
        if self.accept(event):
            self._keep(event)
        await asyncio.sleep(0)  # many may lie in the buffer: signals and deadlines have their turn in between

    def _keep(self, event: Message) -> None:
        data = event.get("data")
        name = cast(str, event["event"])
        heard = _ReceivedEvents(name, lifecycle_event(name, data if isinstance(data, dict) else {}))
        if self._heard and self._heard[-1] == heard:
            return
        if len(self._heard) >= EVENTS_MAX:
            raise QMPError("There are more events than a guest makes")
        self._heard.append(heard)
        self._arrived.set()

    async def next(self) -> _ReceivedEvents:
        """Wait for the next one."""
        while not self._heard:
            self._arrived.clear()
            await self._arrived.wait()
        return self._heard.popleft()


def _keeps_nothing(_event: Message) -> bool:
    """Tell the library's own listener, which cannot be removed, that it wants no event."""
    return False


def _client(name: str | None) -> QMPClient:
    """Return a client with a bound for lines of our own; before 0.0.6 the library has its own, of 10 MiB."""
    try:
        return QMPClient(name, readbuflen=LINE_BYTES)
    except TypeError:
        return QMPClient(name)


def _words(err: BaseException) -> str:
    """Return what a library or QEMU says: one line, not too long, without control characters."""
    text = printable(" ".join(str(err)[: 4 * WORDS_MAX].split()))
    return text if len(text) <= WORDS_MAX else f"{text[:WORDS_MAX]}..."


def _is_unknown_command(err: BaseException | None) -> bool:
    return isinstance(err, ExecuteError) and err.error_class == "CommandNotFound"


class QEMUMonitor:
    """
    A connected monitor after its greeting.

    Every method raises OperationError with QEMU's own words when it refuses or has gone away.
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
        """Wait for QEMU's greeting on a unix socket and negotiate."""
        try:
            await self._client.connect(path)
        except Exception as err:  # garbage right behind the greeting ends in the library's own assertion
            raise OperationError(f"Cannot talk to QEMU's monitor: {_words(err) or type(err).__name__}") from err

    async def close(self) -> None:
        """
        Hang up, within a deadline.

        The library raises here what its reader ended with: the end of the stream, or whatever the peer's garbage led
        to. What it meant for the guest has been told already, so it is logged only.
        """
        try:
            await asyncio.wait_for(self._client.disconnect(), HANGUP_TIMEOUT_S)
        except Exception as err:
            _log.debug("The monitor's connection ended with %s", type(err).__name__)

    async def execute(self, command: str, **arguments: object) -> object:
        """Run one command and return what QEMU answered."""
        try:
            return await self._client.execute(command, dict(arguments) or None)
        except ExecuteError as err:
            raise OperationError(f"QEMU refused '{command}': {_words(err)}") from err
        except (QMPError, OSError) as err:
            raise OperationError(f"QEMU went away during '{command}': {_words(err)}") from err

    async def next_lifecycle_event(self) -> LifecycleEvent:
        """Wait until the guest's doing asks for one of the domain's lifecycle actions."""
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
        Let QEMU stop instead of resetting the guest, so that no instruction runs after its reboot.

        A QEMU that cannot (before 6.0) still tells of the reset, when the guest runs again.
        """
        try:
            await self.execute("set-action", reboot="shutdown")
        except OperationError as err:
            if not _is_unknown_command(err.__cause__):
                raise

    async def set_link_down(self, device: str) -> None:
        """
        Pull the cable of a guest's network card.

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
