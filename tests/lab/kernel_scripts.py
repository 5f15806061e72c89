# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Writes to sysfs and what a kernel answers: the same scripts for the real kernel and the simulated one.

A script starts on the lab's host in its original state (``lab.tree`` describes it) and is a list of writes. The
answers are errno names or "ok", then driver and override of each function the script is about.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

ANSWERS = Path(__file__).with_name("kernel_answers.json")  # the real kernel's, recorded by the lab
OTHERWISE = Path(__file__).with_name("kernel_answers_7.2.json")  # where Linux 7.2 answers otherwise

NIC0, NIC1, NIC2, NIC3 = (f"0000:01:00.{number}" for number in range(4))
PORT = "0000:00:04.0"  # the root port above the card
EDU = "0000:00:06.0"  # no driver knows it
NVME = "0000:02:00.0"  # a PF with four VFs
VF = "0000:02:00.1"
NOWHERE = "0000:55:00.0"
LONGEST_SHOWN = 40


class Write(NamedTuple):
    """One write of a value to an attribute below ``/sys/bus/pci``."""

    path: str
    value: bytes


class Hold(NamedTuple):
    """From here on user space owns the DMA of a function's group, as with a running guest."""

    address: str


class Script(NamedTuple):
    """Named writes, and the functions to look at after them."""

    name: str
    steps: tuple[Write | Hold, ...]
    about: tuple[str, ...]


class Kernel(Protocol):
    """What a script is run on."""

    def write(self, path: str, value: bytes) -> str:
        """Write once, and return "ok" or the name of the errno."""

    def driver(self, address: str) -> str | None:
        """Return the driver the function is bound to."""

    def override(self, address: str) -> str:
        """Return what driver_override reads, without its last newline."""

    def hold(self, address: str) -> AbstractContextManager[object]:
        """Own the DMA of the function's group."""


def run(script: Script, kernel: Kernel) -> list[str]:
    """Return the answers to one script."""
    answers = []
    with ExitStack() as held:
        for step in script.steps:
            if isinstance(step, Hold):
                held.enter_context(kernel.hold(step.address))
            else:
                answers.append(kernel.write(step.path, step.value))
        return answers + [_state(kernel, address) for address in script.about]


def _state(kernel: Kernel, address: str) -> str:
    text = kernel.override(address)
    shown = text if len(text) <= LONGEST_SHOWN else f"<{len(text)} bytes>"
    return f"{kernel.driver(address)} {shown}"


def recorded(release: str) -> dict[str, list[str]]:
    """Return the answers by script of the real kernel of a release: 6.1 or 7.2."""
    answers: dict[str, list[str]] = json.loads(ANSWERS.read_text())
    return answers | (json.loads(OTHERWISE.read_text()) if release.startswith("7.") else {})


def record(answers: dict[str, list[str]], path: Path) -> None:
    """Write answers, one script per line."""
    lines = (f"{json.dumps(name)}: {json.dumps(words)}" for name, words in answers.items())
    path.write_text("{\n  " + ",\n  ".join(lines) + "\n}\n")


def override(address: str, value: bytes | str) -> Write:
    """Write a function's driver_override."""
    return Write(f"devices/{address}/driver_override", _bytes(value))


def bind(driver: str, value: bytes | str) -> Write:
    """Write to a driver's bind."""
    return Write(f"drivers/{driver}/bind", _bytes(value))


def unbind(driver: str, value: bytes | str) -> Write:
    """Write to a driver's unbind."""
    return Write(f"drivers/{driver}/unbind", _bytes(value))


def probe(value: str) -> Write:
    """Write to the bus's drivers_probe."""
    return Write("drivers_probe", _bytes(value))


def attribute(address: str, name: str, value: str) -> Write:
    """Write to another attribute of a function."""
    return Write(f"devices/{address}/{name}", _bytes(value))


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def to_vfio(driver: str, address: str) -> tuple[Write, ...]:
    """Move a function to vfio-pci in the order that leaves no window."""
    return override(address, "vfio-pci"), unbind(driver, address), bind("vfio-pci", address)


