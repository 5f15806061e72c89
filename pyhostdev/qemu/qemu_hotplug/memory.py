# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The limit of locked memory of a running QEMU: raised before the first device, restored after the last.

Mirrors: qemuDomainAdjustMaxMemLock (src/qemu/qemu_domain.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigUnsupportedError, OperationError
from pyhostdev.qemu.qemu_domain import memlock_limit
from pyhostdev.util.memlock import LimitWriter, MemoryLimit, read_memlock

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.hostdev_context import HostdevContext
    from pyhostdev.qemu.qemu_hotplug.livestate import LiveState


class GuestMemory:
    """
    The limit of locked memory of one QEMU.

    Args:
        pid: of QEMU; None leaves the limit to the caller.
    """

    def __init__(self, context: HostdevContext, pid: int | None, state: LiveState) -> None:
        self._context = context
        self._pid = pid
        self._state = state

    def raise_for(self, dom: DomainDef) -> None:
        """
        Raise the limit to the need of a definition; a sufficient limit is not changed.

        Raises:
            ConfigUnsupportedError: the host's writer cannot change limits.
            OperationError: QEMU has ended, or the kernel refuses.
        """
        wanted = memlock_limit(dom)
        if self._pid is None or wanted is None:
            return
        now = read_memlock(self._context.root, self._pid)
        if now is None:
            raise OperationError(f"QEMU (process {self._pid}) has ended")
        if now.allows(wanted):
            return
        if self._state.stored_memlock is None:
            self._state.store_memlock(now)
        self._write(MemoryLimit(wanted, wanted))

    def lower_to(self, dom: DomainDef) -> None:
        """
        Restore the original limit if a definition no longer needs a higher one; locked memory stays locked.

        Raises:
            OperationError: the kernel refuses.
        """
        first = self._state.stored_memlock
        if self._pid is None or first is None or memlock_limit(dom) is not None:
            return
        if read_memlock(self._context.root, self._pid) is not None:
            self._write(first)
        self._state.store_memlock(None)

    def _write(self, limit: MemoryLimit) -> None:
        writer = self._context.writer
        if not isinstance(writer, LimitWriter):
            raise ConfigUnsupportedError("The writer of this host cannot change the limits of a process")
        assert self._pid is not None
        writer.set_memlock(self._pid, limit)
