# SPDX-License-Identifier: LGPL-2.1-or-later
"""The simulated QEMU behaves like the measured QEMU: one test per row of the hot-plug tables."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from pyhostdev.testing import FakeHost, QMPRefusal, SimulatedBus, SimulatedQEMU

CARD = [f"0001:09:00.{function}" for function in range(4)]
ALL_X86 = ("pc", "pc-shpc", "q35", "q35-native")
VERSIONS = ((7, 2), (10, 0), (11, 1))


def bus_of(machine: str) -> str:
    return {"pc": "pci.0", "pseries": "pci.0"}.get(machine, "pci.1")


def slot_of(machine: str) -> int:
    return 0 if machine in ("q35", "q35-native", "virt") else 4


def add(qemu: SimulatedQEMU, function: int, machine: str = "pc", **more: Any) -> None:
    """Plug function n as the device fn."""
    address = f"{slot_of(machine):#x}.{function:#x}"
    words = {"driver": "e1000e", "id": f"f{function}", "bus": bus_of(machine), "addr": address, **more}
    qemu.execute("device_add", **words)


def running(machine: str = "pc", *functions: int, **options: Any) -> SimulatedQEMU:
    """A running guest with these functions in one slot, function 0 last."""
    qemu = SimulatedQEMU(machine=machine, **options)
    qemu.cont()
    qemu.machine.advance(1)
    for function in sorted(functions, reverse=True):
        add(qemu, function, machine, **({"multifunction": True} if function == 0 else {}))
    qemu.machine.outbox.clear()
    return qemu


def deleted(qemu: SimulatedQEMU) -> list[str]:
    """The ids of the DEVICE_DELETED events so far, sorted."""
    events = [event for event in qemu.machine.outbox if event["event"] == "DEVICE_DELETED"]
    return sorted(event["data"]["device"] for event in events if "device" in event["data"])


def refusal(qemu: SimulatedQEMU, command: str, **arguments: Any) -> str:
    """Return QEMU's refusal of a command."""
    with pytest.raises(QMPRefusal) as refused:
        qemu.execute(command, **arguments)
    return refused.value.description


# Plugging in


@pytest.mark.parametrize("machine", [*ALL_X86, "virt", "pseries"])
def test_a_slot_appears_with_function_0(machine: str) -> None:
    """Functions 3 and 1 are accepted and not seen; with function 0, all are seen at once."""
    qemu = running(machine, 3, 1)
    assert [] == qemu.machine.guest_sees()
    add(qemu, 0, machine, multifunction=True)
    assert [0, 1, 3] == [place.function for place in qemu.machine.guest_sees()]


