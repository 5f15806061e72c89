# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How other processes reach a running guest, and what the process that started it does meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from qemu.qmp import QMPClient


class Control(Protocol):
    """How other processes reach a running guest, and what its owner does meanwhile."""

    def arguments(self, control_fd: int) -> list[str]:
        """Return what QEMU's command line needs for the second monitor."""

    def owning(self, runtime_path: str) -> contextlib.AbstractContextManager[None]:
        """Show others that the owner of the guest lives, while the block runs."""

    def spawned(self, pid: int) -> None:
        """Write down what others need to know, before the guest's processors run."""

    async def follow(self, client: QMPClient) -> None:
        """React to devices that leave, until ``stop`` is called."""

    def stop(self) -> None:
        """Let ``follow`` return as soon as it can."""


@contextlib.asynccontextmanager
async def beside(control: Control | None, client: QMPClient) -> AsyncIterator[None]:
    """Let the owner react to devices that leave while the block runs; a device that it gives back is waited for."""
    if control is None:
        yield
        return
    following = asyncio.ensure_future(control.follow(client))
    try:
        yield
    finally:
        control.stop()
        await following
