# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev show``: everything that is known about one function."""

from __future__ import annotations

import argparse
from typing import Any

from pyhostdev.errors import DeviceMissingError
from pyhostdev.tools import arguments, output
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virpci import PCIDevice, read_iommu_group_members


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_address(parser)
    arguments.add_root(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read one function and print it."""
    address = PCIDeviceAddress.parse(args.address)
    dev = arguments.host_of(args).pci_device(address)
    if dev is None:
        raise DeviceMissingError(f"Device {address} is not on this host", reason="device-missing", address=address)
    facts = describe(dev)
    if args.json:
        output.print_json({"version": 1, **facts})
    else:
        output.print_table(("FACT", "VALUE"), ((name, _words(value)) for name, value in facts.items()))
    return 0


def describe(dev: PCIDevice) -> dict[str, Any]:
    """Return all facts, those that the host does not give as None."""
    group = dev.iommu_group
    members = [] if group is None else read_iommu_group_members(dev.root, group)
    return {
        "address": str(dev.address),
        "vendor_id": output.hexadecimal(dev.vendor),
        "device_id": output.hexadecimal(dev.device),
        "subsystem_vendor_id": output.hexadecimal(dev.subsystem_vendor),
        "subsystem_device_id": output.hexadecimal(dev.subsystem_device),
        "class": output.hexadecimal(dev.class_, 6),
        "revision": output.hexadecimal(dev.revision, 2),
        "driver": dev.driver,
        "driver_override": dev.read_driver_override(),
        "iommu_group": group,
        "iommu_group_members": [member.name for member in members],
        "header_type": dev.header_type,
        "pci_express": dev.is_pci_express(),
        "multifunction": dev.is_multifunction(),
        "functions": [str(sibling.address) for sibling in dev.read_siblings()],
        "physfn": None if dev.physfn is None else str(dev.physfn),
        "virtual_functions": [str(vf) for vf in dev.read_virtual_functions()],
        "sriov_totalvfs": dev.sriov_totalvfs,
        "numa_node": dev.numa_node,
    }


def _words(value: Any) -> object | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(value) or None if isinstance(value, list) else value
