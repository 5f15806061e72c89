# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fault injection: a test places a fault at the n-th write of a simulated kernel.

    kernel.inject(3, Fail(errno.EBUSY))
    kernel.inject(5, Hang())
    kernel.inject(6, Interfere(lambda foreign: foreign.write(...)))
"""

from __future__ import annotations

import time

from pyhostdev.testing.answers import NotSimulated, Refusal, SimulatedKill
from pyhostdev.util.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.testing.protocols import FaultyKernel
    from pyhostdev.util.pciaddress import PCIDeviceAddress

__all__ = ["Delay", "Fail", "Fault", "Hang", "Interfere", "Kill", "NotSimulated", "SimulatedKill", "Vanish"]


class Fault:
    """An event around one write; the base class does nothing."""

    __slots__ = ()

    def before(self, kernel: FaultyKernel) -> None:
        """Act before the kernel sees the write."""

    def after(self, kernel: FaultyKernel) -> None:
        """Act after the kernel has answered the write, or has blocked it."""


class Fail(Fault):
    """The write fails with an errno and changes nothing."""

    __slots__ = ("errnum",)

    def __init__(self, errnum: int) -> None:
        self.errnum = errnum

    def before(self, kernel: FaultyKernel) -> None:
        """Refuse the write."""
        raise Refusal(self.errnum)


class Hang(Fault):
    """
    The write does not return.

    Its first half takes effect (bind creates the ``driver`` link, unbind removes it). The second half happens in
    ``kernel.complete()``; if ``lands`` is False, it never happens, and complete() discards the write.
    """

    __slots__ = ("lands",)

    def __init__(self, *, lands: bool = True) -> None:
        self.lands = lands

    def before(self, kernel: FaultyKernel) -> None:
        """Let the write block in its middle."""
        kernel.block_next(lands=self.lands)


class Delay(Fault):
    """The write is delayed, for a test that kills a process in the middle."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before(self, kernel: FaultyKernel) -> None:
        """Sleep."""
        time.sleep(self.seconds)


class Kill(Fault):
    """The writing process is killed ``before`` the write, ``after`` it, or while it is ``blocked`` in it."""

    __slots__ = ("when",)

    def __init__(self, when: str) -> None:
        if when not in ("before", "after", "blocked"):
            raise ValueError(f"Unknown time '{when}': expected before, after or blocked")
        self.when = when

    def before(self, kernel: FaultyKernel) -> None:
        """End the process, or let the write block."""
        if self.when == "before":
            kernel.kill()
        elif self.when == "blocked":
            kernel.block_next(lands=True)

    def after(self, kernel: FaultyKernel) -> None:
        """End the process."""
        kernel.kill()


class Vanish(Fault):
    """
    A device disappears just before the write, as after a surprise removal.

    With ``opened`` it disappears between the open and the write: the error is then ENODEV instead of ENOENT.
    """

    __slots__ = ("address", "opened")

    def __init__(self, address: PCIDeviceAddress, *, opened: bool = False) -> None:
        self.address = address
        self.opened = opened

    def before(self, kernel: FaultyKernel) -> None:
        """Remove the device, and refuse a write whose file is open already."""
        kernel.vanish(self.address)
        if self.opened:
            raise Refusal(19)  # ENODEV, fs/kernfs/file.c: the node is no longer active


class Interfere(Fault):
    """Another process acts just before the write; ``action`` receives a kernel without faults to write with."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[Any], None]) -> None:
        self.action = action

    def before(self, kernel: FaultyKernel) -> None:
        """Let the other program act."""
        self.action(kernel.foreign())
