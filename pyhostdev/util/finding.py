# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One fact reported by a plan, a scan or a check: a stable reason, a severity, an address and a sentence.
"""

from __future__ import annotations

from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal

    from pyhostdev.util.literals import Severity

ERROR: Literal["error"] = "error"
CONSENT: Literal["consent"] = "consent"
NOTE: Literal["note"] = "note"


class Finding(NamedTuple):
    """
    An obstacle (error), a question that needs the user's consent (consent), or useful information (note).

    ``address`` is the function concerned, or the plain name of a group member that is not a PCI function; None if the
    finding concerns the domain or the host. ``line`` is the line in the domain's XML, if known.
    """

    reason: str
    severity: Severity
    address: PCIDeviceAddress | str | None
    message: str
    line: int | None = None

    @property
    def sentence(self) -> str:
        """The message, preceded by its line, if known, and its reason."""
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.reason}: {self.message}"

    def to_json(self) -> dict[str, str | int | None]:
        """Return the finding as JSON; ``line`` is left out if unknown."""
        where = None if self.address is None else str(self.address)
        found: dict[str, str | int | None] = {
            "reason": self.reason,
            "severity": self.severity,
            "address": where,
            "message": self.message,
        }
        return found if self.line is None else {**found, "line": self.line}
