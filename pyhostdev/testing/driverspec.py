# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The description of a driver; a separate module because every simulating process loads it.
"""

from __future__ import annotations

from pyhostdev.util.typed import NamedTuple

VMD = "vmd"  # the driver of volume management devices


class DriverSpec(NamedTuple):
    """One driver of a described host; ``availability`` is loaded, available or missing."""

    name: str
    ids: tuple[str, ...] = ()
    kind: str = "host"  # host, managed-dma or vfio
    module: str | None = None
    availability: str = "loaded"
    probe: str | None = None
    remove: str | None = None


def driver_kind(name: str) -> str:
    """
    Return how a driver treats its group's DMA, by its name.

    Source: users of driver_managed_dma in Linux 6.1 (vfio-pci and its variants, pci-stub, the port driver)
    """
    if name.endswith(("vfio-pci", "vfio_pci")):
        return "vfio"
    return "managed-dma" if name in ("pci-stub", "pcieport") else "host"
