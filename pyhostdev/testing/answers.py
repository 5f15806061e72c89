# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How a write to the simulated kernel can end other than well; every part of the kernel raises these.
"""

from __future__ import annotations

from pyhostdev.errors import ConfigUnsupportedError


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
