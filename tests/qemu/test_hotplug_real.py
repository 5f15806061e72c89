# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The simulated QEMU and a real one give equal answers; a second process plugs into a running guest.

LAB_QEMU names another emulator, as ``make lab`` does for the newest available QEMU.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hotplugging import live_domain

from pyhostdev import Host
from pyhostdev.qemu.qemu_capabilities import for_emulator
from pyhostdev.qemu.qemu_hotplug.owner import GuestOwner
from pyhostdev.qemu.qemu_hotplug.runtime import find_guest
from pyhostdev.qemu.qemu_process.process import run_guest
from pyhostdev.testing import FakeHost, QMPRefusal, SimulatedQEMU

QEMU = os.environ.get("LAB_QEMU", "qemu-system-x86_64")
pytestmark = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")

Step = tuple[str, dict[str, Any]]
SETTLE_S = 0.3  # what happens by itself has happened
LATE = (10, 0)  # this release sends the events of a reset late, and only if the firmware has begun before
LATE_S = 2.0


def add(device_id: str, bus: str, addr: str, **more: Any) -> Step:
    return "device_add", {"driver": "e1000e", "id": device_id, "bus": bus, "addr": addr, **more}


def delete(device_id: str) -> Step:
    return "device_del", {"id": device_id}


RESET: Step = ("system_reset", {})
CONT: Step = ("cont", {})
STOP: Step = ("stop", {})

REFUSED = [
    add("f3", "pci.0", "0x4.0x3"),
    add("f3", "pci.0", "0x4.0x3"),
    add("x", "pci.0", "0x4.0x3"),
    add("f0", "pci.0", "0x4"),
    add("f0", "nobus", "0x4"),
    add("f0", "pci.0", "0x20.0"),
    add("f0", "pci.0", "0x4.0x9"),
    add("f0", "pci.0", "zz"),
    add("f0", "pci.0", "0x4", acpi_index=1),
    ("device_add", {"driver": "nodrv", "id": "x", "bus": "pci.0", "addr": "0x4"}),
    ("device_add", {"driver": "vfio-pci", "id": "x", "bus": "pci.0", "addr": "0x5"}),
    ("device_add", {"driver": "vfio-pci-nohotplug", "id": "x", "bus": "pci.0", "addr": "0x5"}),
    ("device_add", {"id": "x", "bus": "pci.0", "addr": "0x5"}),
    ("nonsense", {}),
    ("device_del", {}),
    ("device_del", {"id": 5}),
    delete("nosuch"),
    add("f0", "pci.0", "0x4", multifunction=True),
    add("f1", "pci.0", "0x4.0x1"),
]
STUCK = [
    add("f3", "pci.0", "0x4.0x3"),
    add("f0", "pci.0", "0x4", multifunction=True),
    delete("f0"),
    delete("f0"),
    delete("f3"),
    RESET,
]
DEAF = [
    CONT,
    add("f3", "pci.0", "0x4.0x3"),
    add("f0", "pci.0", "0x4", multifunction=True),
    delete("f3"),
    delete("f3"),
    STOP,
    delete("f0"),
    CONT,
    RESET,
]
STAGED = [CONT, add("f1", "pci.0", "0x4.0x1"), add("f3", "pci.0", "0x4.0x3"), delete("f3"), RESET]
PORT = [
    add("x", "pcie.0", "0x4"),
    delete("rp"),
    add("f1", "pci.1", "0x0.0x1"),
    add("f3", "pci.1", "0x0.0x3"),
    delete("f3"),
    add("f0", "pci.1", "0x0", multifunction=True),
    delete("f1"),
    add("far", "pci.1", "0x3"),
    delete("far"),
]
PORT_ARGS = ["-device", "pcie-root-port,id=pci.1,bus=pcie.0,addr=2,chassis=1,slot=1"]
NATIVE = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
SCRIPTS = {
    "refused": ("pc", ["-machine", "pc"], REFUSED),
    "stuck": ("pc", ["-machine", "pc"], STUCK),
    "deaf": ("pc", ["-machine", "pc"], DEAF),
    "staged": ("pc", ["-machine", "pc"], STAGED),
    "port": ("q35-native", ["-machine", "q35", *NATIVE, *PORT_ARGS], PORT),
}
COLD = {"q35-native": [("pci.1", "pcie.0", "0x2", "rp")]}


