# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What an emulator binary can do: its machines, CPU models, devices and the properties we ask about.

Comes from the binary itself, asked over QMP without a machine; what such a probe once said about QEMU
7.2 is stored beside this module and serves where the binary is absent:

    python -m pyhostdev.qemu.qemu_capabilities /usr/bin/qemu-system-x86_64 -o x86_64.json

Mirrors: src/qemu/qemu_capabilities.c
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from pyhostdev.errors import ConfigUnsupportedError, OperationError

STORED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "capabilities")

# libvirt's architecture names, where QEMU's target has another
TARGETS = {"i686": "i386", "armv7l": "arm"}

# devices whose properties are recorded: those that decide what we may write on a command line
ASKED_DEVICES = (
    "vfio-pci",
    "vfio-pci-nohotplug",
    "pcie-root-port",
    "pci-bridge",
    "intel-iommu",
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-gpu-pci",
    "usb-host",
    "usb-redir",
    "ICH9-LPC",
    "PIIX4_PM",
)

# -device takes these names, too, which are those of no type
DEVICE_ALIASES = {"ahci": "ich9-ahci", "lsi": "lsi53c895a", "virtio-iommu": "virtio-iommu-pci"}

_DEADLINE_S = 30


class Machine(NamedTuple):
    """One machine type of a binary."""

    name: str
    alias: str | None = None
    is_default: bool = False
    default_cpu: str | None = None  # a model name, as libvirt spells it
    ram_id: str | None = None  # the memory backend's id


class QEMUCapabilities:
    """
    What one binary can do; compared by nobody, changed by nobody.

    Mirrors: virQEMUCaps (src/qemu/qemu_capabilities.c)
    """

    __slots__ = ("_aliases", "_machines", "arch", "cpus", "devices", "properties", "types", "version")

    def __init__(self, data: dict[str, Any]) -> None:
        self.arch: str = data["arch"]
        self.version: tuple[int, ...] = tuple(data["version"])
        self.cpus = frozenset(data["cpus"])
        self.devices = frozenset(data["devices"])
        self.types = frozenset(data["objects"])
        self.properties = {name: frozenset(found) for name, found in data["properties"].items()}
        self._machines = {row["name"]: Machine(**row) for row in data["machines"]}
        self._aliases = {machine.alias: machine.name for machine in self._machines.values() if machine.alias}

    def canonical_machine(self, name: str) -> str:
        """Return the name behind an alias ("pc" is "pc-i440fx-7.2"); others as they are."""
        return self._aliases.get(name, name)

    def default_machine(self) -> str | None:
        """Return the machine QEMU takes when none is named, None where it takes none."""
        return next((m.name for m in self._machines.values() if m.is_default), None)

    def has_machine(self, name: str) -> bool:
        """Return True when the binary has the machine, by name or alias."""
        return name in self._machines or name in self._aliases

    def machine(self, name: str) -> Machine:
        """
        Return what is known about a machine.

        Raises:
            ConfigUnsupportedError: the binary has no such machine.
        """
        try:
            return self._machines[self.canonical_machine(name)]
        except KeyError:
            raise ConfigUnsupportedError(f"The {self.arch} emulator has no machine type '{name}'") from None

    def default_cpu(self, machine: str) -> str | None:
        """Return the CPU model the machine has when none is named; None for an unknown machine."""
        row = self._machines.get(self.canonical_machine(machine))
        return row.default_cpu if row else None

    def has_device(self, name: str) -> bool:
        """Return True when ``-device name`` exists, under this or its full name."""
        return DEVICE_ALIASES.get(name, name) in self.devices

    def has_property(self, device: str, name: str) -> bool:
        """
        Return True when the device has the property.

        Raises:
            KeyError: the device's properties are not among the recorded ones (ASKED_DEVICES).
        """
        if device not in self.devices:
            return False
        return name in self.properties[device]

    def has_object(self, name: str) -> bool:
        """Return True when ``-object name`` exists."""
        return name in self.types


def load(arch: str) -> QEMUCapabilities:
    """
    Return the stored capabilities of an architecture, by libvirt's or QEMU's name.

    Raises:
        ConfigUnsupportedError: none are stored for it.
    """
    path = os.path.join(STORED, f"{TARGETS.get(arch, arch)}.json")
    if not arch.isidentifier() or not os.path.exists(path):
        raise ConfigUnsupportedError(f"No QEMU capabilities are known for the architecture '{arch}'")
    with open(path, encoding="utf-8") as file:
        return QEMUCapabilities(json.load(file))


