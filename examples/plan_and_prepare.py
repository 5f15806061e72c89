#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Plan a domain, prepare its devices, wait for Enter, release them: plan_and_prepare.py DOMAIN.xml [DIR]

With DIR, a directory made by FakeHost, a simulated kernel takes the place of the real one.
"""

from __future__ import annotations

import sys

import pyhostdev


def open_host(root: str) -> pyhostdev.Host:
    """Return the live host, or a directory together with a kernel that reacts in it."""
    if root == "/":
        return pyhostdev.Host("/")
    from pyhostdev.testing.kernel import SimulatedKernel

    return pyhostdev.Host(root, writer=SimulatedKernel(pyhostdev.HostRoot(root)))


def main(path: str, root: str = "/") -> int:
    """Return 0 if the devices were prepared and released, 1 if the plan refuses."""
    host = open_host(root)
    with open(path, encoding="utf-8") as stream:
        domain = pyhostdev.DomainDef.parse(stream.read())
    plan = host.plan(domain)
    print(plan.explain())
    if not plan.ok:
        return 1
    manager = pyhostdev.HostdevManager(host)
    with manager.prepared(plan):
        print("prepared:", ", ".join(str(dev.address) for dev in manager.status().active))
        print("press Enter to give the devices back", flush=True)
        sys.stdin.readline()
    print("given back")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
