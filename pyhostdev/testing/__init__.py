# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts without hardware, for tests of this project and of others; the exported names are imported on first use."""

from __future__ import annotations

TYPE_CHECKING = False  # nothing else is loaded into the tests of a project that does not use this

if TYPE_CHECKING:
    from typing import Any

    from pyhostdev.testing.answers import NotSimulated, SimulatedKill
    from pyhostdev.testing.fakehost import FakeHost
    from pyhostdev.testing.faults import Fault
    from pyhostdev.testing.hostspec import HostSpec
    from pyhostdev.testing.kernel import SimulatedKernel
    from pyhostdev.testing.qemumachine import SimulatedMachine
    from pyhostdev.testing.qemuslots import QMPRefusal, SimulatedBus
    from pyhostdev.testing.qmpconnection import SimulatedConnection
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.testing.simqemu import SimulatedQEMU

__all__ = [
    "FakeHost",
    "Fault",
    "HostSpec",
    "NotSimulated",
    "QMPRefusal",
    "SimDevice",
    "SimulatedBus",
    "SimulatedConnection",
    "SimulatedKernel",
    "SimulatedKill",
    "SimulatedMachine",
    "SimulatedQEMU",
]

_HOMES = {
    "FakeHost": "fakehost",
    "Fault": "faults",
    "HostSpec": "hostspec",
    "NotSimulated": "answers",
    "QMPRefusal": "qemuslots",
    "SimDevice": "simdevice",
    "SimulatedBus": "qemuslots",
    "SimulatedConnection": "qmpconnection",
    "SimulatedKernel": "kernel",
    "SimulatedKill": "answers",
    "SimulatedMachine": "qemumachine",
    "SimulatedQEMU": "simqemu",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
