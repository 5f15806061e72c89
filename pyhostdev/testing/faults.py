# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What goes wrong on purpose: faults that a test puts at the n-th write of a simulated kernel.

    kernel.inject(3, Fail(errno.EBUSY))
    kernel.inject(5, Hang())
    kernel.inject(6, Interfere(lambda foreign: foreign.write(...)))
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pyhostdev.testing.answers import NotSimulated, Refusal, SimulatedKill

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.testing.protocols import FaultyKernel
    from pyhostdev.util.pciaddress import PCIDeviceAddress

__all__ = ["Delay", "Fail", "Fault", "Hang", "Interfere", "Kill", "NotSimulated", "SimulatedKill", "Vanish"]


class Fault:
    """Something that happens around one write; the base class does nothing."""

    __slots__ = ()

    def before(self, kernel: FaultyKernel) -> None:
        """Act before the kernel sees the write."""

    def after(self, kernel: FaultyKernel) -> None:
        """Act after the kernel has answered, or has not."""


class Fail(Fault):
    """The write is answered with an errno and changes nothing."""

    __slots__ = ("errnum",)

    def __init__(self, errnum: int) -> None:
        self.errnum = errnum

    def before(self, kernel: FaultyKernel) -> None:
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

    def before(self, kernel: FaultyKernel) -> None:
        kernel.block_next(lands=self.lands)


class Delay(Fault):
    """The write takes its time: for a test that kills a process in the middle."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before(self, kernel: FaultyKernel) -> None:
        time.sleep(self.seconds)


class Kill(Fault):
    """The writing process dies ``before`` the write, ``after`` it, or while it is ``blocked`` in it."""

    __slots__ = ("when",)

    def __init__(self, when: str) -> None:
        if when not in ("before", "after", "blocked"):
            raise ValueError(f"'{when}' is none of before, after, blocked")
        self.when = when

    def before(self, kernel: FaultyKernel) -> None:
        if self.when == "before":
            kernel.kill()
        elif self.when == "blocked":
            kernel.block_next(lands=True)

    def after(self, kernel: FaultyKernel) -> None:
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

    def before(self, kernel: FaultyKernel) -> None:
        kernel.vanish(self.address)
        if self.opened:
            raise Refusal(19)  # ENODEV, fs/kernfs/file.c: the node is no longer active


class Interfere(Fault):
    """Somebody else acts just before the write; gets a kernel without faults to write with."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[Any], None]) -> None:
        self.action = action

    def before(self, kernel: FaultyKernel) -> None:
        self.action(kernel.foreign())
