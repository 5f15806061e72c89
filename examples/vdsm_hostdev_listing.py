#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The host device listing of a virtualisation agent: one entry per PCI function, named as libvirt names it.

    vdsm_hostdev_listing.py [DIR]   prints it as JSON; DIR takes the place of /
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyhostdev


def describe(host: pyhostdev.Host, dev: pyhostdev.PCIDevice, *, assignable: bool) -> dict[str, Any]:
    """Return what a management application needs to offer the function to a guest."""
    node = host.node_device(dev.address)
    assert node is not None
    params: dict[str, Any] = {
        "capability": "pci",
        "parent": node.parent,
        "address": {name: str(getattr(dev.address, name)) for name in ("domain", "bus", "slot", "function")},
        "vendor_id": f"0x{dev.vendor:04x}",
        "product_id": f"0x{dev.device:04x}",
        "vendor": node.pci.vendor_name or "",
        "product": node.pci.product_name or "",
        "driver": dev.driver or "",
        "is_assignable": str(assignable).lower(),
    }
    if dev.iommu_group is not None:
        params["iommu_group"] = str(dev.iommu_group)
    if dev.numa_node is not None:
        params["numa_node"] = str(dev.numa_node)
    if dev.physfn is not None:
        params["physfn"] = f"pci_{str(dev.physfn).translate(str.maketrans(':.', '__'))}"
    if dev.sriov_totalvfs:
        params["totalvfs"] = dev.sriov_totalvfs
    return {"params": params}


def list_devices(host: pyhostdev.Host) -> dict[str, dict[str, Any]]:
    """Return all functions of a host by their node device names."""
    scan = host.scan()
    return {
        f"pci_{str(dev.address).translate(str.maketrans(':.', '__'))}": describe(
            host, dev, assignable=not dev.is_bridge and bool(scan.is_assignable(dev))
        )
        for dev in scan
    }


if __name__ == "__main__":
    print(json.dumps(list_devices(pyhostdev.Host(*sys.argv[1:])), indent=2))
