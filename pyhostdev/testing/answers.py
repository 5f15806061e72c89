# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The ways in which a write to the simulated kernel can fail; every part of the kernel raises these.
"""

from __future__ import annotations

from pyhostdev.errors import ConfigUnsupportedError


class NotSimulated(ConfigUnsupportedError):  # noqa: N818 - a descriptive and public name
    """The simulated kernel does not know the reaction of the real one."""


class SimulatedKill(BaseException):
    """
    The writing process was killed here; not an Exception, because a killed process runs no handlers.

    In a test, handlers of BaseException and ``finally`` blocks of that process still run. The kernel refuses all of
    their writes and raises this error again.
    """


class Refusal(Exception):  # noqa: N818 - the kernel's errno, turned into SysfsError at the border
    """The kernel refuses a write with an errno."""

    def __init__(self, errnum: int) -> None:
        super().__init__(errnum)
        self.errnum = errnum


class Blocked(Exception):  # noqa: N818 - not an error: the write has not returned
    """The write waits inside the kernel; its remaining effect is on the kernel's list of pending writes."""
