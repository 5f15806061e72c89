# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The report of recover about each record and each device.
"""

from __future__ import annotations

from pyhostdev.util.typed import NamedTuple

RESTORED, KEPT, EXPIRED, IN_DOUBT, FAILED, SET_ASIDE = "restored", "kept", "expired", "in-doubt", "failed", "set-aside"
UNRECORDED = "unrecorded"


class RecoveryResult(NamedTuple):
    """
    The outcome of one record.

    ``what`` is a device's address, or the name of a file that is not a record or of an unknown guest's directory.
    """

    what: str
    owner: str | None
    outcome: str
    message: str

    @property
    def is_done(self) -> bool:
        """False if the device is not restored and needs attention."""
        return self.outcome not in (IN_DOUBT, FAILED)