def test_function_0_must_announce_the_others() -> None:
    """Without multifunction, function 0 is refused, and the staged one stays."""
    qemu = running("pc", 3)
    words = {"driver": "e1000e", "id": "f0", "bus": "pci.0", "addr": "0x4"}
    assert "PCI: 4.0 indicates single function, but 4.3 is already populated." == refusal(qemu, "device_add", **words)
    assert ["f3"] == qemu.ids


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ("pc", "PCI: slot 4 function 0 already occupied by e1000e, new func e1000e cannot be exposed to guest."),
        (
            "pseries",
            "PCI: slot 4 function 0 already occupied by e1000e, additional functions can no longer be exposed to "
            "guest.",
        ),
    ],
)
def test_nothing_is_added_to_a_live_slot(machine: str, text: str) -> None:
    """A live slot accepts no device, even while function 0 is being removed."""
    qemu = running(machine, 0)
    words = {"driver": "e1000e", "id": "f3", "bus": "pci.0", "addr": "0x4.0x3"}
    assert text == refusal(qemu, "device_add", **words)
    qemu.execute("device_del", id="f0")
    assert text == refusal(qemu, "device_add", **words)
    cold = running(machine)
    cold.machine.add_cold("cold", "pci.0", "0x4.0x0")
    assert text == refusal(cold, "device_add", **words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"id": "x"}, "PCI: slot 4 function 3 not available for e1000e, in use by e1000e,id=f3"),
        ({}, "Duplicate device ID 'f3'"),
        ({"id": "x", "bus": "nobus"}, "Bus 'nobus' not found"),
        ({"id": "x", "addr": "0x20.0"}, "Property 'e1000e.addr' doesn't take value '0x20.0'"),
        ({"id": "x", "addr": "0x4.0x9"}, "Property 'e1000e.addr' doesn't take value '0x4.0x9'"),
        ({"id": "x", "driver": "nodrv"}, "'nodrv' is not a valid device model name"),
        ({"id": "x", "driver": "vfio-pci-nohotplug"}, "Parameter 'driver' expects a pluggable device type"),
        ({"id": "x", "driver": "vfio-pci"}, "No provided host device"),
        ({"id": "x", "acpi_index": 1}, "Property 'e1000e.acpi_index' not found"),
        ({"id": "x", "driver": "vfio-pci", "ramfb": True}, "Property 'vfio-pci.ramfb' not found"),
    ],
)
def test_refused_arguments(words: dict[str, Any], text: str) -> None:
    """Each refusal has QEMU's text, and the existing device is kept."""
    qemu = running("pc", 3)
    words = {"driver": "e1000e", "id": "f3", "bus": "pci.0", "addr": "0x4.0x3" if "addr" not in words else "", **words}
    if words["driver"] == "vfio-pci":
        words["addr"] = "0x5"
    assert text == refusal(qemu, "device_add", **words)
    assert ["f3"] == qemu.ids


@pytest.mark.parametrize("version", VERSIONS)
def test_types_of_arguments(version: tuple[int, int]) -> None:
    """7.2 takes a text for a switch; later releases take JSON's own types only."""
    qemu = running("pc", version=version)
    words: dict[str, Any] = {"driver": "e1000e", "id": "f0", "bus": "pci.0", "addr": "0x4", "multifunction": "on"}
    if version == (7, 2):
        qemu.execute("device_add", **words)
    else:
        text = "Invalid parameter type for 'multifunction', expected: boolean"
        assert text == refusal(qemu, "device_add", **words)
        words |= {"multifunction": True, "rombar": "1"}
        assert "Invalid parameter type for 'rombar', expected: uint64" == refusal(qemu, "device_add", **words)
        qemu.execute("device_add", **{**words, "rombar": 1})
    assert ["f0"] == qemu.ids


def test_slots_of_a_port() -> None:
    """A slot other than 0 below a port is accepted, and the guest never sees it."""
    qemu = running("q35")
    qemu.execute("device_add", driver="e1000e", id="f0", bus="pci.1", addr="0x3")
    assert (["f0"], []) == (qemu.ids, qemu.machine.guest_sees())


def test_buses_without_hotplug() -> None:
    """pcie.0 neither plugs nor unplugs."""
    qemu = running("q35")
    qemu.machine.add_cold("rp", "pcie.0", "0x2")
    text = "Bus 'pcie.0' does not support hotplugging"
    assert text == refusal(qemu, "device_add", driver="e1000e", id="x", bus="pcie.0", addr="0x4")
    assert text == refusal(qemu, "device_del", id="rp")


# Taking out


@pytest.mark.parametrize("machine", ALL_X86)
@pytest.mark.parametrize("named", ["f0", "f3"])
def test_all_functions_go_together(machine: str, named: str) -> None:
    """A request for any function removes all functions of the slot."""
    qemu = running(machine, 0, 3)
    where = (bus_of(machine), slot_of(machine))
    qemu.machine.add_cold("cold", where[0], f"{where[1]:#x}.0x7")
    qemu.execute("device_del", id=named)
    qemu.machine.advance(7)
    assert (["cold", "f0", "f3"], []) == (deleted(qemu), qemu.ids)


