# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A simulated QEMU as a program: its machine, its monitors on sockets, and its open VFIO devices.

    with SimulatedQEMU([tmp_path / "monitor.sock"], guest="deaf") as qemu:
        ...
        qemu.reset()
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pyhostdev.testing.qemumachine import SimulatedMachine
from pyhostdev.testing.qemuslots import ACPI, LINUX, NATIVE, NONE, PSERIES, SHPC, SimulatedBus
from pyhostdev.testing.qemuvfio import HostSide
from pyhostdev.testing.qmpconnection import SimulatedConnection
from pyhostdev.testing.qmpserver import QMPServer

if TYPE_CHECKING:
    from pyhostdev.testing.protocols import GroupKernel

MACHINES: dict[str, tuple[SimulatedBus, ...]] = {
    "pc": (SimulatedBus("pci.0", ACPI),),
    "pc-shpc": (SimulatedBus("pci.0", ACPI), SimulatedBus("pci.1", SHPC)),
    "q35": (SimulatedBus("pcie.0", NONE), *(SimulatedBus(f"pci.{n}", ACPI, is_port=True) for n in range(1, 9))),
    "q35-native": (
        SimulatedBus("pcie.0", NONE),
        *(SimulatedBus(f"pci.{n}", NATIVE, is_port=True) for n in range(1, 9)),
    ),
    "virt": (SimulatedBus("pcie.0", NONE), *(SimulatedBus(f"pci.{n}", NATIVE, is_port=True) for n in range(1, 9))),
    "pseries": (SimulatedBus("pci.0", PSERIES),),
}


class SimulatedQEMU:
    """
    A simulated QEMU for tests; as a context manager it ends with the block.

    Args:
        sockets: the paths of its monitors; empty for tests that only use ``connect``.
        machine: a name of ``MACHINES``, or its buses.
        version: major and minor number.
        guest: its behaviour: linux, deaf, compat, booting or refuses.
        kernel: the simulated kernel whose functions it opens; None accepts every ``host``.
        memory: bytes of guest memory that it locks.
        speed: seconds of the guest's time per second, for clients of the sockets.
        delay_s: how much slower than usual the guest reacts, in its own time.
        seed: decides the order of events.
    """

    def __init__(
        self,
        sockets: Sequence[str | os.PathLike[str]] = (),
        *,
        machine: str | Iterable[SimulatedBus] = "pc",
        version: tuple[int, int] = (7, 2),
        guest: str = LINUX,
        kernel: GroupKernel | None = None,
        memory: int = 0,
        speed: float = 1.0,
        delay_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        buses = MACHINES[machine] if isinstance(machine, str) else machine
        self.host_side = None if kernel is None else HostSide(kernel, memory)
        self.machine = SimulatedMachine(
            buses, version=version, guest=guest, host_side=self.host_side, seed=seed, delay_s=delay_s
        )
        self._server = QMPServer(self.machine, [os.fspath(path) for path in sockets], speed=speed)
        self._has_sockets = bool(sockets)

    def __enter__(self) -> SimulatedQEMU:
        if self._has_sockets:
            self._server.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def connect(self) -> SimulatedConnection:
        """Return a client without a socket, for which virtual time passes while it waits."""
        return SimulatedConnection(self.machine)

    @property
    def pid(self) -> int | None:
        """The process's number on the simulated host, None without a host."""
        return None if self.host_side is None else self.host_side.process.pid

    @property
    def ids(self) -> list[str]:
        """The ids of its devices, sorted."""
        with self._server.lock:
            return sorted(self.machine.devices)

    def execute(self, command: str, **arguments: Any) -> Any:
        """
        Run a command like a client.

        Raises:
            QMPRefusal: the answer is an error.
        """
        with self._server.lock:
            return self.machine.execute(command, arguments)

    def cont(self) -> None:
        """Let the guest run."""
        self.execute("cont")

    def stop(self) -> None:
        """Pause the guest."""
        self.execute("stop")

    def reset(self) -> None:
        """Let the guest reset itself."""
        with self._server.lock:
            self.machine.reset(guest=True)

    def pull(self, host: str) -> None:
        """Simulate a host program that unbinds a function of the guest."""
        with self._server.lock:
            self.machine.pull(host)

    def end(self) -> None:
        """End the process: its monitors disconnect, and its groups are released."""
        self._server.end()
        self.machine.nodes.close()
        if self.host_side is not None:
            self.host_side.end()
            self.host_side = None
