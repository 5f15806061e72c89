#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A PCI tracker as a compute service has it: pools of equal devices, claimed for an instance and freed again.

The pools hold what a guest can get now. A claim takes whole IOMMU groups: the other functions
stay detached until the instance is freed. nova_pci_tracker.py [DIR] prints the pools.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import pyhostdev

DOMAIN = """<domain type='kvm'><name>{name}</name><memory unit='MiB'>1024</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"""
HOSTDEV = """<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='{a.domain:#x}' bus='{a.bus:#x}'
slot='{a.slot:#x}' function='{a.function:#x}'/></source></hostdev>"""


class PciTracker:
    """Which devices of a host are free, and which instance has the others; the records are pyhostdev's own."""

    def __init__(self, host: pyhostdev.Host) -> None:
        self.host = host
        self.manager = pyhostdev.HostdevManager(host)

    def pools(self) -> dict[str, list[str]]:
        """Return the addresses of free devices by vendor and product."""
        scan, used = self.host.scan(), {dev.address for dev in self.manager.status().active}
        found: dict[str, list[str]] = defaultdict(list)
        for dev in scan:
            others = all(obstacle.reason == "group-not-viable" for obstacle in scan.obstacles(dev))  # claimed together
            if dev.address not in used and others:
                found[f"{dev.vendor:04x}:{dev.device:04x}"].append(str(dev.address))
        return dict(found)

    def claim(self, instance: str, product: str, count: int = 1) -> list[str]:
        """
        Detach devices for an instance and return those that its guest gets.

        Raises:
            LookupError: too few devices are free; pyhostdev.RefusedError: the plan has obstacles. Nothing is changed.
        """
        chosen = [pyhostdev.PCIDeviceAddress.parse(text) for text in self.pools().get(product, ())[:count]]
        if len(chosen) < count:
            raise LookupError(f"{len(chosen)} devices {product} are free, {count} are wanted")
        devices = "".join(HOSTDEV.format(a=address) for address in chosen)
        domain = pyhostdev.DomainDef.parse(DOMAIN.format(name=instance, devices=devices))
        plan = self.host.plan(domain.completed(self.host.plan(domain)))
        self.manager.prepare(plan)
        return [str(address) for address in chosen]

    def free(self, instance: str) -> bool:
        """Give an instance's devices back; False if it has none."""
        return bool(self.manager.release(instance))


if __name__ == "__main__":
    print(json.dumps(PciTracker(pyhostdev.Host(*sys.argv[1:])).pools(), indent=2))