def for_emulator(path: str | None, arch: str) -> QEMUCapabilities:
    """
    Return what the emulator at path can do, or the stored answer where there is none to ask.

    Raises:
        ConfigUnsupportedError: it is absent, and nothing is stored for the architecture.
        OperationError: it is there and cannot be asked.

    Host:
        runs the emulator of the machine we run on, whatever root the devices are read from.
    """
    if path and os.path.isfile(path) and os.access(path, os.X_OK):
        return probe(path)
    return load(arch)


def probe(binary: str) -> QEMUCapabilities:
    """
    Ask a binary.

    Raises:
        OperationError: it does not run, does not answer, or is no QEMU.
    """
    return QEMUCapabilities(probe_data(binary))


def probe_data(binary: str) -> dict[str, Any]:
    """
    Ask a binary and return what is stored about it.

    Raises:
        OperationError: it does not run, does not answer, or is no QEMU.
    """
    questions = [
        ("query-version", {}),
        ("query-target", {}),
        ("query-machines", {}),
        ("query-cpu-definitions", {}),
        ("qom-list-types", {"implements": "device", "abstract": False}),
        ("qom-list-types", {"implements": "cpu", "abstract": False}),
        ("qom-list-types", {"implements": "user-creatable", "abstract": False}),
    ]
    properties = [("device-list-properties", {"typename": name}) for name in ASKED_DEVICES]
    version, target, machines, cpus, devices, cpu_types, objects, *found = _ask(binary, questions + properties)
    models = _cpu_models(cpus or [], target["arch"])
    plain = {row["name"] for row in devices} - {row["name"] for row in cpu_types}
    return {
        "arch": target["arch"],
        "version": [version["qemu"][part] for part in ("major", "minor", "micro")],
        "machines": sorted((_machine(row, models) for row in machines), key=lambda row: row["name"]),
        "cpus": sorted(set(models.values())),
        "devices": sorted(plain),
        "objects": sorted(row["name"] for row in objects),
        "properties": {
            name: sorted(row["name"] for row in rows)
            for name, rows in zip(ASKED_DEVICES, found, strict=True)
            if rows is not None
        },
    }


def _cpu_models(definitions: list[dict[str, Any]], target: str) -> dict[str, str]:
    """Return type name to model name; of several names the first is the one users write."""
    models: dict[str, str] = {}
    for row in definitions:
        name = row["name"].upper() if target == "ppc64" else row["name"]
        models.setdefault(row.get("typename", name), name)
    return models


def _machine(row: dict[str, Any], models: dict[str, str]) -> dict[str, Any]:
    """Return the parts of a machine's description that we use, leaving out what it does not say."""
    kept = {
        "name": row["name"],
        "alias": row.get("alias"),
        "is_default": row.get("is-default"),
        "default_cpu": models.get(row.get("default-cpu-type", "")),
        "ram_id": row.get("default-ram-id"),
    }
    return {key: value for key, value in kept.items() if value}


def _ask(binary: str, questions: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """
    Return the answers in order; None where the binary says there is no such thing.

    All questions are sent at once and the emulator told to quit: it answers in order.
    """
    commands: list[dict[str, Any]] = [{"execute": "qmp_capabilities"}]
    commands += [
        {"execute": name, "arguments": arguments, "id": number} for number, (name, arguments) in enumerate(questions)
    ]
    commands.append({"execute": "quit"})
    text = "".join(json.dumps(command) + "\n" for command in commands)
    answers = {row.get("id"): row for row in map(json.loads, _run(binary, text).splitlines())}
    try:
        return [answers[number].get("return") for number in range(len(questions))]
    except KeyError:
        raise OperationError(f"'{binary}' did not answer all that was asked over QMP") from None


def _run(binary: str, commands: str) -> str:
    import subprocess

    arguments = [binary, "-M", "none", "-S", "-nodefaults", "-no-user-config"]
    arguments += ["-display", "none", "-qmp", "stdio"]
    try:
        done = subprocess.run(arguments, input=commands, capture_output=True, text=True, timeout=_DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise OperationError(f"The emulator '{binary}' cannot be asked: {err}") from err
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise OperationError(f"The emulator '{binary}' cannot be asked: {why[0]}")
    return done.stdout


def _main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Record what an emulator binary can do.")
    parser.add_argument("binary")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    with open(options.output, "w", encoding="utf-8") as file:
        json.dump(probe_data(options.binary), file, indent=0, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    _main()
