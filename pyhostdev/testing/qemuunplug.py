# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The effects of an unplug request: one function per hot-plug mechanism.

Source: hw/acpi/pcihp.c, hw/pci/pcie.c, hw/pci/shpc.c, hw/ppc/spapr_pci.c (QEMU 7.2), and measurements
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyhostdev.testing.qemuslots import (
    ACPI,
    BOOTING,
    COMPAT,
    DEAF,
    LINUX,
    NATIVE,
    PSERIES,
    REFUSES,
    SHPC,
    QMPRefusal,
    SimulatedBus,
    SimulatedDevice,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ACPI_S = 0.1  # from the request to the events
NATIVE_S = 6.2  # the attention indicator blinks for five seconds, then the guest turns the slot off
BOOTING_S = 3.0  # until the starting OS sees the request
NATIVE_EXPIRY_MS = 5000
PSERIES_S = 0.2


class Machine(Protocol):
    """The machine that a request changes."""

    guest: str
    clock_ms: float
    buses: dict[str, SimulatedBus]
    devices: dict[str, SimulatedDevice]

    @property
    def has_run(self) -> bool:
        """True once the guest has run."""

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedule an action of the guest."""

    def in_slot(self, where: tuple[str, int]) -> list[SimulatedDevice]:
        """Return the devices of one slot."""

    def is_live(self, where: tuple[str, int]) -> bool:
        """True if a slot has its function 0."""

    def remove(self, devices: Iterable[SimulatedDevice]) -> None:
        """Remove devices."""

    def emit(self, event: str, **data: str) -> None:
        """Send an event."""


def _refuse_second(machine: Machine, device: SimulatedDevice) -> None:
    """
    Refuse a request while an earlier one is pending; an expiry of 0 never passes.

    Source: qmp_device_del, qdev_unplug (softmmu/qdev-monitor.c)
    """
    if device.is_asked and (device.expires_ms == 0 or device.expires_ms > machine.clock_ms):
        raise QMPRefusal(f"Device {device.id} is already in the process of unplug")


def _acpi(machine: Machine, device: SimulatedDevice) -> None:
    """
    Ask through ACPI: the guest ejects the slot, with all of its functions.

    A request before the first run gets an expiry of 0, and the booting guest drops it.
    """
    _refuse_second(machine, device)
    device.is_asked = True
    device.expires_ms = int(machine.clock_ms)
    if machine.has_run and machine.guest not in (DEAF, REFUSES):
        where = device.place.where
        machine.after(ACPI_S, lambda: machine.remove(machine.in_slot(where)))


def _native(machine: Machine, device: SimulatedDevice) -> None:
    """Ask through the port: a slot that is off is emptied at once; a staged function is removed alone."""
    where = device.place.where
    if not machine.is_live(where):
        machine.remove([device])
        return
    if not machine.has_run or machine.guest == COMPAT or device.place.slot:
        machine.remove(machine.in_slot(where))
        return
    _refuse_second(machine, device)
    if machine.guest == BOOTING:
        machine.after(BOOTING_S, lambda: machine.remove(machine.in_slot(where)))
        raise _busy()
    if any(other.is_asked for other in machine.in_slot(where)):
        raise _busy()
    device.is_asked = True
    device.expires_ms = int(machine.clock_ms) + NATIVE_EXPIRY_MS
    if machine.guest == LINUX:
        machine.after(NATIVE_S, lambda: machine.remove(machine.in_slot(where)))


def _busy() -> QMPRefusal:
    return QMPRefusal("Hot-unplug failed: guest is busy (power indicator blinking)")


def _shpc(machine: Machine, device: SimulatedDevice) -> None:
    """Empty a slot that is off; Linux 6.1 does not turn a slot on that was filled later."""
    machine.remove(machine.in_slot(device.place.where))


def _pseries(machine: Machine, device: SimulatedDevice) -> None:
    """Ask for one connector; for function 0, QEMU adds the requests for the others."""
    others = machine.in_slot(device.place.where) if device.place.function == 0 else [device]
    if device.is_asked:
        raise QMPRefusal(f"PCI device unplug already in progress for device {device.id}")
    if not machine.has_run:
        machine.remove(others)
        return
    for other in others:
        other.is_asked = True
        _ask_connector(machine, other)


def _ask_connector(machine: Machine, device: SimulatedDevice) -> None:
    if machine.guest == REFUSES:
        machine.after(PSERIES_S, lambda: _refuse_connector(machine, device))
    elif machine.guest != DEAF:
        machine.after(PSERIES_S, lambda: machine.remove([device]))


def _refuse_connector(machine: Machine, device: SimulatedDevice) -> None:
    device.is_asked = False
    machine.emit("DEVICE_UNPLUG_GUEST_ERROR", device=device.id, path=device.path)


def _none(machine: Machine, device: SimulatedDevice) -> None:
    raise QMPRefusal(f"Bus '{device.place.bus}' does not support hotplugging")


HANDLERS: dict[str, Callable[[Machine, SimulatedDevice], None]] = {
    ACPI: _acpi,
    NATIVE: _native,
    SHPC: _shpc,
    PSERIES: _pseries,
    "none": _none,
}


def on_reset(machine: Machine) -> None:
    """
    Finish pending requests on a reset: with ACPI and on pseries, but not with a port.

    The port's button and indicator start again, so that a new request is possible.
    """
    asked = [device for device in machine.devices.values() if device.is_asked]
    for device in asked:
        hotplug = machine.buses[device.place.bus].hotplug
        if hotplug == ACPI:
            machine.remove(machine.in_slot(device.place.where))
        elif hotplug == PSERIES:
            machine.remove([device])
        device.is_asked = False
        device.expires_ms = 0
