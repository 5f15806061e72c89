# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The sysfs directory of a driver, its module, and the module's lines of modules.alias.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.testing.simdevice import put_file, put_link

if TYPE_CHECKING:
    from pyhostdev.testing.treefile import DriverSpec
    from pyhostdev.util.hostroot import HostRoot

_DRIVER_FILES = ("bind", "unbind", "new_id", "remove_id", "uevent")


def put_driver(root: HostRoot, spec: DriverSpec) -> None:
    """
    Register a driver: its directory, its module's, and the links between them.

    Host: writes ``sys/bus/pci/drivers/NAME``, ``sys/module/NAME``
    """
    directory = root.pci_driver(spec.name)
    os.makedirs(directory, exist_ok=True)
    for name in _DRIVER_FILES:
        put_file(os.path.join(directory, name), b"")
    if spec.module is not None:
        module = root.module(spec.module)
        os.makedirs(os.path.join(module, "drivers"), exist_ok=True)
        put_link(os.path.join(module, "drivers", f"pci:{spec.name}"), directory)
        put_link(os.path.join(directory, "module"), module)
    if spec.kind == "vfio":
        put_vfio_node(root)


def put_vfio_node(root: HostRoot) -> None:
    """Make the container's node, which comes with the vfio module."""
    os.makedirs(root.dev_vfio, exist_ok=True)
    put_file(os.path.join(root.dev_vfio, "vfio"), b"")


def module_aliases(spec: DriverSpec) -> list[str]:
    """Return a module's lines of modules.alias; those of vfio drivers have a prefix of their own."""
    if spec.module is None:
        return []
    prefix = "vfio_pci" if spec.kind == "vfio" else "pci"
    return [f"alias {prefix}:{_alias_fields(pattern)} {spec.module}" for pattern in spec.ids]


def _alias_fields(pattern: str) -> str:
    first, second = pattern.split(":")
    if first == "class":
        parts = [second[at : at + 2].upper() or "*" for at in (0, 2, 4)]
        return f"v*d*sv*sd*bc{parts[0]}sc{parts[1]}i{parts[2]}"
    vendor, device = (text if text == "*" else f"{int(text, 16):08X}" for text in (first, second))
    return f"v{vendor}d{device}sv*sd*bc*sc*i*"
