# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The parts of a simulated QEMU: buses, the devices on them, the guest that runs, and the refusals of its monitor.

Measured with QEMU 7.2.22, 10.0.13 and 11.1.2; see docs/hotplug.md for the rows.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

ACPI, NATIVE, SHPC, PSERIES, NONE = HOTPLUG = ("acpi", "native", "shpc", "pseries", "none")

LINUX = "linux"  # reacts to a request, and lets go
DEAF = "deaf"  # an OS without a driver for hot-plug, or none: a request stays
COMPAT = "compat"  # a guest that leaves the slots of PCI Express ports off, such as pcie_ports=compat
BOOTING = "booting"  # firmware has turned the slots on, and the OS is about to take over
REFUSES = "refuses"  # a pseries guest that answers with an error
GUESTS = (LINUX, DEAF, COMPAT, BOOTING, REFUSES)

FUNCTIONS = 8
SLOTS = 32

_ADDRESS = re.compile(r"(?:0x)?([0-9a-fA-F]{1,2})(?:\.(?:0x)?([0-9a-fA-F]))?")


class QMPRefusal(Exception):  # noqa: N818 - what QEMU says, not a failure of the simulation
    """An error answer of the monitor; ``error_class`` is the only part to branch on."""

    def __init__(self, description: str, error_class: str = "GenericError") -> None:
        super().__init__(description)
        self.description = description
        self.error_class = error_class

    def to_json(self) -> dict[str, str]:
        """Return the value of the answer's ``error``."""
        return {"class": self.error_class, "desc": self.description}


class SimulatedBus(NamedTuple):
    """One PCI bus: its name in QEMU, how its slots are plugged, and whether it is below a port (one slot)."""

    name: str
    hotplug: str = ACPI
    is_port: bool = False


class Place(NamedTuple):
    """Where a device is plugged in."""

    bus: str
    slot: int
    function: int

    @property
    def where(self) -> tuple[str, int]:
        """The slot, as a key."""
        return self.bus, self.slot


class SimulatedDevice:
    """One device of the guest: its name, driver and place, and the state of a request to unplug it."""

    def __init__(self, device_id: str, driver: str, place: Place, properties: dict[str, Any], *, cold: bool) -> None:
        self.id = device_id
        self.driver = driver
        self.place = place
        self.properties = properties
        self.is_cold = cold
        self.is_asked = False  # a request is open
        self.expires_ms = 0  # on the virtual clock: until then, a second request is refused; 0 with is_asked: for ever

    @property
    def host(self) -> str | None:
        """The function of the host that VFIO gives to the guest, None for an emulated device."""
        host = self.properties.get("host")
        return str(host) if self.driver == "vfio-pci" and host is not None else None

    @property
    def path(self) -> str:
        """The place in QEMU's object tree."""
        return f"/machine/peripheral/{self.id}"


def parse_place(bus: str, driver: str, address: Any) -> Place:
    """
    Return the place that ``bus`` and ``addr`` name.

    Raises:
        QMPRefusal: the address is not one.
    """
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    slot, function = (int(found[1], 16), int(found[2] or "0", 16)) if found else (SLOTS, 0)
    if slot >= SLOTS or function >= FUNCTIONS:
        raise QMPRefusal(f"Property '{driver}.addr' doesn't take value '{address}'")
    return Place(bus, slot, function)
