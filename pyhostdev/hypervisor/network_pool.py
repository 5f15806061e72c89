# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Choose a virtual function for each interface whose network is a pool of host devices.

As in libvirt, an interface gets the first free function in the order of the pool. A function is free if no other domain
has it, this domain does not name it, and the host does not use its network interface. The record of a device names its
owner: a domain that has a function of the pool keeps it, and a release makes the function free again.

Mirrors: networkAllocatePort, networkCreateInterfacePool (src/network/bridge_driver.c)
"""

from __future__ import annotations

import os
from copy import copy
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.net_conf import PoolNetDef
from pyhostdev.errors import HostdevError
from pyhostdev.hypervisor.hostdev_checks import held_groups, libvirt_owners
from pyhostdev.hypervisor.virnetwork import KnownNetworks, read_port_functions
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.hostusage import interface_use, names_by_function
from pyhostdev.util.iommugroup import read_iommu_group_members
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virfile import list_names, read_link_name
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.network_conf import NetworkDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.virnetwork import HostNetwork
    from pyhostdev.util.hostroot import HostRoot

_ABSENT = "is not on this host"
_SHOWN_MAX = 4  # functions of a pool whose use a refusal names


def with_pool_functions(dom: DomainDef, host: Host, owner: str | None = None) -> DomainDef:
    """
    Return a domain in which each interface of a pool's network is the function that it gets on this host.

    An interface stays as it is if its network is not a pool, or the pool cannot serve it; ``pool_obstacles`` gives the
    reason. The host is only read; preparing the domain records the functions.

    Args:
        owner: the name of the domain that will own the functions; the definition's name by default.

    Raises:
        SysfsError: the host cannot be read.
    """
    networks = host.networks or KnownNetworks(host.root)
    wanted = [(at, found) for at, net in enumerate(dom.interfaces) if (found := _pool_of(net, networks)) is not None]
    if not wanted:
        return dom
    resolved = dom.copy()
    uses = _Uses(dom, host, owner or dom.name)
    for at, network in wanted:
        chosen = uses.take(network)
        if chosen is not None:
            resolved.interfaces[at] = PoolNetDef.of(dom.interfaces[at], chosen, network)
    return resolved


def reading_networks_once(host: Host) -> Host:
    """Return a host for one plan: it reads each virtual network once; all other facts are read on request."""
    if host.networks is not None:
        return host
    once = copy(host)
    once.networks = KnownNetworks(host.root)
    return once


def _pool_of(net: Any, networks: KnownNetworks) -> NetworkDef | None:
    """Return the network of an interface if it is a pool that can serve it."""
    network = _network_of(net, networks)
    if network is None or not network.is_active or not network.definition.is_pool:
        return None
    return network.definition if _serves(net, network.definition) else None


def _network_of(net: Any, networks: KnownNetworks) -> HostNetwork | None:
    """Return the network of an interface; None if it has none, or the network's file is a finding of the interface."""
    if net.type != "network":
        return None
    try:
        return networks.read(net.source.network)
    except HostdevError:
        return None


def _serves(net: Any, network: NetworkDef) -> bool:
    return net.source.portgroup is None and not set(network.special) - {"vlan"}


def pool_functions(root: HostRoot, network: NetworkDef) -> tuple[PCIDeviceAddress, ...]:
    """
    Return the functions of a pool in its order: those that it lists, else all virtual functions of its PF.

    Raises:
        SysfsError: the host cannot be read.

    Host: sys/class/net, and the links virtfnN of the PF

    Mirrors: networkCreateInterfacePool
    """
    if network.functions or network.pf is None:
        return network.functions
    places = names_by_function(root, root.class_net)
    pf = next((address for address, names in places.items() if network.pf in names), None)
    if pf is None:
        return ()
    device = root.pci_device(PCIDeviceAddress.parse(pf))
    numbers = sorted(int(name[6:]) for name in list_names(root, device) if _is_function_link(name))
    links = (read_link_name(root, os.path.join(device, f"virtfn{number}")) for number in numbers)
    return tuple(PCIDeviceAddress.parse(link) for link in links if link is not None)


def _is_function_link(name: str) -> bool:
    return name.startswith("virtfn") and name[6:].isdecimal() and name.isascii()