def test_order_of_events_is_undefined() -> None:
    """Function 0 comes first or last."""
    orders = set()
    for seed in range(8):
        qemu = running("pc", 0, 3, seed=seed)
        qemu.execute("device_del", id="f0")
        qemu.machine.advance(1)
        orders.add(tuple(event["data"]["device"] for event in qemu.machine.outbox))
    assert {("f0", "f3"), ("f3", "f0")} == orders


def test_parts_without_a_name_have_events() -> None:
    """A virtio device sends an event with a path and no device before its own."""
    qemu = running("pc")
    add(qemu, 0, driver="virtio-net-pci")
    qemu.execute("device_del", id="f0")
    qemu.machine.advance(1)
    data = [event["data"] for event in qemu.machine.outbox if event["event"] == "DEVICE_DELETED"]
    assert [
        {"path": "/machine/peripheral/f0/virtio-backend"},
        {"device": "f0", "path": "/machine/peripheral/f0"},
    ] == data


def test_time_of_native_hotplug() -> None:
    """The button blinks for five seconds, so five seconds of waiting are never enough."""
    qemu = running("q35-native", 0)
    qemu.execute("device_del", id="f0")
    qemu.machine.advance(6)
    assert [] == deleted(qemu)
    qemu.machine.advance(0.5)
    assert ["f0"] == deleted(qemu)


def test_a_second_request_by_acpi() -> None:
    """For a guest that has run, it is a new request."""
    qemu = running("pc", 0, guest="deaf")
    qemu.execute("device_del", id="f0")
    qemu.execute("device_del", id="f0")
    assert ["f0", "f0"] == qemu.machine.asked


def test_a_guest_that_has_not_run_is_stuck_for_ever() -> None:
    """A request before the first cont is only completed by a reset."""
    qemu = SimulatedQEMU()
    add(qemu, 0)
    qemu.execute("device_del", id="f0")
    assert "Device f0 is already in the process of unplug" == refusal(qemu, "device_del", id="f0")
    qemu.cont()
    qemu.machine.advance(60)
    assert "Device f0 is already in the process of unplug" == refusal(qemu, "device_del", id="f0")
    assert ["f0"] == qemu.ids
    qemu.reset()
    assert ["f0"] == deleted(qemu)


def test_a_second_request_by_the_port() -> None:
    """The same device is in the process for five seconds of the guest's time; for another one the guest is busy."""
    qemu = running("q35-native", 0, 3)
    qemu.execute("device_del", id="f0")
    assert "Device f0 is already in the process of unplug" == refusal(qemu, "device_del", id="f0")
    assert "Hot-unplug failed: guest is busy (power indicator blinking)" == refusal(qemu, "device_del", id="f3")
    qemu.stop()
    qemu.machine.advance(60)
    assert "Device f0 is already in the process of unplug" == refusal(qemu, "device_del", id="f0")
    qemu.cont()
    qemu.machine.advance(7)
    assert [] == qemu.ids


def test_only_one_class_of_errors_is_special() -> None:
    """Only DeviceNotFound has its own class."""
    qemu = running()
    with pytest.raises(QMPRefusal, match="Device 'f0' not found") as refused:
        qemu.execute("device_del", id="f0")
    assert "DeviceNotFound" == refused.value.error_class
    with pytest.raises(QMPRefusal) as refused:
        qemu.execute("device_add", driver="e1000e", id="x", bus="nobus")
    assert "GenericError" == refused.value.error_class


@pytest.mark.parametrize(("machine", "after_s"), [("pc", 0.2), ("q35-native", 6.5)])
def test_a_paused_guest(machine: str, after_s: float) -> None:
    """A paused guest accepts the request, and releases the device once it runs again."""
    qemu = running(machine, 0)
    qemu.stop()
    qemu.execute("device_del", id="f0")
    qemu.machine.advance(60)
    assert ["f0"] == qemu.ids
    qemu.cont()
    qemu.machine.advance(after_s)
    assert [] == qemu.ids


