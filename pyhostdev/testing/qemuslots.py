# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The parts of a simulated QEMU: buses, the devices on them, the guest that runs, and the refusals of its monitor.

Measured with QEMU 7.2.22, 10.0.13 and 11.1.2; see docs/hotplug.md for the rows.
"""

from __future__ import annotations

import re
from typing import Any

from pyhostdev.util.typed import NamedTuple

ACPI, NATIVE, SHPC, PSERIES, NONE = HOTPLUG = ("acpi", "native", "shpc", "pseries", "none")

LINUX = "linux"  # reacts to a request and releases the device
DEAF = "deaf"  # without an OS, or without a hot-plug driver: a request stays pending
COMPAT = "compat"  # a guest that leaves the slots of PCI Express ports off (pcie_ports=compat)
BOOTING = "booting"  # firmware has turned the slots on, and the OS has not started yet
REFUSES = "refuses"  # a pseries guest that answers with an error
GUESTS = (LINUX, DEAF, COMPAT, BOOTING, REFUSES)

FUNCTIONS = 8
SLOTS = 32

_ADDRESS = re.compile(r"(?:0x)?([0-9a-fA-F]{1,2})(?:\.(?:0x)?([0-9a-fA-F]))?")


class QMPRefusal(Exception):  # noqa: N818 - an answer of QEMU, not a failure of the simulation
    """An error answer of the monitor; ``error_class`` is the only part to branch on."""

    def __init__(self, description: str, error_class: str = "GenericError") -> None:
        super().__init__(description)
        self.description = description
        self.error_class = error_class

    def to_json(self) -> dict[str, str]:
        """Return the value of the answer's ``error``."""
        return {"class": self.error_class, "desc": self.description}


class SimulatedBus(NamedTuple):
    """One PCI bus: its id, its hot-plug mechanism, and whether it is below a port (one slot)."""

    name: str
    hotplug: str = ACPI
    is_port: bool = False


class Place(NamedTuple):
    """The bus, slot and function of a device."""

    bus: str
    slot: int
    function: int

    @property
    def where(self) -> tuple[str, int]:
        """The slot, as a key."""
        return self.bus, self.slot


class SimulatedDevice:
    """One device of the guest: id, driver, address, and the state of an unplug request."""

    def __init__(self, device_id: str, driver: str, place: Place, properties: dict[str, Any], *, cold: bool) -> None:
        self.id = device_id
        self.driver = driver
        self.place = place
        self.properties = properties
        self.is_cold = cold
        self.is_asked = False  # a request is pending
        self.expires_ms = 0  # on the virtual clock: a second request is refused until then; 0 with is_asked: always

    @property
    def host(self) -> str | None:
        """The host function of a VFIO device, None for an emulated device."""
        host = self.properties.get("host")
        return str(host) if self.driver == "vfio-pci" and host is not None else None

    @property
    def path(self) -> str:
        """The path in QEMU's object tree."""
        return f"/machine/peripheral/{self.id}"


def parse_place(bus: str, driver: str, address: Any) -> Place:
    """
    Return the address that ``bus`` and ``addr`` name.

    Raises:
        QMPRefusal: the address is malformed.
    """
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    slot, function = (int(found[1], 16), int(found[2] or "0", 16)) if found else (SLOTS, 0)
    if slot >= SLOTS or function >= FUNCTIONS:
        raise QMPRefusal(f"Property '{driver}.addr' doesn't take value '{address}'")
    return Place(bus, slot, function)
