# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What an emulator binary can do: its machines, CPU models, devices and their properties.
"""

from __future__ import annotations

import copy
import json
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigError, ConfigUnsupportedError, OperationError
from pyhostdev.qemu.qemu_capabilities.answers import VERSION_MAX, Machine, checked
from pyhostdev.util.deprecation import warn_renamed
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Set

DEFAULT_VERSION = "11.1"  # the QEMU of the default libvirt release
STORED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stored")

# QEMU's target, where its name differs from libvirt's architecture
TARGETS = {"i686": "i386", "armv7l": "arm", "ppc64le": "ppc64"}

# names that -device accepts although no type has them -> the type
DEVICE_ALIASES = {
    "ahci": "ich9-ahci",
    "lsi": "lsi53c895a",
    "virtio-iommu": "virtio-iommu-pci",
    "virtio-net": "virtio-net-pci",
}

# the first part of a machine's name -> the QOM type that has the options of all its machines
_FAMILIES = (
    ("pc", "generic-pc-machine"),
    ("q35", "generic-pc-machine"),
    ("isapc", "generic-pc-machine"),
    ("pseries", "spapr-machine"),
    ("virt", "virt-machine"),
)

# options that QEMU removed -> the version without them (docs/about/removed-features.rst)
_REMOVED_OPTIONS = {"no-acpi": (9, 0), "no-hpet": (9, 0)}

_VERSION = re.compile(r"[0-9]+\.[0-9]+")


class QEMUCapabilities:
    """
    What one binary can do; immutable.

    ``origin`` describes the source in words. ``why_stored`` is the reason why the emulator was not probed; None if it
    was probed, or if the caller chose the source.

    Raises:
        ConfigError: the data does not describe an emulator.

    Mirrors: virQEMUCaps (src/qemu/qemu_capabilities.c)
    """

    __slots__ = (
        "_aliases",
        "_machines",
        "arch",
        "cpus",
        "devices",
        "origin",
        "properties",
        "types",
        "version",
        "why_stored",
    )

    def __init__(self, data: dict[str, Any], origin: str | None = None, why_stored: str | None = None) -> None:
        try:
            answers = checked(data)
        except ValueError as err:
            raise ConfigError(f"The data does not describe what an emulator can do: {err}") from err
        self.arch = answers.arch
        self.version = answers.version
        self.cpus = answers.cpus
        self.devices = answers.devices
        self.types = answers.objects
        self.properties = answers.properties
        self._machines = answers.machines
        self._aliases = {machine.alias: machine.name for machine in self._machines.values() if machine.alias}
        self.origin = origin or f"capabilities of QEMU {self.release}"
        self.why_stored = why_stored

    @property
    def release(self) -> str:
        """The version as text: 7.2.22."""
        return ".".join(map(str, self.version))

    @property
    def why_not_probed(self) -> str:
        """The end of a sentence: why the emulator was not probed; empty if it was."""
        return f" (not probed: {self.why_stored})" if self.why_stored else ""

    @property
    def apology(self) -> str:
        """The old spelling of ``why_not_probed``."""
        warn_renamed("apology", "why_not_probed")
        return self.why_not_probed

    def canonical_machine(self, name: str) -> str:
        """Return the name that an alias stands for ("pc" is "pc-i440fx-7.2"), any other name unchanged."""
        return self._aliases.get(name, name)

    def default_machine(self) -> str | None:
        """Return QEMU's default machine, None without one."""
        return next((m.name for m in self._machines.values() if m.is_default), None)

    def has_machine(self, name: str) -> bool:
        """Return True if the binary has the machine, by name or alias."""
        return name in self._machines or name in self._aliases

    def machine(self, name: str) -> Machine:
        """
        Return the facts about a machine.

        Raises:
            ConfigUnsupportedError: the binary has no such machine.
        """
        try:
            return self._machines[self.canonical_machine(name)]
        except KeyError:
            raise ConfigUnsupportedError(self.unknown_machine(name)) from None

    def with_machine_like(self, name: str, known: str) -> QEMUCapabilities:
        """
        Return these capabilities with one more machine, which has the abilities of a known one.

        ``why_stored`` of the result names it.
        """
        alike = self.machine(known)
        found = copy.copy(self)
        found._machines = {**self._machines, name: alike._replace(name=name, alias=None, is_default=False)}
        found.why_stored = f"{self.why_stored}; machine type '{name}' counts as '{alike.name}'"
        return found

    def unknown_machine(self, name: str) -> str:
        """Return the message about a machine type that these capabilities do not have."""
        return f"Machine type '{shown(name)}' is not in the {self.origin} for {self.arch}{self.why_not_probed}"

    def default_cpu(self, machine: str) -> str | None:
        """Return the default CPU model of a machine, None for an unknown machine."""
        row = self._machines.get(self.canonical_machine(machine))
        return row.default_cpu if row else None

    def has_device(self, name: str) -> bool:
        """Return True if ``-device name`` exists; name may be an alias of the type."""
        return DEVICE_ALIASES.get(name, name) in self.devices

    def has_property(self, device: str, name: str) -> bool:
        """Return True if the device has the property: the old spelling of a question to ``properties_of``."""
        warn_renamed("has_property", "properties_of")
        return device in self.devices and name in self.properties[device]

    def properties_of(self, kind: str, default: Set[str] = frozenset()) -> Set[str]:
        """Return the recorded properties of a device or object; default if they are not recorded."""
        return self.properties.get(DEVICE_ALIASES.get(kind, kind), default)

    def has_object(self, name: str) -> bool:
        """Return True if ``-object name`` exists."""
        return name in self.types

    def has_machine_option(self, machine: str, name: str) -> bool:
        """Return True if ``-machine machine,name=`` exists; False if the machine's options are not recorded."""
        family = self.canonical_machine(machine).split("-")[0]
        kind = dict(_FAMILIES).get(family, "")
        return name in self.properties.get(kind, ())

    def has_option(self, name: str) -> bool:
        """Return True unless this version has removed the option."""
        return self.version < _REMOVED_OPTIONS.get(name, (VERSION_MAX + 1,))


