# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Ask a guest to release devices, and wait until QEMU has removed them.

Silence is neither success nor failure. A device is removed when its DEVICE_DELETED has come, or when it is no longer
in QEMU's list. An event without a device id concerns a part of a device, and is ignored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_hotplug.connection import NOT_FOUND, Monitor, QEMURefusedError

_LOOK_S = 0.25  # between two checks for a request to stop
_LOOKS_PER_LIST = 8
_AGAIN = ("already in", "guest is busy")  # QEMU's words for: a request is already pending
Waiting = Callable[[float], None]


class GuestRefusedError(OperationError):
    """The guest refused to release a device."""


class UnplugRequests:
    """
    Requests removals over one connection and follows them; enter it as a context manager before the first request.

    Args:
        check: called while waiting; it may raise an error to end the wait.
        waiting: called with the seconds left, to show progress.
    """

    def __init__(self, monitor: Monitor, check: Callable[[], None], waiting: Waiting = lambda left: None) -> None:
        self._monitor = monitor
        self._check = check
        self._waiting = waiting
        self._gone: set[str] = set()
        self._next: asyncio.Future[Mapping[str, Any]] | None = None

    async def __aenter__(self) -> UnplugRequests:
        self._next = asyncio.ensure_future(self._monitor.connection.events.get())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    async def ask(self, device_id: str) -> None:
        """
        Request the removal of one device; a pending request is not an error.

        Raises:
            QEMURefusedError: QEMU refused the request.
            MonitorLost: the connection ended.
        """
        try:
            await self._monitor.device_del(device_id)
        except QEMURefusedError as err:
            if err.error_class == NOT_FOUND:
                self._gone.add(device_id)
            elif not any(words in err.words for words in _AGAIN) and device_id in await self._monitor.present_ids():
                raise

    async def wait(self, wanted: Collection[str], timeout_s: float) -> bool:
        """
        Wait until all of these devices are removed; return False on a timeout.

        Raises:
            GuestRefusedError: the guest refused to release one of them.
            MonitorLost: the connection ended.
        """
        deadline = time.monotonic() + timeout_s
        looks = 0
        while not await self._are_deleted(wanted):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._check()
            self._waiting(left)
            await self._read(min(left, _LOOK_S), wanted)
            looks += 1
            if looks % _LOOKS_PER_LIST == 0:  # an event may be lost, and QEMU may have ended
                self._gone |= set(wanted) - await self._monitor.present_ids()
        self._gone |= set(wanted) - await self._monitor.present_ids()
        return await self._are_deleted(wanted)

    async def _are_deleted(self, wanted: Collection[str]) -> bool:
        """Return True if all of these devices are removed; QEMU's list overrides a stale event."""
        if self._gone.issuperset(wanted):
            self._gone -= await self._monitor.present_ids()
        return self._gone.issuperset(wanted)

    async def _read(self, timeout_s: float, wanted: Collection[str]) -> None:
        """Handle one event, if it arrives in time."""
        assert self._next is not None
        await asyncio.wait({self._next}, timeout=timeout_s)
        if not self._next.done():
            return
        event = self._next.result()
        self._next = asyncio.ensure_future(self._monitor.connection.events.get())
        data = event.get("data")
        device = data.get("device") if isinstance(data, Mapping) else None
        if event.get("event") == "DEVICE_DELETED" and isinstance(device, str):
            self._gone.add(device)
        elif event.get("event") == "DEVICE_UNPLUG_GUEST_ERROR" and device in wanted:
            raise GuestRefusedError(f"The guest refused to release device '{device}'")

    async def clear(self, wanted: Collection[str], timeout_s: float) -> bool:
        """
        Take back functions that the guest cannot see yet; return False on a timeout.

        With ACPI, one request empties the slot; a PCI Express port and pseries need one request per function.
        """
        deadline = time.monotonic() + timeout_s
        left = sorted(set(wanted) & await self._monitor.present_ids())
        while left:
            await self.ask(left[0])
            if not await self.wait([left[0]], deadline - time.monotonic()):
                return False
            left = sorted(set(wanted) & await self._monitor.present_ids())
        return True
