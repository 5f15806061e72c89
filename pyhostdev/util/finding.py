# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One fact that a plan, a scan or a check reports: a stable reason, a severity, an address and a sentence.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pyhostdev.util.pciaddress import PCIDeviceAddress

Severity = Literal["error", "consent", "note"]

ERROR: Literal["error"] = "error"
CONSENT: Literal["consent"] = "consent"
NOTE: Literal["note"] = "note"


class Finding(NamedTuple):
    """
    Something that stands in the way (error), needs the user's agreement (consent), or is worth knowing (note).

    ``address`` is the function that the finding is about, or the plain name of a group member that is not a PCI
    function; None where it is about the domain or the host. ``line`` is the line in the domain's XML, where known.
    """

    reason: str
    severity: Severity
    address: PCIDeviceAddress | str | None
    message: str
    line: int | None = None

    @property
    def sentence(self) -> str:
        """The message behind its line, where that is known, and its reason."""
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.reason}: {self.message}"

    def to_json(self) -> dict[str, str | int | None]:
        """Return the finding as JSON; ``line`` is left out where it is not known."""
        where = None if self.address is None else str(self.address)
        found: dict[str, str | int | None] = {
            "reason": self.reason,
            "severity": self.severity,
            "address": where,
            "message": self.message,
        }
        return found if self.line is None else {**found, "line": self.line}
