# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The devices that a simulated QEMU supports, and the checks of ``device_add``'s arguments in each release.
"""

from __future__ import annotations

from typing import Any

from pyhostdev.testing.qemuslots import QMPRefusal

STRICT_SINCE = (10, 0)  # since this release, a property accepts only its own type

_PCI = {"addr": "address", "multifunction": "boolean", "acpi-index": "uint32", "rombar": "uint32", "romfile": "string"}
_COMMON = {**_PCI, "bootindex": "int32", "failover_pair_id": "string"}
_VFIO = {"host": "string", "sysfsdev": "string", "display": "string", "x-pci-vendor-id": "uint32"}
_VFIO |= {"x-pci-device-id": "uint32", "x-no-mmap": "boolean"}
_SINCE_10 = {"iommufd": "string", "fd": "string"}
_NUMBERS = ("uint32", "int32")

DRIVERS = {
    "vfio-pci": {**_COMMON, **_VFIO},
    "e1000e": {**_COMMON, "mac": "string"},
    "virtio-net-pci": {**_COMMON, "mac": "string", "disable-legacy": "string"},
    "nvme": {**_COMMON, "serial": "string"},
}
_NOT_PLUGGABLE = ("vfio-pci-nohotplug",)


def check_driver(name: Any, version: tuple[int, int]) -> str:
    """
    Return the name of a driver that can be plugged.

    Raises:
        QMPRefusal: there is no such driver, or it does not support hot-plug.
    """
    if name is None:
        raise QMPRefusal("Parameter 'driver' is missing")
    if name in _NOT_PLUGGABLE and version < STRICT_SINCE:
        raise QMPRefusal("Parameter 'driver' expects a pluggable device type")
    if name in _NOT_PLUGGABLE:
        raise QMPRefusal(f"Device '{name}' does not support hotplugging")
    if name not in DRIVERS:
        raise QMPRefusal(f"'{name}' is not a valid device model name")
    return str(name)


def check_properties(driver: str, properties: dict[str, Any], version: tuple[int, int]) -> None:
    """
    Check the names and the types of a device's properties; old releases accept a string for any type.

    Raises:
        QMPRefusal: a property does not exist, or has another type.
    """
    known = {**DRIVERS[driver], **(_SINCE_10 if version >= STRICT_SINCE and driver == "vfio-pci" else {})}
    for name, value in properties.items():
        if name not in known:
            raise QMPRefusal(f"Property '{driver}.{name}' not found")
        if not _fits(known[name], value) and not (version < STRICT_SINCE and isinstance(value, str)):
            raise QMPRefusal(f"Invalid parameter type for '{name}', expected: {_expected(known[name], version)}")


def _fits(kind: str, value: Any) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if kind in _NUMBERS:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)  # addr as a number is accepted from 10.0 on only, and not simulated


def _expected(kind: str, version: tuple[int, int]) -> str:
    if kind in _NUMBERS and version >= STRICT_SINCE:
        return {"uint32": "uint64", "int32": "int64"}[kind]
    return {"uint32": "integer", "int32": "integer", "address": "string"}.get(kind, kind)


def is_true(value: Any) -> bool:
    """Return True if a switch is on, as a boolean or a string."""
    return value is True or value in ("on", "true", "yes")