def load(arch: str, version: str | None = None, *, why_stored: str | None = None) -> QEMUCapabilities:
    """
    Return the stored capabilities of an architecture; both libvirt's and QEMU's names are accepted.

    Args:
        version: MAJOR.MINOR of a stored release; DEFAULT_VERSION when None.
        why_stored: why the emulator was not probed.

    Raises:
        ConfigUnsupportedError: no capabilities are stored for it.
    """
    release = version or DEFAULT_VERSION
    path = os.path.join(STORED, release, f"{TARGETS.get(arch, arch)}.json")
    if not (arch.isidentifier() and release in stored_versions() and os.path.exists(path)):
        known = ", ".join(stored_versions())
        raise ConfigUnsupportedError(
            f"No capabilities of QEMU {release} for the architecture '{arch}' are stored (releases: {known})"
            + (f", and the emulator was not probed: {why_stored}" if why_stored else "")
        )
    return _read_stored(path, release, why_stored)


@lru_cache(maxsize=32)
def _read_stored(path: str, release: str, why_stored: str | None) -> QEMUCapabilities:
    """Return the capabilities in a stored file; cached, since the files never change."""
    with open(path, encoding="utf-8") as file:
        return QEMUCapabilities(json.load(file), f"stored capabilities of QEMU {release}", why_stored)


def stored_versions() -> list[str]:
    """Return the releases whose capabilities are stored, oldest first."""
    found = [name for name in os.listdir(STORED) if _VERSION.fullmatch(name)]
    return sorted(found, key=lambda name: tuple(map(int, name.split("."))))


def probe(binary: str) -> QEMUCapabilities:
    """
    Return the capabilities of a binary after running it.

    Raises:
        OperationError: the binary does not run, does not answer, or is not QEMU.
    """
    try:
        return QEMUCapabilities(probe_data(binary), f"capabilities of the emulator '{binary}'")
    except ConfigError as err:
        raise OperationError(f"Cannot probe the emulator '{binary}': {err.message}") from err


def probe_data(binary: str) -> dict[str, Any]:
    """
    Run a binary and return the facts about it, in the form that is stored.

    Raises:
        OperationError: the binary does not run, does not answer, or is not QEMU.
    """
    from pyhostdev.qemu.qemu_capabilities.probing import ask

    return ask(binary)
