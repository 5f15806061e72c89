# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What goes wrong on purpose: faults that a test puts at the n-th write of a simulated kernel.

    kernel.inject(3, Fail(errno.EBUSY))
    kernel.inject(5, Hang())
    kernel.inject(6, Interfere(lambda foreign: foreign.write(...)))
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.testing.kernel import SimulatedKernel
    from pyhostdev.util.pciaddress import PCIDeviceAddress


class NotSimulated(ConfigUnsupportedError):  # noqa: N818 - says what it is, and is public
    """The simulated kernel does not know how the real one would answer."""


class SimulatedKill(BaseException):
    """
    The writing process was killed here; no Exception, because no handler of a killed process runs.

    Handlers of BaseException and ``finally`` blocks of that process still run in a test; the kernel lets none
    of their writes through and raises this again.
    """


class Refusal(Exception):  # noqa: N818 - an answer of the kernel, turned into SysfsError at the border
    """The kernel answers a write with an errno."""

    def __init__(self, errnum: int) -> None:
        super().__init__(errnum)
        self.errnum = errnum


class Blocked(Exception):  # noqa: N818 - an answer too: the write has not come back
    """The write waits inside the kernel; what it would do is on the kernel's list of pending writes."""


class Fault:
    """Something that happens around one write; the base class does nothing."""

    __slots__ = ()

    def before(self, kernel: SimulatedKernel) -> None:
        """Act before the kernel sees the write."""

    def after(self, kernel: SimulatedKernel) -> None:
        """Act after the kernel has answered, or has not."""


class Fail(Fault):
    """The write is answered with an errno and changes nothing."""

    __slots__ = ("errnum",)

    def __init__(self, errnum: int) -> None:
        self.errnum = errnum

    def before(self, kernel: SimulatedKernel) -> None:
        """Refuse the write."""
        raise Refusal(self.errnum)


class Hang(Fault):
    """
    The write does not come back.

    Its first half has happened (bind has made the ``driver`` link, unbind has removed it). The second half happens
    in ``kernel.complete()``, or, with ``lands`` False, never: the write is then forgotten by complete().
    """

    __slots__ = ("lands",)

    def __init__(self, *, lands: bool = True) -> None:
        self.lands = lands

    def before(self, kernel: SimulatedKernel) -> None:
        """Let the write block in its middle."""
        kernel.block_next(lands=self.lands)


class Delay(Fault):
    """The write takes its time: for a test that kills a process in the middle."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before(self, kernel: SimulatedKernel) -> None:
        """Sleep."""
        time.sleep(self.seconds)


class Kill(Fault):
    """The writing process dies ``before`` the write, ``after`` it, or while it is ``blocked`` in it."""

    __slots__ = ("when",)

    def __init__(self, when: str) -> None:
        if when not in ("before", "after", "blocked"):
            raise ValueError(f"'{when}' is none of before, after, blocked")
        self.when = when

    def before(self, kernel: SimulatedKernel) -> None:
        """End the process, or let the write block."""
        if self.when == "before":
            kernel.kill()
        elif self.when == "blocked":
            kernel.block_next(lands=True)

    def after(self, kernel: SimulatedKernel) -> None:
        """End the process."""
        kernel.kill()


class Vanish(Fault):
    """
    A device goes away just before the write, as by surprise removal.

    With ``opened`` it goes between the open and the write: the answer is ENODEV and no longer ENOENT.
    """

    __slots__ = ("address", "opened")

    def __init__(self, address: PCIDeviceAddress, *, opened: bool = False) -> None:
        self.address = address
        self.opened = opened

    def before(self, kernel: SimulatedKernel) -> None:
        """Remove the device, and refuse a write whose file is open already."""
        kernel.vanish(self.address)
        if self.opened:
            raise Refusal(19)  # ENODEV, fs/kernfs/file.c: the node is no longer active


class Interfere(Fault):
    """Somebody else acts just before the write; gets a kernel without faults to write with."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[SimulatedKernel], None]) -> None:
        self.action = action

    def before(self, kernel: SimulatedKernel) -> None:
        """Let the other program act."""
        self.action(kernel.foreign())
