#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Keep PCI functions of a Kubernetes node parked on vfio-pci: kubernetes_park.py SELECTOR... (VENDOR:DEVICE or an address)

Run by the DaemonSet of kubernetes_park.yaml. At SIGTERM with PYHOSTDEV_RELEASE=yes the functions go back to their
drivers; else they stay parked for the next pod, which finds their records. PYHOSTDEV_ROOT names a simulated host.
"""

from __future__ import annotations

import os
import signal
import sys

import pyhostdev

OWNER = "node"
DOMAIN = """<domain type='kvm'><name>{name}</name><memory unit='MiB'>1024</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"""
HOSTDEV = """<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='{a.domain:#x}' bus='{a.bus:#x}'
slot='{a.slot:#x}' function='{a.function:#x}'/></source><address type='unassigned'/></hostdev>"""


def open_host() -> pyhostdev.Host:
    """Return the node, or the simulated host of the tests."""
    root = os.environ.get("PYHOSTDEV_ROOT", "/")
    if root == "/":
        return pyhostdev.Host("/")
    from pyhostdev.testing.kernel import SimulatedKernel

    return pyhostdev.Host(root, writer=SimulatedKernel(pyhostdev.HostRoot(root)))


def chosen(host: pyhostdev.Host, selectors: list[str]) -> list[pyhostdev.PCIDeviceAddress]:
    """Return the functions that a selector names, bridges left out."""
    wanted = {selector.lower() for selector in selectors}
    found = [dev for dev in host.scan() if not dev.is_bridge]
    return [dev.address for dev in found if {str(dev.address), f"{dev.vendor:04x}:{dev.device:04x}"} & wanted]


def park(host: pyhostdev.Host, manager: pyhostdev.HostdevManager, selectors: list[str]) -> None:
    """Detach the functions and all that must go with them; those that this owner has stay as they are."""
    devices = "".join(HOSTDEV.format(a=address) for address in chosen(host, selectors))
    domain = pyhostdev.DomainDef.parse(DOMAIN.format(name=OWNER, devices=devices))
    manager.recover()
    manager.prepare(host.plan(domain.completed(host.plan(domain))))


def main(selectors: list[str]) -> int:
    """Park, report, wait for the end of the pod."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    host = open_host()
    manager = pyhostdev.HostdevManager(host)
    for selector in selectors:
        if not chosen(host, [selector]):
            print(f"note: no function of this node matches {selector}", file=sys.stderr)
    park(host, manager, selectors)
    print("parked:", " ".join(str(dev.address) for dev in manager.status().active), flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    if os.environ.get("PYHOSTDEV_RELEASE") == "yes":
        manager.release(OWNER)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
