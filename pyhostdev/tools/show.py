# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev show``: all known facts about one function."""

from __future__ import annotations

import argparse
import errno

from pyhostdev.errors import DeviceMissingError, SysfsError
from pyhostdev.tools import arguments, filters, output, releases, streams
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.driverctl import read_driverctl_override
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostusage import HostUsage, names_on
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciids import PCIIds
from pyhostdev.util.typed import TYPE_CHECKING, Any
from pyhostdev.util.vfiodriver import DriverChoice, VFIODrivers
from pyhostdev.util.vfioholders import read_group_holders
from pyhostdev.util.vfionodes import read_nodes
from pyhostdev.util.virfile import list_names
from pyhostdev.util.virpci import PCIDevice, read_iommu_group_members

if TYPE_CHECKING:
    from pyhostdev.hypervisor.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_address(parser)
    arguments.add_root(parser)
    releases.add_libvirt(parser)
    form = parser.add_mutually_exclusive_group()
    arguments.add_json(form)
    form.add_argument("--xml", action="store_true", help="print the XML of 'virsh nodedev-dumpxml'")


def run(args: argparse.Namespace) -> int:
    """Read one function and print it."""
    host = arguments.host_of(args)
    address = arguments.address_of(args, host)
    dev = host.pci_device(address)
    if dev is None:
        raise DeviceMissingError(f"Device {address} is not on this host", reason="device-missing", address=address)
    if args.xml:
        _print_xml(dev)
        return 0
    choice = VFIODrivers(host.root, variants=releases.release_of(args, host).has("vfio-variants")).choose(dev)
    facts = {**describe(dev, choice, _in_flight(host, address)), **surroundings(host, dev)}
    if args.json:
        output.print_json({"version": 1, **facts})
    else:
        output.print_table(("FACT", "VALUE"), ((name, _words(value)) for name, value in facts.items()))
    return 0


def _print_xml(dev: PCIDevice) -> None:
    from pyhostdev.hypervisor.node_device_udev import read_node_device

    streams.write(output.printable_xml(read_node_device(dev).format()))


def _in_flight(host: Host, address: PCIDeviceAddress) -> bool | None:
    """Tell whether a write to the function has not returned; None if this user may not see it."""
    try:
        return host.is_in_flight(address)
    except SysfsError as err:
        if err.errno not in (errno.EACCES, errno.EPERM):
            raise
        return None


def describe(dev: PCIDevice, choice: DriverChoice, in_flight: bool | None) -> dict[str, Any]:
    """Return all facts; None stands for an unavailable fact, such as the override while a write is in flight."""
    group = dev.iommu_group
    members = [] if group is None else read_iommu_group_members(dev.root, group)
    return {
        "address": str(dev.address),
        **_identity(dev),
        "driver": dev.driver,
        "driver_override": None if in_flight else dev.read_driver_override(),
        "vfio_driver": choice.driver,
        "vfio_driver_why": choice.why or None,
        "driverctl": read_driverctl_override(dev.root, dev.address),
        "in_flight": in_flight,
        "iommu_group": group,
        "iommu_group_members": [member.name for member in members],
        "vfio_nodes": read_nodes(dev.root, dev.address),
        "header_type": dev.header_type,
        "pci_express": dev.is_pci_express(),
        "multifunction": dev.is_multifunction(),
        **_relatives(dev),
        "numa_node": dev.numa_node,
    }


def _identity(dev: PCIDevice) -> dict[str, Any]:
    return {
        "vendor_id": output.hexadecimal(dev.vendor),
        "device_id": output.hexadecimal(dev.device),
        "subsystem_vendor_id": output.hexadecimal(dev.subsystem_vendor),
        "subsystem_device_id": output.hexadecimal(dev.subsystem_device),
        "class": output.hexadecimal(dev.class_, 6),
        "revision": output.hexadecimal(dev.revision, 2),
    }


def _relatives(dev: PCIDevice) -> dict[str, Any]:
    """Return the siblings of a function, its PF and its VFs."""
    return {
        "functions": [str(sibling.address) for sibling in dev.read_siblings()],
        "physfn": None if dev.physfn is None else str(dev.physfn),
        "virtual_functions": [str(vf) for vf in dev.read_virtual_functions()],
        "sriov_totalvfs": dev.sriov_totalvfs,
    }


def surroundings(host: Host, dev: PCIDevice) -> dict[str, Any]:
    """Return names, what isolates the function, how it is reset, and what uses it; None for an unavailable fact."""
    ids = PCIIds.read(host.root, HostRoot("/"))
    uses = HostUsage(host.root).of(dev.address)
    return {
        "vendor_name": ids.vendor(dev.vendor),
        "device_name": ids.device(dev.vendor, dev.device),
        "reset_methods": dev.read_reset_methods(),
        "path": [_port(host, address) for address in dev.read_path()[:-1]],
        "netdevs": names_on(host.root, host.root.class_net, dev.address),
        "blocks": names_on(host.root, host.root.class_block, dev.address),
        "uses": [f"{use.reason}: {use.text}" for use in uses],
        "owner": _owner(host, dev.address),
        "holders": _holders(host, dev.iommu_group),
        "companions": _companions(dev),
    }


def _owner(host: Host, address: PCIDeviceAddress) -> str | None:
    """Return the domain that has the function; None also if the records cannot be read."""
    record = (filters.readable_records(host) or {}).get(address)
    return None if record is None else record.owner


def _holders(host: Host, group: int | None) -> list[str]:
    holders = {} if group is None else read_group_holders(host.root, [group])
    return [str(holder) for held in holders.values() for holder in held]


def _port(host: Host, address: PCIDeviceAddress) -> str:
    """Return a bridge above with its Access Control Services: without them, the functions below share a group."""
    port = host.pci_device(address)
    state = None if port is None else pciconfig.acs_state(port.read_config(pciregs.CONFIG_SIZE_EXPRESS))
    return f"{address} (ACS {state or 'unknown'})"


def _companions(dev: PCIDevice) -> list[str]:
    """
    Return the functions that the kernel links to this one, such as a GPU's audio.

    Source: drivers/pci/quirks.c pci_create_device_link; device links in sysfs since Linux 5.8
    """
    found = []
    for name in sorted(list_names(dev.root, dev.path())):
        role, _, other = name.partition(":pci:")
        if role in ("consumer", "supplier") and other.count(":") == 2:
            found.append(f"{role} {other}")
    return found


def _words(value: Any) -> object | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) or None if isinstance(value, list) else value
