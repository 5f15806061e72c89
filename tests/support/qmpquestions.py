# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is asked of a hostile QMP peer: by the probe of an emulator, by the monitor of a guest, and by hot-plug.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast
from unittest import mock

from qmppeer import peer

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities, probing
from pyhostdev.qemu.qemu_capabilities.probing import converse
from pyhostdev.qemu.qemu_hotplug.connection import Monitor
from pyhostdev.qemu.qemu_hotplug.qmpclient import connected
from pyhostdev.qemu.qemu_process.monitor import QEMUMonitor

MONITOR_S = 0.5
PATIENCE_S = 60.0


def probed(seed: int) -> str | None:
    """
    Ask a peer what it can do; return its fault when the answer or the error is not what a caller can use.

    Whatever else is raised goes through.
    """
    with peer(seed) as (connection, other):
        is_honest = other.fault in ("none", "fragments")  # it answers, on a busy machine late
        try:
            with mock.patch.object(probing, "DEADLINE_S", PATIENCE_S if is_honest else probing.DEADLINE_S):
                data = converse(connection)
        except OperationError as err:
            return None if str(err).isprintable() and not is_honest else other.fault
    capabilities = QEMUCapabilities(data)
    names = [*capabilities.devices, *capabilities.cpus, *capabilities.types, capabilities.arch]
    return None if all(name.isprintable() and name.isascii() for name in names) else other.fault


def watched(seed: int) -> str | None:
    """Run a guest's monitor on a peer for a while; return its fault when the error cannot be printed."""
    with peer(seed) as (connection, other):
        try:
            asyncio.run(_watch(connection))
        except OperationError as err:
            return None if len(str(err)) < 1000 and str(err).isprintable() else other.fault
    return None


def plugged(seed: int) -> str | None:
    """Plug and unplug with a peer in QEMU's place; return its fault when an error cannot be printed."""
    with peer(seed) as (connection, other):
        said = asyncio.run(_plug(connection))
    return None if all(len(text) < 1000 and text.isprintable() for text in said) else other.fault


async def _plug(connection: socket.socket) -> list[str]:
    """Return the sentences of all errors; anything but an OperationError goes through."""
    said: list[str] = []
    try:
        async with connected(cast(Any, connection)) as client:
            monitor = Monitor(client)
            for question in (
                lambda: monitor.object_ids(),
                lambda: monitor.present_ids(),
                lambda: monitor.has_run(),
                lambda: monitor.object_add({"qom-type": "iommufd", "id": "iommufd0"}),
                lambda: monitor.close_passed("hostdev0-node"),
                lambda: monitor.device_add({"driver": "vfio-pci", "id": "hostdev0"}),
                lambda: monitor.device_del("hostdev0"),
                lambda: client.events.get(),
            ) * 3:
                try:
                    await asyncio.wait_for(cast(Any, question()), MONITOR_S / 5)
                except OperationError as err:
                    said.append(str(err))
                except asyncio.TimeoutError:
                    pass
    except OperationError as err:
        said.append(str(err))
    return said


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
