#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A libvirt hook: libvirt calls it as /etc/libvirt/hooks/qemu GUEST OPERATION SUB-OPERATION - with the domain on stdin.

If the plan has obstacles, the guest does not start and libvirt logs the reasons. libvirt detaches the devices with
``managed='yes'``; this hook prepares the rest (``managed='no'``, kept functions) and releases them. PYHOSTDEV_ROOT
names a simulated host for tests. A hook must not call libvirt.
"""

from __future__ import annotations

import os
import sys

import pyhostdev


def open_host() -> pyhostdev.Host:
    """Return the live host, or the simulated host of the tests."""
    root = os.environ.get("PYHOSTDEV_ROOT", "/")
    if root == "/":
        return pyhostdev.Host("/")
    from pyhostdev.testing.kernel import SimulatedKernel

    return pyhostdev.Host(root, writer=SimulatedKernel(pyhostdev.HostRoot(root)))


def managed_copy(domain: pyhostdev.DomainDef, *, all_of_them: bool) -> pyhostdev.DomainDef:
    """Return a copy with all PCI devices, or only those that libvirt does not detach; every device is managed."""
    copy = domain.copy()
    copy.hostdevs = [h for h in copy.hostdevs if all_of_them or (h.is_pci and not h.managed)]
    for hostdev in copy.pci_hostdevs():
        hostdev.managed = True
    return copy


def begin(domain: pyhostdev.DomainDef) -> int:
    """Refuse the start if the whole plan has obstacles, then prepare the devices that libvirt leaves."""
    host = open_host()
    plan = host.plan(managed_copy(domain, all_of_them=True))
    if not plan.ok:
        for finding in plan.obstacles:
            print(f"{finding.reason}: {finding.message}", file=sys.stderr)
        return 1
    rest = host.plan(managed_copy(domain, all_of_them=False), policy="off")
    pyhostdev.HostdevManager(host).prepare(rest)
    return 0


def main(argv: list[str]) -> int:
    """Act before the start and after the end of a guest; every other call succeeds at once."""
    guest, operation, moment = argv[:3]
    if (operation, moment) == ("prepare", "begin"):
        return begin(pyhostdev.DomainDef.parse(sys.stdin.read()))
    if (operation, moment) == ("release", "end"):
        pyhostdev.HostdevManager(open_host()).release(guest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
