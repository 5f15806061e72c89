# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The events of a simulated kernel, for a PCIMonitor of its host.

    monitor = PCIMonitor(host.root, SimulatedEvents(host.kernel))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.util.events import PCIEvent, events_lost
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from pyhostdev.testing.kernel import SimulatedKernel


class SimulatedEvents:
    """
    The events of one SimulatedKernel, as an EventSource; writes of other processes to the same tree cause no events.

    Args:
        limit: the size of the queue; if it overflows, the source only reports that events were lost.
    """

    def __init__(self, kernel: SimulatedKernel, *, limit: int = 10000) -> None:
        self.kernel = kernel
        self.limit = limit
        self._readable, self._ready = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.restart()

    def restart(self) -> None:
        """Forget the events that were not received yet."""
        self._seen = len(self.kernel.events)

    def fileno(self) -> int:
        """Return a descriptor to wait for; it never becomes readable."""
        return self._readable

    def receive(self, timeout_s: float) -> PCIEvent | None:
        """
        Return the next event, None when there is none; the timeout has no effect.

        Raises:
            OSError: events were lost (ENOBUFS).
        """
        del timeout_s  # nothing can happen during a wait: this process is the only writer
        waiting = len(self.kernel.events) - self._seen
        if waiting > self.limit:
            raise events_lost()
        if not waiting:
            return None
        action, address = self.kernel.events[self._seen]
        self._seen += 1
        return PCIEvent(action, PCIDeviceAddress.parse(address))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._readable)
        os.close(self._ready)
