#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Build a domain with virtinst, as virt-install does: virtinst_domain.py NODEDEV.xml...

Run by the Python that has virtinst, with libvirt's test driver. A file name that ends with ".kept.xml" is a function
that the guest does not get.
"""

import sys

sys.path.insert(0, "/usr/share/virt-manager")

from virtinst import DeviceHostdev, Guest, NodeDevice, cli


def hostdev(conn, path: str):
    """Return the host device that virtinst makes of a node device's XML."""
    with open(path, encoding="utf-8") as stream:
        node = NodeDevice(conn, parsexml=stream.read())
    dev = DeviceHostdev(conn)
    dev.set_from_nodedev(node)
    if path.endswith(".kept.xml"):
        dev.address.type = "unassigned"
    else:
        assert node.compare_to_hostdev(dev), path
    return dev


def main(paths):
    """Print the domain."""
    conn = cli.getConnection("test:///default")
    guest = Guest(conn)
    guest.name = "virtinst"
    guest.uuid = "6c2f5a1e-7f0e-4f0b-9f5e-0d8a3a6f7b11"
    guest.memory = guest.currentMemory = 1048576
    guest.vcpus = 2
    guest.type = "kvm"
    guest.os.os_type = "hvm"
    guest.os.arch = "x86_64"
    guest.os.machine = "q35"
    guest.emulator = "/usr/bin/qemu-system-x86_64"
    for path in paths:
        dev = hostdev(conn, path)
        dev.set_defaults(guest)
        guest.add_device(dev)
    print(guest.get_xml())


if __name__ == "__main__":
    main(sys.argv[1:])