def _override_scripts() -> list[Script]:
    values: dict[str, bytes | str] = {
        "of 4094 bytes": b"x" * 4094,
        "of 4095 bytes": b"x" * 4095,
        "that is empty": b"",
        "that is a newline": b"\n",
        "that is a NUL": b"\0",
        "with a newline behind": b"name\n",
        "with a newline inside": b"a\nb",
        "with a NUL inside": b"ab\0cd",
        "with a space before": b" vfio-pci",
        "with a space behind": b"vfio-pci ",
        "that is not UTF-8": b"\xff\xfe",
        "of an unknown driver": b"nosuchdriver",
        "that reads like none": b"(null)",
    }
    return [
        Script(f"override {name}", (override(NIC0, "before"), override(NIC0, value)), (NIC0,))
        for name, value in values.items()
    ]


UNBIND_SCRIPTS = [
    Script("unbind from another driver", (unbind("vfio-pci", NIC0),), (NIC0,)),
    Script("unbind an unknown address", (unbind("e1000e", NOWHERE),), ()),
    Script("unbind twice", (unbind("e1000e", NIC0), unbind("e1000e", NIC0)), (NIC0,)),
    Script("unbind with a newline", (unbind("e1000e", f"{NIC0}\n"),), (NIC0,)),
    Script("unbind with two newlines", (unbind("e1000e", f"{NIC0}\n\n"),), (NIC0,)),
    Script("unbind by a link that is gone",
           (unbind("e1000e", NIC0), attribute(NIC0, "driver/unbind", NIC0)), (NIC0,)),
]  # fmt: skip

BIND_SCRIPTS = [
    Script("bind a function the driver does not know", (bind("e1000e", EDU),), (EDU,)),
    Script("bind without an override", (unbind("e1000e", NIC0), bind("vfio-pci", NIC0)), (NIC0,)),
    Script("bind against the override",
           (override(NIC0, "vfio-pci"), unbind("e1000e", NIC0), bind("e1000e", NIC0)), (NIC0,)),
    Script("bind what is bound to it", (bind("e1000e", NIC0),), (NIC0,)),
    Script("bind what is bound to another",
           (override(NIC0, "vfio-pci"), bind("vfio-pci", NIC0)), (NIC0,)),
    Script("bind an unknown address", (bind("e1000e", NOWHERE),), ()),
    Script("bind to a driver that is not there", (bind("nosuchdriver", NIC0),), (NIC0,)),
    Script("bind with a newline", (unbind("e1000e", NIC0), bind("e1000e", f"{NIC0}\n")), (NIC0,)),
    Script("bind all four to vfio-pci",
           sum((to_vfio("e1000e", nic) for nic in (NIC0, NIC1, NIC2, NIC3)), ()),
           (NIC0, NIC1, NIC2, NIC3)),
    Script("bind a bridge to vfio-pci", to_vfio("pcieport", PORT), (PORT,)),
    Script("bind a function without driver to vfio-pci",
           (override(EDU, "vfio-pci"), bind("vfio-pci", EDU)), (EDU,)),
    Script("bind a PF with VFs to vfio-pci",
           (*to_vfio("nvme", NVME), attribute(NVME, "sriov_numvfs", "0")), (NVME, VF)),
    Script("bind a VF that is not probed", (bind("nvme", VF),), (VF,)),
    Script("bind a VF with an override", (override(VF, "nvme"), bind("nvme", VF)), (VF,)),
    Script("give back with the old override first",
           (override(NIC0, "vfio-pci"), unbind("e1000e", NIC0), bind("vfio-pci", NIC0),
            unbind("vfio-pci", NIC0), bind("e1000e", NIC0),
            override(NIC0, "e1000e"), bind("e1000e", NIC0), override(NIC0, "vfio-pci")), (NIC0,)),
]  # fmt: skip