def test_a_deaf_guest_lets_go_with_a_reset() -> None:
    """Requests are accepted without an effect; a reset removes the devices, with one event per function."""
    qemu = running("pc", 0, 3, guest="deaf")
    for _ in range(3):
        qemu.execute("device_del", id="f0")
        qemu.machine.advance(30)
    assert ["f0", "f3"] == qemu.ids
    qemu.reset()
    assert (["f0", "f3"], [], []) == (deleted(qemu), qemu.ids, qemu.machine.guest_sees())


@pytest.mark.parametrize("machine", ["q35-native", "virt"])
def test_a_slot_that_is_off(machine: str) -> None:
    """A slot that is off is emptied at once."""
    qemu = SimulatedQEMU(machine=machine)
    for function in (3, 0):
        add(qemu, function, machine, multifunction=True)
    qemu.execute("device_del", id="f3")
    assert ["f0", "f3"] == deleted(qemu)
    compat = running(machine, 0, 3, guest="compat")
    compat.execute("device_del", id="f0")
    assert ["f0", "f3"] == deleted(compat)


def test_asked_while_the_guest_boots() -> None:
    """A port whose slot the firmware turned on: busy at first, then gone by itself."""
    qemu = running("q35-native", 0, guest="booting")
    assert "Hot-unplug failed: guest is busy (power indicator blinking)" == refusal(qemu, "device_del", id="f0")
    qemu.machine.advance(3.1)
    assert ["f0"] == deleted(qemu)


def test_staged_functions() -> None:
    """A port lets one go alone and at once; ACPI lets all go, and needs a guest; SHPC all, at once."""
    port = running("q35-native", 1, 3)
    port.execute("device_del", id="f3")
    assert (["f3"], ["f1"]) == (deleted(port), port.ids)
    acpi = running("pc", 1, 3)
    acpi.execute("device_del", id="f3")
    assert ["f1", "f3"] == acpi.ids
    acpi.machine.advance(0.2)
    assert ["f1", "f3"] == deleted(acpi)
    deaf = running("pc", 1, 3, guest="deaf")
    deaf.execute("device_del", id="f3")
    deaf.machine.advance(60)
    assert ["f1", "f3"] == deaf.ids
    deaf.reset()
    assert [] == deaf.ids
    shpc = running("pc-shpc", 1, 3)
    shpc.execute("device_del", id="f3")
    assert ["f1", "f3"] == deleted(shpc)


def test_pseries_asks_for_each_function() -> None:
    """A function other than 0 goes alone; function 0 takes the others along; twice is refused."""
    qemu = running("pseries", 0, 1, 3)
    qemu.execute("device_del", id="f3")
    qemu.machine.advance(1)
    assert ["f3"] == deleted(qemu)
    qemu.execute("device_del", id="f0")
    assert "PCI device unplug already in progress for device f0" == refusal(qemu, "device_del", id="f0")
    qemu.machine.advance(1)
    assert [] == qemu.ids
    staged = SimulatedQEMU(machine="pseries")
    add(staged, 0, "pseries")
    staged.execute("device_del", id="f0")
    assert ["f0"] == deleted(staged)


def test_a_guest_that_refuses() -> None:
    """Only pseries says so, with an event; on x86, a refusal is silence."""
    qemu = running("pseries", 0, guest="refuses")
    qemu.execute("device_del", id="f0")
    qemu.machine.advance(1)
    (event,) = qemu.machine.outbox
    assert ("DEVICE_UNPLUG_GUEST_ERROR", "f0") == (event["event"], event["data"]["device"])
    silent = running("pc", 0, guest="refuses")
    silent.execute("device_del", id="f0")
    silent.machine.advance(60)
    assert (["f0"], []) == (silent.ids, silent.machine.outbox)


