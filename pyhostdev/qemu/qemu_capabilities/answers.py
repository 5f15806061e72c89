# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The stored facts about an emulator, and the checks of data that comes from a file, a cache or a program.

The data may be hostile: names go into command lines and messages, so they must be plain words of bounded length, and
every value must have the expected type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pyhostdev.qemu.qemu_capabilities.asked import ASKED_DEVICES, ASKED_OBJECTS
from pyhostdev.util.typed import NamedTuple

NAMES_MAX = 100_000  # in one list; QEMU 7.2 for x86_64 has about 500 devices
VERSION_MAX = 9999

_SWITCHES = ("is_default", "acpi")  # of a machine
_NAME = re.compile(r"[\x20-\x7e]{1,256}")  # some CPU models of SPARC have spaces
_ARCH = re.compile(r"[a-z0-9_]{1,32}")


class Machine(NamedTuple):
    """One machine type of a binary."""

    name: str
    alias: str | None = None
    is_default: bool = False
    default_cpu: str | None = None  # the model's name in libvirt's spelling
    ram_id: str | None = None  # the id of the memory backend
    acpi: bool | None = None  # whether the machine supports ACPI; QEMU reports it since 8.0
    max_cpus: int | None = None


class Answers(NamedTuple):
    """All stored facts about one emulator."""

    arch: str
    version: tuple[int, ...]
    cpus: frozenset[str]
    devices: frozenset[str]
    objects: frozenset[str]
    properties: dict[str, frozenset[str]]
    machines: dict[str, Machine]


def checked(data: object) -> Answers:
    """
    Return the checked facts.

    Raises:
        ValueError: the data does not have the form that a probe writes; the message names the place.
    """
    table = _table(data, "the document")
    devices = _names(table.get("devices"), "devices")
    objects = _names(table.get("objects"), "objects")
    properties = {
        _name(name, "properties"): _names(found, "properties")
        for name, found in _table(table.get("properties"), "properties").items()
    }
    _check_recorded(properties, devices.intersection(ASKED_DEVICES) | objects.intersection(ASKED_OBJECTS))
    machines = [_machine(row) for row in _rows(table.get("machines"), "machines")]
    return Answers(
        _match(_ARCH, table.get("arch"), "arch"),
        _version(table.get("version")),
        _names(table.get("cpus"), "cpus"),
        devices,
        objects,
        properties,
        {machine.name: machine for machine in machines},
    )


def _check_recorded(properties: Mapping[str, Any], asked: Iterable[str]) -> None:
    unrecorded = sorted(name for name in asked if name not in properties)
    if unrecorded:
        raise ValueError(f"properties of {unrecorded[0]} are missing")


def _machine(row: object) -> Machine:
    table = _table(row, "machines")
    for key, value in table.items():
        if key not in Machine._fields:
            raise ValueError("machines have an unknown key")
        if key in _SWITCHES:
            _typed(value, bool, f"machines' {key}")
        elif key == "max_cpus":
            _typed(value, int, f"machines' {key}")
        elif not (value is None and key != "name"):
            _name(value, f"machines' {key}")
    _name(table.get("name"), "machines' name")
    return Machine(**table)


def _typed(value: object, kind: type, where: str) -> None:
    if type(value) is not kind:
        raise ValueError(f"{where}: a value is not of type {kind.__name__}")


def _version(value: object) -> tuple[int, ...]:
    parts = _rows(value, "version")
    if not 2 <= len(parts) <= 3 or not all(type(part) is int and 0 <= part <= VERSION_MAX for part in parts):
        raise ValueError("version is not two or three numbers")
    return tuple(parts)


def _names(value: object, where: str) -> frozenset[str]:
    rows: Iterable[object] = _rows(value, where)
    return frozenset(_name(name, where) for name in rows)


def _name(value: object, where: str) -> str:
    return _match(_NAME, value, where)


def _match(pattern: re.Pattern[str], value: object, where: str) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{where}: a value is not a valid name")
    return value


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a table")
    return value


def _rows(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list")
    if len(value) > NAMES_MAX:
        raise ValueError(f"{where} has more than {NAMES_MAX} entries")
    return value