class _Uses:
    """What the functions of a host are used for, so that a pool cannot give them to a domain; each is read once."""

    def __init__(self, dom: DomainDef, host: Host, owner: str | None) -> None:
        self.host = host
        self.named: set[PCIDeviceAddress] = {hostdev.pci_address for hostdev in dom.host_functions()}
        self.active = {a: r.owner for a, r in (host.readable_records() or {}).items() if r.is_active}
        self.own = {address for address, name in self.active.items() if name == owner}
        self.of_ports = read_port_functions(host.root)
        self._read: dict[PCIDeviceAddress, str | None] = {}
        self._pools: dict[NetworkDef, tuple[PCIDeviceAddress, ...]] = {}

    def take(self, network: NetworkDef) -> PCIDeviceAddress | None:
        """Give the domain a function of a pool: one that it already owns, else the first free one; None without any."""
        if network not in self._pools:
            self._pools[network] = pool_functions(self.host.root, network)
        left = [address for address in self._pools[network] if address not in self.named]
        chosen = next((address for address in left if address in self.own), None)
        chosen = chosen or next((address for address in left if self.of(address) is None), None)
        self.named |= set() if chosen is None else {chosen}
        return chosen

    def of(self, address: PCIDeviceAddress) -> str | None:
        """Return the use of a function as the end of a sentence; None if it is free."""
        if address not in self._read:
            self._read[address] = self._on_host(address)
        use = self._read[address]
        return "is in this domain already" if address in self.named and use != _ABSENT else use

    def _on_host(self, address: PCIDeviceAddress) -> str | None:
        device = self.host.pci_device(address)
        if device is None:
            return _ABSENT
        if address in self.active:
            return f"is in use by domain '{self.active[address]}'"
        if address in self.of_ports:
            return "is in use by a domain of libvirt"
        name = interface_use(self.host.root, address)
        if name is not None:
            return f"has interface '{name}', which the host uses"
        held = next(self._holders(address, device.iommu_group), None)
        return None if held is None else "is in use by another program"

    def _holders(self, address: PCIDeviceAddress, group: int | None) -> Iterator[Finding]:
        """Yield a finding if a running domain of libvirt, or a program, has the function."""
        root = self.host.root
        yield from (finding for finding in libvirt_owners(root, [address]) if finding.severity == ERROR)
        if group is not None:
            yield from held_groups(root, {group: address}, {group: read_iommu_group_members(root, group)})


def pool_obstacles(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """
    Yield a finding for each interface whose network is a pool that gives it no function.

    Args:
        dom: as ``with_pool_functions`` returned it.

    Raises:
        SysfsError: the host cannot be read.
    """
    networks = host.networks or KnownNetworks(host.root)
    exhausted: dict[NetworkDef, str] = {}  # why a pool has no function
    for net in dom.interfaces:
        network = _network_of(net, networks)
        if network is None or not network.definition.is_pool:
            continue
        name = shown(network.definition.name)
        reason = "network-missing"
        if not _serves(net, network.definition):
            reason, message = "unsupported", f"A port group or <virtualport> of the network '{name}' is not supported"
        elif not network.is_active:
            message = f"The network '{name}' is not active: start it with libvirt"
        else:
            if network.definition not in exhausted:
                exhausted[network.definition] = _exhausted(dom, network.definition, host)
            message = exhausted[network.definition]
        yield Finding(reason, ERROR, None, message, net.line)


def _exhausted(dom: DomainDef, network: NetworkDef, host: Host) -> str:
    """Return why a pool has no function for another interface of a domain."""
    name = shown(network.name)
    functions = pool_functions(host.root, network)
    if not functions:
        pf = f" of '{shown(network.pf)}'" if network.pf is not None else ""
        return f"The network '{name}' has no virtual functions{pf} on this host"
    uses = _Uses(dom, host, dom.name)
    lines = [f"{address} {uses.of(address) or 'is free'}" for address in functions[:_SHOWN_MAX]]
    lines += [f"and {len(functions) - _SHOWN_MAX} more"] if len(functions) > _SHOWN_MAX else []
    return f"The network '{name}' has no free virtual function: {', '.join(lines)}"


def has_lost_functions(dom: DomainDef, host: Host) -> bool:
    """
    Return True if another domain took a function between its choice and its preparation: then a new choice can succeed.

    Raises:
        SysfsError: the records cannot be read.
    """
    records = host.readable_records() or {}
    chosen = (net.hostdev.pci_address for net in dom.interfaces if isinstance(net, PoolNetDef))
    taken = (records[address] for address in chosen if address in records)
    return any(record.is_active and record.owner != dom.name for record in taken)


def pool_notes(dom: DomainDef) -> Iterator[Finding]:
    """Yield a note for each function that a pool gives to a domain."""
    for net in dom.interfaces:
        if isinstance(net, PoolNetDef):
            address = net.hostdev.pci_address
            message = f"The network '{shown(net.network)}' gives device {address} to the interface"
            yield Finding("from-pool", NOTE, address, message, net.line)