class Real:
    """A real QEMU at its monitor."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        until(lambda: self.socket.connect_ex(str(path)) == 0)  # it is bound before it listens
        self.lines = self.socket.makefile("rwb")
        self.gone: list[str] = []
        assert "QMP" in json.loads(self.lines.readline())
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self.lines.flush()
        while True:
            message: dict[str, Any] = json.loads(self.lines.readline())
            if "event" not in message:
                return message
            if message["event"] == "DEVICE_DELETED" and "device" in message["data"]:
                self.gone.append(message["data"]["device"])

    def outcome(self, command: str, arguments: dict[str, Any]) -> tuple[str, str] | None:
        """The class and the words of a refusal, None for success."""
        error = self.ask(command, **arguments).get("error")
        return None if error is None else (error["class"], error["desc"])

    def ids(self) -> set[str]:
        time.sleep(SETTLE_S)
        listed = self.ask("qom-list", path="/machine/peripheral")["return"]
        return {item["name"] for item in listed if item["name"] != "type"}


@contextlib.contextmanager
def real_qemu(directory: Path, args: list[str]) -> Iterator[Real]:
    """Run a QEMU that is paused at its start while the block runs."""
    path = directory / "q"
    words = ["-nodefaults", "-display", "none", "-S", "-accel", "tcg", "-m", "64"]
    process = subprocess.Popen([QEMU, *words, "-qmp", f"unix:{path},server=on,wait=off", *args])
    try:
        until(path.exists)
        yield Real(path)
    finally:
        process.kill()
        process.wait()


def until(is_so: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def simulated(machine: str) -> SimulatedQEMU:
    qemu = SimulatedQEMU(machine=machine, guest="deaf")
    if machine != "pc":
        qemu.machine.add_cold("pci.1", "pcie.0", "0x2")
    return qemu


def answer(qemu: SimulatedQEMU, command: str, arguments: dict[str, Any]) -> tuple[str, str] | None:
    try:
        qemu.execute(command, **arguments)
    except QMPRefusal as refusal:
        return refusal.error_class, refusal.description
    finally:
        qemu.machine.advance(SETTLE_S)
    return None


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory whose sockets fit an address."""
    path = Path("/tmp") / f"pyhostdev-{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_both_answer_alike(short_path: Path, name: str) -> None:
    """For each step: the class and the text of a refusal, the present devices, and the events."""
    machine, args, steps = SCRIPTS[name]
    qemu = simulated(machine)
    with real_qemu(short_path, args) as real:
        version = real.ask("query-version")["return"]["qemu"]
        if (version["major"], version["minor"]) >= (10, 0):
            qemu.machine.version = (version["major"], version["minor"])
        is_late = (version["major"], version["minor"]) == LATE
        for number, (command, arguments) in enumerate(steps):
            wanted = (real.outcome(command, arguments), real.ids())
            found = (answer(qemu, command, arguments), set(qemu.ids))
            assert wanted == found, f"step {number}: {command} {arguments}"
            time.sleep(LATE_S if is_late and command in ("cont", "system_reset") else 0)
        real.ids()
        gone = [e["data"]["device"] for e in qemu.machine.outbox if e["event"] == "DEVICE_DELETED"]
        assert sorted(real.gone) == sorted(gone)


# A guest that start runs, and a second process


@contextlib.contextmanager
def owned_guest(fake: FakeHost, runtime: Path) -> Iterator[Real]:
    """Run a real QEMU with its owner, as start does, and yield its control socket."""
    host = Host(fake.root, writer=fake.kernel)
    dom = live_domain(fake)
    owner = GuestOwner(dom, host, for_emulator(shutil.which(QEMU), "x86_64"), _release(), None)
    words = ["-nodefaults", "-display", "none", "-S", "-no-shutdown", "-accel", "tcg", "-m", "64", "-machine", "pc"]

    def argv(fd: int) -> list[str]:
        chardev = f"socket,id=charmonitor,fd={fd},server=on,wait=off"
        return [QEMU, *words, "-chardev", chardev, "-mon", "chardev=charmonitor,mode=control"]

    started, pids = threading.Event(), list[int]()

    def on_started(pid: int) -> None:
        pids.append(pid)
        started.set()

    def guest() -> None:
        run_guest(argv, dom=dom, runtime_dir=str(runtime), on_started=on_started, control=owner)

    thread = threading.Thread(target=guest)
    thread.start()
    assert started.wait(60)
    try:
        with socket_alias(runtime / "control.sock") as path:
            yield Real(path)
    finally:
        os.kill(pids[0], 15)
        thread.join(60)
        assert not thread.is_alive()


def _release() -> Any:
    from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE

    return DEFAULT_RELEASE


@contextlib.contextmanager
def socket_alias(path: Path) -> Iterator[Path]:
    """Give a short path of a socket."""
    fd = os.open(path.parent, os.O_PATH)
    try:
        yield Path(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)


def test_start_gives_a_second_monitor(bcm5719: FakeHost) -> None:
    """The guest is found by its name, its owner and QEMU by their locks; devices are plugged and unplugged."""
    runtime = Path(bcm5719.root.state_dir, "lib/qemu/domain-5-vm1")
    runtime.parent.mkdir(parents=True)
    os.chmod(bcm5719.root.state_dir, 0o700)
    with owned_guest(bcm5719, runtime) as control:
        found = find_guest(bcm5719.root.state_dir, "vm1")
        assert found is not None
        assert (True, True) == (found.is_running, found.has_owner)
        assert "vm1" == found.state.load().name
        assert None is control.outcome(*add("f0", "pci.0", "0x4"))
        assert None is control.outcome(*delete("f0"))
        assert {"f0"} == control.ids()
        assert None is control.outcome(*RESET)
        until(lambda: control.ids() == set())
    assert not runtime.exists()
