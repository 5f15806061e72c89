# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is asked of a hostile QMP peer: by the probe of an emulator, and by the monitor of a guest.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from qmppeer import peer

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
from pyhostdev.qemu.qemu_capabilities.probing import converse
from pyhostdev.qemu.qemu_process.monitor import QEMUMonitor

MONITOR_S = 0.5


def probed(seed: int) -> str | None:
    """
    Ask a peer what it can do; return its fault when the answer or the error is not what a caller can use.

    Whatever else is raised goes through.
    """
    with peer(seed) as (connection, other):
        try:
            data = converse(connection)
        except OperationError as err:
            return None if str(err).isprintable() and other.fault not in ("none", "fragments") else other.fault
    capabilities = QEMUCapabilities(data)
    names = [*capabilities.devices, *capabilities.cpus, *capabilities.types, capabilities.arch]
    return None if all(name.isprintable() and name.isascii() for name in names) else other.fault


def watched(seed: int) -> str | None:
    """Run a guest's monitor on a peer for a while; return its fault when the error cannot be printed."""
    with peer(seed) as (connection, other):
        try:
            asyncio.run(_watch(connection))
        except OperationError as err:
            return None if len(str(err)) < 1000 else other.fault
    return None


async def _watch(connection: socket.socket) -> None:
    monitor = QEMUMonitor("hostile")
    try:
        await asyncio.wait_for(_converse(monitor, connection), MONITOR_S)
    except asyncio.TimeoutError:
        pass  # the guest's own deadlines are the process's business
    finally:
        await monitor.close()


async def _converse(monitor: QEMUMonitor, connection: socket.socket) -> None:
    await monitor.connect(cast(Any, connection))
    for command in ("query-version", "query-target", "query-machines") * 7:
        await monitor.execute(command)
    await monitor.stop_on_reboot()
    await monitor.cont()
    await monitor.quit()
