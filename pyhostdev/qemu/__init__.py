# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU driver. Each exported name is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities, for_emulator
    from pyhostdev.qemu.qemu_capabilities.answers import Machine
    from pyhostdev.qemu.qemu_command import build_command_line
    from pyhostdev.qemu.qemu_domain import memlock_limit
    from pyhostdev.qemu.qemu_domain.define import define
    from pyhostdev.qemu.qemu_domain_address import assign_addresses
    from pyhostdev.qemu.qemu_driver.device_config import attach_device, detach_device, update_device
    from pyhostdev.qemu.qemu_hotplug import Guest
    from pyhostdev.qemu.qemu_hotplug.connection import QMPConnection
    from pyhostdev.qemu.qemu_hotplug.devices import PlannedUnit
    from pyhostdev.qemu.qemu_hotplug.finish import Finished
    from pyhostdev.qemu.qemu_hotplug.livestate import LiveState

__all__ = [
    "Finished",
    "Guest",
    "LiveState",
    "Machine",
    "PlannedUnit",
    "QEMUCapabilities",
    "QMPConnection",
    "assign_addresses",
    "attach_device",
    "build_command_line",
    "define",
    "detach_device",
    "for_emulator",
    "memlock_limit",
    "update_device",
]

_HOMES = {
    "Finished": "qemu_hotplug.finish",
    "Guest": "qemu_hotplug",
    "LiveState": "qemu_hotplug.livestate",
    "Machine": "qemu_capabilities.answers",
    "PlannedUnit": "qemu_hotplug.devices",
    "QEMUCapabilities": "qemu_capabilities",
    "QMPConnection": "qemu_hotplug.connection",
    "assign_addresses": "qemu_domain_address",
    "attach_device": "qemu_driver.device_config",
    "build_command_line": "qemu_command",
    "define": "qemu_domain.define",
    "detach_device": "qemu_driver.device_config",
    "for_emulator": "qemu_capabilities",
    "memlock_limit": "qemu_domain",
    "update_device": "qemu_driver.device_config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
