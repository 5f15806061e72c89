# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The machine of a simulated QEMU: its devices, and the effects of the monitor's commands on them.

Its virtual clock stops while the guest is paused; ``advance`` lets time pass. Events are collected in ``outbox``. The
module ``qemuunplug`` decides the effect of an unplug request.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyhostdev.testing.qemudescriptors import NamedDescriptors
from pyhostdev.testing.qemudrivers import check_driver, check_properties, is_true
from pyhostdev.testing.qemuslots import (
    GUESTS,
    HOTPLUG,
    LINUX,
    NONE,
    Place,
    QMPRefusal,
    SimulatedBus,
    SimulatedDevice,
    parse_place,
)
from pyhostdev.testing.qemuunplug import HANDLERS, on_reset
from pyhostdev.testing.qemuvfio import HostSide
from pyhostdev.util.typed import NamedTuple

_REMEMBERS_NODES_SINCE = (10, 1)  # cpr_get_fd_param (migration/cpr.c)
PRELAUNCH, RUNNING, PAUSED = "prelaunch", "running", "paused"
_MS = 1000


class _Timer(NamedTuple):
    due_ms: float
    number: int
    action: Callable[[], None]


class SimulatedMachine:
    """
    A machine with its buses and devices.

    Args:
        version: major and minor number of the QEMU.
        guest: the behaviour of the guest, one of ``qemuslots.GUESTS``.
        host_side: opens the functions of the host; None accepts every ``host``.
        seed: decides the order of events.
        delay_s: how much slower than usual the guest reacts.
    """

    def __init__(
        self,
        buses: Iterable[SimulatedBus] = (SimulatedBus("pci.0"),),
        *,
        version: tuple[int, int] = (7, 2),
        guest: str = LINUX,
        host_side: HostSide | None = None,
        seed: int = 0,
        delay_s: float = 0.0,
    ) -> None:
        self.buses = {bus.name: bus for bus in buses}
        unknown = {bus.hotplug for bus in self.buses.values()} - set(HOTPLUG)
        if unknown or guest not in GUESTS:
            raise ValueError(f"Unknown kind of bus or guest: {unknown or guest}")
        self.version = version
        self.guest = guest
        self.host_side = host_side
        self.delay_s = delay_s
        self.state = PRELAUNCH
        self.is_migrating = False
        self.devices: dict[str, SimulatedDevice] = {}
        self.outbox: list[dict[str, Any]] = []
        self.nodes = NamedDescriptors()
        self.asked: list[str] = []  # the ids of all requests to unplug, for tests
        self.clock_ms = 0.0
        self._random = random.Random(seed)
        self._timers: list[_Timer] = []
        self._timer_count = 0

    # The clock

    @property
    def has_run(self) -> bool:
        """True once the guest has run."""
        return self.state != PRELAUNCH

    @property
    def next_due_s(self) -> float | None:
        """Seconds of virtual time until something happens by itself; None if nothing will."""
        if self.state != RUNNING or not self._timers:
            return None
        return max(0.0, min(self._timers).due_ms - self.clock_ms) / _MS

    def advance(self, seconds: float) -> None:
        """Let time pass; a guest that does not run does nothing."""
        if self.state != RUNNING:
            return
        end = self.clock_ms + seconds * _MS
        while self._timers and min(self._timers).due_ms <= end:
            timer = min(self._timers)
            self._timers.remove(timer)
            self.clock_ms = max(self.clock_ms, timer.due_ms)
            timer.action()
        self.clock_ms = end

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedule an action of the guest on the virtual clock."""
        self._timer_count += 1
        self._timers.append(_Timer(self.clock_ms + (seconds + self.delay_s) * _MS, self._timer_count, action))

    # What a test checks

    def in_slot(self, where: tuple[str, int]) -> list[SimulatedDevice]:
        """Return the devices of one slot, by function."""
        found = (device for device in self.devices.values() if device.place.where == where)
        return sorted(found, key=lambda device: device.place.function)

    def is_live(self, where: tuple[str, int]) -> bool:
        """True if a slot has its function 0: without it, the guest sees none of the others."""
        return any(device.place.function == 0 for device in self.in_slot(where))

    def guest_sees(self) -> list[Place]:
        """Return the addresses that the guest's ``lspci`` would show; below a port, only slot 0."""
        places = sorted(device.place for device in self.devices.values())
        seen = [place for place in places if self.is_live(place.where)]
        return [place for place in seen if not (self.buses[place.bus].is_port and place.slot)] if self.has_run else []

    # Commands

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """
        Run one command of the monitor and return its answer.

        Raises:
            QMPRefusal: the answer is an error.
        """
        method = _COMMANDS.get(command)
        if method is None:
            raise QMPRefusal(f"The command {command} has not been found", "CommandNotFound")
        return method(self, dict(arguments or {}))

    def add_cold(self, device_id: str, bus: str, address: str, driver: str = "e1000e", **properties: Any) -> None:
        """Add a device of the command line."""
        place = parse_place(bus, driver, address)
        self._put(SimulatedDevice(device_id, driver, place, properties, cold=True))

    def _device_add(self, arguments: dict[str, Any]) -> dict[str, Any]:
        driver = check_driver(arguments.pop("driver", None), self.version)
        bus = self._pluggable_bus(arguments.pop("bus", next(iter(self.buses))))
        device_id = arguments.pop("id", None)
        if device_id in self.devices:
            raise QMPRefusal(f"Duplicate device ID '{device_id}'")
        check_properties(driver, arguments, self.version)
        self.nodes.check(arguments)
        place = parse_place(bus.name, driver, arguments.get("addr", "0x0"))
        self._check_slot(driver, place, is_true(arguments.get("multifunction")))
        self._put(SimulatedDevice(str(device_id), driver, place, arguments, cold=False))
        return {}

    def _pluggable_bus(self, name: Any) -> SimulatedBus:
        if name not in self.buses:
            raise QMPRefusal(f"Bus '{name}' not found")
        bus = self.buses[name]
        if bus.hotplug == NONE:
            raise QMPRefusal(f"Bus '{name}' does not support hotplugging")
        return bus

    def _check_slot(self, driver: str, place: Place, multifunction: bool) -> None:
        """
        Refuse an address that is in use, that the guest would not notice, or that hides other functions.

        Source: do_pci_register_device, pci_init_multifunction (hw/pci/pci.c)
        """
        slot, function = f"{place.slot:x}", place.function
        others = self.in_slot(place.where)
        for other in others:
            if other.place.function == function:
                what = f"{other.driver},id={other.id}"
                raise QMPRefusal(f"PCI: slot {slot} function {function} not available for {driver}, in use by {what}")
        first = next((other for other in others if other.place.function == 0), None)
        if function and first is not None:
            is_pseries = self.buses[place.bus].hotplug == "pseries"
            what = "additional functions can no longer" if is_pseries else f"new func {driver} cannot"
            raise QMPRefusal(
                f"PCI: slot {slot} function 0 already occupied by {first.driver}, {what} be exposed to guest."
            )
        if function == 0 and others and not multifunction:
            raise QMPRefusal(
                f"PCI: {slot}.0 indicates single function, but {slot}.{others[0].place.function:x} is already "
                "populated."
            )

    def _put(self, device: SimulatedDevice) -> None:
        name = device.properties.get("fd")
        if name is not None:
            self._use_node(device, name)
        elif device.driver == "vfio-pci" and device.host is None:
            raise QMPRefusal("No provided host device")
        elif self.host_side is not None and device.host is not None:
            self.host_side.open(device.host, self.version)
        self.devices[device.id] = device

    def _use_node(self, device: SimulatedDevice, name: str) -> None:
        """
        Bind the function behind a node, whose descriptor is used up even by a failure.

        Raises:
            QMPRefusal: it cannot be bound.
            ConnectionResetError: QEMU ends itself: it remembers another node of a refused device with this id.
        """
        fd = self.nodes.take(name)
        if device.id in self.nodes.remembered:
            os.close(fd)
            raise ConnectionResetError(f"internal error: cpr fd '{device.id}' already saved with a different value")
        if self.host_side is None:
            os.close(fd)
            return
        iommufd = self.nodes.iommufds[str(device.properties["iommufd"])]
        try:
            device.properties["host"] = self.host_side.bind(device.id, fd, iommufd)
        except QMPRefusal:
            if self.version >= _REMEMBERS_NODES_SINCE:
                self.nodes.remembered.add(device.id)
            raise

    def _getfd(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.nodes.name(str(arguments.get("fdname")))
        return {}

    def _closefd(self, arguments: dict[str, Any]) -> dict[str, Any]:
        os.close(self.nodes.take(str(arguments.get("fdname")), missing="File descriptor named '{}' not found"))
        return {}

    def _object_add(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.nodes.add_iommufd(arguments, self.version)
        return {}

    def _device_del(self, arguments: dict[str, Any]) -> dict[str, Any]:
        device_id = arguments.get("id")
        if device_id is None:
            raise QMPRefusal("Parameter 'id' is missing")
        if not isinstance(device_id, str):
            raise QMPRefusal("Invalid parameter type for 'id', expected: string")
        if device_id not in self.devices:
            raise QMPRefusal(f"Device '{device_id}' not found", "DeviceNotFound")
        self.request_unplug(self.devices[device_id])
        return {}

    def request_unplug(self, device: SimulatedDevice) -> None:
        """
        Ask the guest to release a device, as ``device_del`` does.

        Raises:
            QMPRefusal: the bus does not support it, a request is pending, or the guest is busy.
        """
        bus = self.buses[device.place.bus]
        if bus.hotplug == NONE:
            raise QMPRefusal(f"Bus '{bus.name}' does not support hotplugging")
        if self.is_migrating:
            raise QMPRefusal("device_del not allowed while migrating")
        self.asked.append(device.id)
        HANDLERS[bus.hotplug](self, device)

    def remove(self, devices: Iterable[SimulatedDevice]) -> None:
        """Remove devices, with one event each, in random order."""
        gone = [device for device in devices if device.id in self.devices]
        self._random.shuffle(gone)
        for device in gone:
            del self.devices[device.id]
            if self.host_side is not None and device.properties.get("fd") is not None:
                self.host_side.unbind(device.id)
            elif self.host_side is not None and device.host is not None:
                self.host_side.close(device.host)
            if device.driver.startswith("virtio-"):  # a part of the device, which has no id
                self.emit("DEVICE_DELETED", path=f"{device.path}/virtio-backend")
            self.emit("DEVICE_DELETED", device=device.id, path=device.path)

    def emit(self, event: str, **data: Any) -> None:
        """Send an event to all clients."""
        self.outbox.append({"event": event, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def _system_reset(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        self.reset(guest=False)
        return {}

    def reset(self, *, guest: bool = True) -> None:
        """Reset the machine; the guest's own reset does the same as one from outside."""
        reason = "guest-reset" if guest else "host-qmp-system-reset"
        self.emit("RESET", guest=guest, reason=reason)
        self._timers.clear()
        on_reset(self)

    def pull(self, host: str) -> None:
        """Simulate a host program that unbinds a held function: the kernel asks QEMU, which asks the guest."""
        for device in [device for device in self.devices.values() if device.host == host]:
            self.request_unplug(device)

    def _stop(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        if self.state == RUNNING:
            self.state = PAUSED
            self.emit("STOP")
        return {}

    def _cont(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        if self.state != RUNNING:
            self.state = RUNNING
            self.clock_ms = max(self.clock_ms, 1.0)
            self.emit("RESUME")
        return {}

    def _query_status(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        answer = {"status": self.state, "running": self.state == RUNNING}
        return {**answer, "singlestep": False} if self.version < (9, 0) else answer

    def _qom_list(self, arguments: dict[str, Any]) -> list[dict[str, str]]:
        if arguments.get("path") == "/objects":
            objects = [{"name": name, "type": "child<iommufd>"} for name in self.nodes.iommufds]
            return [{"name": "type", "type": "string"}, *objects]
        if arguments.get("path") != "/machine/peripheral":
            raise QMPRefusal(f"Device '{arguments.get('path')}' not found", "DeviceNotFound")
        children = [{"name": d.id, "type": f"child<{d.driver}>"} for d in self.devices.values()]
        return [{"name": "type", "type": "string"}, *children]

    def _query_pci(self, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        places = {d.id: d.place for d in self.devices.values()}
        names = list(self.buses)
        return [
            {
                "bus": names.index(bus),
                "devices": [
                    {"qdev_id": i, "bus": names.index(bus), "slot": p.slot, "function": p.function}
                    for i, p in places.items()
                    if p.bus == bus
                ],
            }
            for bus in names
        ]

    def _query_version(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        major, minor = self.version
        return {"qemu": {"major": major, "minor": minor, "micro": 0}, "package": "simulated"}

    def _nothing(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return {}


_COMMANDS: dict[str, Callable[[SimulatedMachine, dict[str, Any]], Any]] = {
    "qmp_capabilities": SimulatedMachine._nothing,
    "device_add": SimulatedMachine._device_add,
    "device_del": SimulatedMachine._device_del,
    "getfd": SimulatedMachine._getfd,
    "closefd": SimulatedMachine._closefd,
    "object-add": SimulatedMachine._object_add,
    "system_reset": SimulatedMachine._system_reset,
    "stop": SimulatedMachine._stop,
    "cont": SimulatedMachine._cont,
    "query-status": SimulatedMachine._query_status,
    "qom-list": SimulatedMachine._qom_list,
    "query-pci": SimulatedMachine._query_pci,
    "query-version": SimulatedMachine._query_version,
    "set-action": SimulatedMachine._nothing,
}