def test_no_request_while_migrating() -> None:
    """It is refused."""
    qemu = running("pc", 0)
    qemu.machine.is_migrating = True
    assert "device_del not allowed while migrating" == refusal(qemu, "device_del", id="f0")


# The functions of the host


@pytest.fixture
def card(bcm5719: FakeHost) -> FakeHost:
    """The card, with all four functions on vfio-pci."""
    for address in CARD:
        to_vfio(bcm5719, address)
    return bcm5719


def write(fake: FakeHost, path: str, value: str, address: str) -> None:
    from pyhostdev import PCIDeviceAddress

    fake.kernel.write(fake.root.join(path), value.encode(), device=PCIDeviceAddress.parse(address))


def to_vfio(fake: FakeHost, address: str) -> None:
    write(fake, f"sys/bus/pci/devices/{address}/driver_override", "vfio-pci", address)
    write(fake, f"sys/bus/pci/devices/{address}/driver/unbind", address, address)
    write(fake, "sys/bus/pci/drivers_probe", address, address)


def vfio(qemu: SimulatedQEMU, function: int, **more: Any) -> None:
    add(qemu, function, driver="vfio-pci", host=CARD[function], multifunction=True, **more)


def test_functions_of_the_host(card: FakeHost) -> None:
    """They are held while the guest has them, and free again with the last event."""
    with running(kernel=card.kernel) as qemu:
        vfio(qemu, 3)
        vfio(qemu, 0)
        assert qemu.host_side is not None
        assert [CARD[0], CARD[3]] == qemu.host_side.functions
        assert card.kernel.is_group_open(card.root.vfio_group(14))
        qemu.execute("device_del", id="f0")
        qemu.machine.advance(1)
        assert not card.kernel.is_group_open(card.root.vfio_group(14))


def test_refused_functions(card: FakeHost) -> None:
    """On its host driver, beside one that is, twice, and by a second QEMU; a refused one leaves nothing."""
    write(card, f"sys/bus/pci/devices/{CARD[1]}/driver/unbind", CARD[1], CARD[1])
    write(card, f"sys/bus/pci/devices/{CARD[1]}/driver_override", "tg3", CARD[1])
    write(card, "sys/bus/pci/drivers_probe", CARD[1], CARD[1])
    with running(kernel=card.kernel) as qemu, running(kernel=card.kernel) as other:
        words = {"driver": "vfio-pci", "id": "x", "bus": "pci.0", "addr": "0x5", "host": CARD[0]}
        assert f"vfio {CARD[0]}: group 14 is not viable" == refusal(qemu, "device_add", **words)
        to_vfio(card, CARD[1])
        vfio(qemu, 0)
        assert f"vfio {CARD[0]}: device is already attached" == refusal(qemu, "device_add", **words)
        text = f"vfio {CARD[3]}: failed to open /dev/vfio/14: Device or resource busy"
        assert text == refusal(other, "device_add", **{**words, "host": CARD[3]})
        missing = "vfio /sys/bus/pci/devices/0000:77:00.0: no such host device: No such file or directory"
        assert missing == refusal(other, "device_add", **{**words, "host": "0000:77:00.0"})
        assert [] == other.ids


def test_a_host_driver_is_still_bound(bcm5719: FakeHost) -> None:
    """A function on its host driver has no node to open."""
    with running(kernel=bcm5719.kernel) as qemu:
        words = {"driver": "vfio-pci", "id": "x", "bus": "pci.0", "addr": "0x5", "host": CARD[3]}
        text = f"vfio {CARD[3]}: failed to open /dev/vfio/14: No such file or directory"
        assert text == refusal(qemu, "device_add", **words)


