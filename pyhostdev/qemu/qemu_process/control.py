# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The interface between ``run_guest`` and the code that lets other processes control the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from qemu.qmp import QMPClient


class Control(Protocol):
    """Lets other processes control a running guest, and reacts to its events."""

    def arguments(self, control_fd: int) -> list[str]:
        """Return QEMU's arguments for the second monitor."""

    def owning(self, runtime_path: str) -> contextlib.AbstractContextManager[None]:
        """Hold the owner lock during the block."""

    def spawned(self, pid: int) -> None:
        """Store the facts that other processes need, before the guest runs."""

    async def follow(self, client: QMPClient) -> None:
        """React to devices that leave, until ``stop`` is called."""

    def stop(self) -> None:
        """Make ``follow`` return as soon as possible."""


@contextlib.asynccontextmanager
async def beside(control: Control | None, client: QMPClient) -> AsyncIterator[None]:
    """Run ``follow`` during the block; at the end, wait until it has reattached a device."""
    if control is None:
        yield
        return
    following = asyncio.ensure_future(control.follow(client))
    try:
        yield
    finally:
        control.stop()
        await following
