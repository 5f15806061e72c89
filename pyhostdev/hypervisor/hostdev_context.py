# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The common basis of every change of host devices: the host, its records, the writer, and the locks.

The parts of the manager (prepare, release, recover, nodedev, update) take a context; the manager composes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from pyhostdev.errors import ConfigError
from pyhostdev.hypervisor.hostdev_lock import locked
from pyhostdev.hypervisor.hostdev_restore import Restorer
from pyhostdev.util.journal import Journal
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.pciaddress import PCIDeviceAddress


class HostdevContext:
    """
    One host that can be changed, and the journal of its changes; it belongs to the process that created it.

    Args:
        journal: where records are kept; one in the host's ``state_dir`` by default.

    Raises:
        ConfigError: the host is read only.
    """

    def __init__(self, host: Host, journal: Journal | None = None) -> None:
        if host.writer is None:
            raise ConfigError(f"Host directory '{host.root.path}' is read only")
        self.host = host
        self.root = host.root
        self.journal = Journal(host.state()) if journal is None else journal
        self.writer = host.writer
        self.restorer = Restorer(host.root, self.journal, host.writer)
        self._pid = os.getpid()

    def locked(
        self, addresses: Iterable[PCIDeviceAddress], owner: str | None, wait_s: float = 0.0
    ) -> AbstractContextManager[Callable[[Iterable[PCIDeviceAddress]], None]]:
        """
        Hold the locks of a change of these devices; the block can take the locks of more devices.

        Args:
            wait_s: how long to wait, in total, for locks held by other processes.

        Raises:
            ConfigError: this process is a fork of the one that created the context.
            DeviceInUseError, SysfsError: a lock cannot be taken.
        """
        if os.getpid() != self._pid:
            raise ConfigError("A manager cannot be used after a fork: create one in the new process")
        return locked(self.journal.state, self.root, addresses, owner, wait_s)
