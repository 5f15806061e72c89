# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The monitor of one QEMU: the few commands a guest in the foreground needs, and what its events mean.

The protocol itself is the library qemu.qmp's; it comes with ``pip install 'pyhostdev[tools]'``.

Mirrors: qemuMonitor (src/qemu/qemu_monitor.c)
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from pyhostdev.errors import OperationError

if TYPE_CHECKING:
    from qemu.qmp import Message

ON_POWEROFF = "on_poweroff"
ON_REBOOT = "on_reboot"
ON_CRASH = "on_crash"

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
        action = _SHUTDOWN_REASONS.get(data.get("reason", ""))
        return None if action is None else LifecycleEvent(action, stopped=True)
    if event == "RESET" and data.get("guest"):
        return LifecycleEvent(ON_REBOOT, stopped=False)
    if event == "GUEST_PANICKED" and data.get("action") == "pause":
        return LifecycleEvent(ON_CRASH, stopped=True)
    return None


def _data(message: Message) -> dict[str, Any]:
    return cast("dict[str, Any]", message.get("data", {}))


def _is_unknown_command(err: BaseException | None) -> bool:
    return isinstance(err, ExecuteError) and err.error_class == "CommandNotFound"


class QEMUMonitor:
    """
    A connected monitor after its greeting.

    Every method raises OperationError with QEMU's own words when it refuses or has gone away.
    """

    def __init__(self, name: str | None) -> None:
        self._client = QMPClient(name)
        self._events = EventListener(names=("SHUTDOWN", "RESET", "GUEST_PANICKED"))
        self._client.register_listener(self._events)

    async def connect(self, path: str) -> None:
        """Wait for QEMU's greeting on a unix socket and negotiate."""
        try:
            await self._client.connect(path)
        except QMPError as err:
            raise OperationError(f"Cannot talk to QEMU's monitor: {err}") from err

    async def close(self) -> None:
        """Hang up; QEMU having done so first is no error."""
        try:
            await self._client.disconnect()
        except (QMPError, EOFError, OSError):
            return

    async def execute(self, command: str, **arguments: object) -> object:
        """Run one command and return what QEMU answered."""
        try:
            return await self._client.execute(command, dict(arguments) or None)
        except ExecuteError as err:
            raise OperationError(f"QEMU refused '{command}': {err}") from err
        except (QMPError, OSError) as err:
            raise OperationError(f"QEMU went away during '{command}': {err}") from err

    async def next_lifecycle_event(self) -> LifecycleEvent:
        """Wait until the guest's doing asks for one of the domain's lifecycle actions."""
        while True:
            message = await self._next_event()
            wanted = lifecycle_event(cast(str, message["event"]), _data(message))
            if wanted is not None:
                return wanted

    async def _next_event(self) -> Message:
        event = asyncio.ensure_future(self._events.get())
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
            message = await self._next_event()
            if message["event"] == "RESET":
                return

    async def quit(self) -> bool:
        """
        Tell QEMU to end now; False when there is nobody to tell.

        A connection that closes before the answer is an answer too.
        """
        try:
            await self._client.execute("quit")
        except ExecInterruptedError:
            return True
        except QMPError:
            return False
        return True
