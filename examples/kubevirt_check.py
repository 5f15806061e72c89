#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Check that KubeVirt's permittedHostDevices match a host: kubevirt_check.py KUBEVIRT.json [DIR]

    kubectl get kubevirt -n kubevirt kubevirt -o json | kubevirt_check.py /dev/stdin

KubeVirt offers a function by vendor and device if it is bound to vfio-pci. The exit code is 1 if a permitted device is
absent, is bound to another driver, or shares its IOMMU group with a function that the host uses.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pyhostdev


def permitted(text: str) -> dict[str, str]:
    """Return the resource name of each permitted vendor and device."""
    configuration = json.loads(text)["spec"].get("configuration", {})
    devices = configuration.get("permittedHostDevices", {}).get("pciHostDevices", [])
    return {device["pciVendorSelector"].lower(): device["resourceName"] for device in devices}


def faults(scan: pyhostdev.Scan, selectors: dict[str, str]) -> Iterator[str]:
    """Yield one sentence for each way in which the host and the list differ."""
    by_id: dict[str, list[pyhostdev.PCIDevice]] = {}
    for dev in scan:
        by_id.setdefault(f"{dev.vendor:04x}:{dev.device:04x}", []).append(dev)
    for selector, resource in selectors.items():
        if selector not in by_id:
            yield f"{resource}: the host has no device {selector}"
        for dev in by_id.get(selector, ()):
            if not dev.is_vfio:
                yield f"{resource}: {dev.address} is bound to {dev.driver or 'no driver'}, which KubeVirt ignores"
            group = () if dev.iommu_group is None else scan.groups[dev.iommu_group]
            for other in group:
                if not (other.is_vfio or other.is_bridge or other.driver is None or other.address == dev.address):
                    yield f"{resource}: {dev.address} shares its group with {other.address}, which {other.driver} uses"
    for selector, found in by_id.items():
        if selector not in selectors and any(dev.is_vfio for dev in found):
            yield f"note: {selector} is bound to vfio-pci, but not permitted"


def main(path: str, root: str = "/") -> int:
    """Print the differences; notes do not count."""
    with open(path, encoding="utf-8") as stream:
        found = list(faults(pyhostdev.Host(root).scan(), permitted(stream.read())))
    print("\n".join(found) or "the list matches the host")
    return 1 if any(not line.startswith("note: ") for line in found) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
