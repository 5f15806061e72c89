# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The objects that written paths refer to.
"""

from __future__ import annotations


def is_node(path: str) -> bool:
    """Tell whether a write is made to a node, for another owner or to open it; it waits for no device."""
    return path.startswith("dev/")


def path_components(path: str) -> list[str]:
    """Return the kind of object that a path below the root names (module, node, bus, driver, device), and the rest."""
    parts = path.split("/")
    if parts[0] == "modprobe":
        return ["module", *parts[1:]]
    if parts[:2] == ["dev", "vfio"] or parts == ["dev", "iommu"]:
        return ["node", *parts[2:]]
    if parts[:3] == ["sys", "bus", "pci"] and len(parts) == 4:
        return ["bus", *parts[3:]]
    if parts[:4] == ["sys", "bus", "pci", "drivers"]:
        return ["driver", *parts[4:]]
    if parts[:4] == ["sys", "bus", "pci", "devices"]:
        return ["device", *parts[4:]]
    if parts[:2] == ["sys", "devices"]:  # below bridges: the last address is the function's
        last = max((n for n, part in enumerate(parts) if part.count(":") == 2), default=0)
        return ["device", *parts[last:]]
    return []