PROBE_SCRIPTS = [
    Script("probe an unknown address", (probe(NOWHERE),), ()),
    Script("probe a short address", (probe("01:00.0"),), ()),
    Script("probe an address with junk", (probe(f"{NIC0} x"),), ()),
    Script("probe what is bound", (probe(NIC0),), (NIC0,)),
    Script("probe what no driver knows", (probe(EDU),), (EDU,)),
    Script("probe what was unbound", (unbind("e1000e", NIC0), probe(NIC0)), (NIC0,)),
    Script("probe what an override names",
           (override(NIC0, "vfio-pci"), unbind("e1000e", NIC0), probe(NIC0)), (NIC0,)),
    Script("probe what an override hides",
           (override(NIC0, "nosuchdriver"), unbind("e1000e", NIC0), probe(NIC0)), (NIC0,)),
    Script("probe a VF that is not probed", (probe(VF),), (VF,)),
    Script("probe where the driver fails",
           (override(PORT, "vfio-pci"), unbind("pcieport", PORT), probe(PORT)), (PORT,)),
]  # fmt: skip

ID_SCRIPTS = [
    Script("new_id that the driver knows", (Write("drivers/e1000e/new_id", b"8086 10d3"),), ()),
    Script("new_id twice",
           (Write("drivers/vfio-pci/new_id", b"1234 5678"), Write("drivers/vfio-pci/new_id", b"1234 5678"),
            Write("drivers/vfio-pci/remove_id", b"1234 5678"), Write("drivers/vfio-pci/remove_id", b"1234 5678")), ()),
    Script("new_id of one field", (Write("drivers/vfio-pci/new_id", b"1234"),), ()),
    Script("new_id binds what is unbound",
           (Write("drivers/vfio-pci/new_id", b"1234 11e8"), Write("drivers/vfio-pci/remove_id", b"1234 11e8")), (EDU,)),
]  # fmt: skip

SRIOV_SCRIPTS = [
    Script("more VFs than there can be", (attribute(NVME, "sriov_numvfs", "5"),), (NVME,)),
    Script("another number of VFs", (attribute(NVME, "sriov_numvfs", "2"),), (NVME,)),
    Script("VFs of a PF without driver",
           (unbind("nvme", NVME), attribute(NVME, "sriov_numvfs", "0")), (NVME, VF)),
]  # fmt: skip

RESET_SCRIPTS = [
    Script("reset with another value", (attribute(NIC0, "reset", "2"),), (NIC0,)),
    Script("reset without a method",
           (attribute(NIC0, "reset_method", "\n"), attribute(NIC0, "reset", "1"),
            attribute(NIC0, "reset_method", "default"), attribute(NIC0, "reset", "1")), (NIC0,)),
    Script("unknown reset method", (attribute(NIC0, "reset_method", "kick"),), ()),
]  # fmt: skip

HELD: tuple[Any, ...] = (
    *to_vfio("e1000e", NIC0),
    unbind("e1000e", NIC1),
    unbind("e1000e", NIC2),
    unbind("e1000e", NIC3),
    Hold(NIC0),
)

HOLD_SCRIPTS = [
    Script("bind a host driver beside a guest", (*HELD, bind("e1000e", NIC1)), (NIC1,)),
    Script("probe a host driver beside a guest", (*HELD, probe(NIC1)), (NIC1,)),
    Script("bind vfio-pci beside a guest",
           (*HELD, override(NIC1, "vfio-pci"), bind("vfio-pci", NIC1)), (NIC1,)),
]  # fmt: skip

SCRIPTS = [
    *_override_scripts(), *UNBIND_SCRIPTS, *BIND_SCRIPTS, *PROBE_SCRIPTS,
    *ID_SCRIPTS, *SRIOV_SCRIPTS, *RESET_SCRIPTS, *HOLD_SCRIPTS,
]  # fmt: skip