def test_the_limit_of_locked_memory(card: FakeHost) -> None:
    """The first function of the guest needs it; the second adds nothing; after raising it, the same command works."""
    with running(kernel=card.kernel, memory=1 << 20) as qemu:
        assert qemu.host_side is not None
        qemu.host_side.process.put_limit(4096, 4096)
        words = {"driver": "vfio-pci", "id": "f3", "bus": "pci.0", "addr": "0x4.0x3", "host": CARD[3]}
        assert "= -12 (Cannot allocate memory)" in refusal(qemu, "device_add", **words)
        qemu.host_side.process.put_limit(1 << 20, 1 << 20)
        qemu.execute("device_add", **words)
        qemu.host_side.process.put_limit(0, 0)
        vfio(qemu, 0)
        assert ["f0", "f3"] == qemu.ids


def test_pulled_by_the_host(card: FakeHost) -> None:
    """If the host pulls a function, the whole slot is removed without a device_del."""
    with running(kernel=card.kernel) as qemu:
        vfio(qemu, 3)
        vfio(qemu, 0)
        qemu.pull(CARD[3])
        qemu.machine.advance(1)
        assert ["f0", "f3"] == deleted(qemu)


# The monitor


class Client:
    """A client of a socket that reads lines."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rwb")

    def read(self) -> Any:
        return json.loads(self.lines.readline())

    def ask(self, command: str, **arguments: Any) -> None:
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}).encode())
        self.lines.flush()

    def negotiate(self) -> None:
        assert "QMP" in self.read()
        self.ask("qmp_capabilities")
        assert {"return": {}} == self.read()


def test_a_second_client_of_one_socket_waits(tmp_path: Path) -> None:
    """A second client is greeted after the first one disconnects."""
    with SimulatedQEMU([tmp_path / "a"]):
        first, second = Client(tmp_path / "a"), Client(tmp_path / "a")
        first.negotiate()
        second.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            second.socket.recv(1)
        second.socket.settimeout(5)
        first.lines.close()
        first.socket.close()
        assert b'{"QMP"' == second.socket.recv(6)


@pytest.mark.parametrize("version", VERSIONS)
def test_events_go_to_all_sockets(tmp_path: Path, version: tuple[int, int]) -> None:
    """Also to the one that did not ask; a newer QEMU sends them before the answer."""
    with SimulatedQEMU([tmp_path / "a", tmp_path / "b"], machine="virt", version=version) as qemu:
        add(qemu, 0, "virt")
        asking, other = Client(tmp_path / "a"), Client(tmp_path / "b")
        asking.negotiate()
        other.negotiate()
        asking.ask("device_del", id="f0")
        kinds = [next(iter(asking.read())) for _ in range(2)]
        assert (["event", "return"] if version == (11, 1) else ["return", "event"]) == kinds
        assert "f0" == other.read()["data"]["device"]


def test_a_command_before_the_negotiation(tmp_path: Path) -> None:
    """The command is refused, and the client stays connected."""
    with SimulatedQEMU([tmp_path / "a"]):
        client = Client(tmp_path / "a")
        assert "QMP" in client.read()
        client.ask("query-status")
        assert "CommandNotFound" == client.read()["error"]["class"]
        client.ask("qmp_capabilities")
        assert {"return": {}} == client.read()


def test_a_connection_without_a_socket() -> None:
    """Virtual time passes while a client waits for an event."""
    qemu = running("q35-native", 0)
    connection = qemu.connect()

    async def unplug() -> str:
        await connection.execute("device_del", {"id": "f0"})
        return str((await connection.events.get())["data"]["device"])

    assert "f0" == asyncio.run(unplug())
    assert qemu.machine.clock_ms > 6000


def test_own_buses() -> None:
    """A test can name its own buses; an unknown kind is refused."""
    qemu = SimulatedQEMU(machine=[SimulatedBus("br", "shpc")])
    qemu.execute("device_add", driver="e1000e", id="f0", bus="br", addr="0x1")
    assert ["f0"] == qemu.ids
    with pytest.raises(ValueError, match="odd"):
        SimulatedQEMU(machine=[SimulatedBus("br", "odd")])
