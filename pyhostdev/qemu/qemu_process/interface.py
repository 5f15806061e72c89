# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Connect a guest's interfaces on the host: checked before anything is changed, opened when the guest starts.

Mirrors: src/qemu/qemu_interface.c, virDomainNetDefActualFromNetworkPort (src/conf/domain_conf.c)
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import HostdevError, OperationError
from pyhostdev.hypervisor.netdev_journal import MacvtapJournal
from pyhostdev.hypervisor.network_pool import pool_obstacles
from pyhostdev.hypervisor.virnetwork import KnownNetworks, is_bridge, is_interface
from pyhostdev.qemu.qemu_command.net import TAP_TYPES, queues_of, wants_vhost
from pyhostdev.util import netlink, virnetdev
from pyhostdev.util.charnode import is_vhost_net, open_character_device
from pyhostdev.util.deadline import NETWORK_TIMEOUT_S, within
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import is_directory, list_names, read_attribute, read_lines
from pyhostdev.util.virnetdevtap import Tap, open_tap, set_up_macvtap
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.network_conf import NetworkDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.virnetwork import HostNetwork
    from pyhostdev.util.hostroot import HostRoot

BRIDGE, DIRECT, ETHERNET, POOL = "bridge", "direct", "ethernet", "pool"

MTU_MIN, MTU_MAX = 68, 65521  # linux/if_ether.h, ETH_MIN_MTU; ETH_MAX_MTU without a header (drivers/net/tun.c)
_QUEUES_MAX = 256  # MAX_TAP_QUEUES (linux/if_tap.h)
_CAP_NET_ADMIN = 12  # linux/capability.h
# models whose packets have the virtio-net header, which carries offloads
_HEADER_MODELS = ("virtio", "virtio-transitional", "virtio-non-transitional", "e1000e", "igb", "vmxnet3")
_TAP_MAC_PREFIX = "fe"  # a bridge adopts the lowest address of its ports, which must not be a guest's


class Connection(NamedTuple):
    """What an interface is connected to: a bridge, a pool, an interface of the host with a mode, or nothing."""

    kind: str
    where: str = ""
    mode: str = ""


def tap_interfaces(dom: DomainDef) -> list[Any]:
    """Return the interfaces that need a tap."""
    return [net for net in dom.interfaces if net.type in TAP_TYPES]


def interface_obstacles(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """Yield a finding for each interface that cannot be connected on this host; nothing is changed."""
    taps = tap_interfaces(dom)
    networks = host.networks or KnownNetworks(host.root)
    connections = [(net, connection_of(host.root, net, networks)) for net in taps]
    for net, found in connections:
        if isinstance(found, Finding):
            yield found
        else:
            yield from _connection_obstacles(host.root, net, found)
    yield from pool_obstacles(dom, host)
    if taps and host.root.is_live:
        yield from _right_obstacles(dom, connections, host.root)


def connection_of(root: HostRoot, net: Any, networks: KnownNetworks | None = None) -> Connection | Finding:
    """Return the connection of an interface, or the finding why it cannot be determined."""
    if net.type == "network":
        return _of_network(root, net, networks or KnownNetworks(root))
    if net.type == "direct":
        return Connection(DIRECT, net.source.dev, net.source.mode or "vepa")
    return Connection(BRIDGE, net.source.bridge) if net.type == "bridge" else Connection(ETHERNET)


def _of_network(root: HostRoot, net: Any, networks: KnownNetworks) -> Connection | Finding:
    name = net.source.network
    try:
        network = networks.read(name)
    except HostdevError as err:
        return _missing(net, str(err))
    if network is None:
        return _missing(net, f"libvirt has no network '{shown(name)}' on this host")
    return _of_known_network(root, net, network)


def _of_known_network(root: HostRoot, net: Any, network: HostNetwork) -> Connection | Finding:
    name, definition = net.source.network, network.definition
    if definition.is_pool:
        return Connection(POOL, definition.name)
    if definition.special or net.source.portgroup is not None:
        words = ", ".join(definition.special) or "portgroup"
        message = f"<{words}> of the network '{shown(name)}' is not supported"
        return Finding("unsupported", ERROR, None, message, net.line)
    if definition.is_direct:
        return _of_direct(root, net, definition)
    if definition.bridge is None or not network.is_active:
        return _missing(net, f"The network '{shown(name)}' is not active: start it with libvirt")
    return Connection(BRIDGE, definition.bridge)


def _of_direct(root: HostRoot, net: Any, network: NetworkDef) -> Connection | Finding:
    """Return the first interface that the network shares and the host has."""
    device = next((name for name in network.devices if is_interface(root, name)), None)
    if device is None:
        return _missing(net, f"The host has no interface of the network '{shown(network.name)}'")
    return Connection(DIRECT, device, str(network.mode))


def _missing(net: Any, message: str) -> Finding:
    return Finding("network-missing", ERROR, None, message, net.line)


def _connection_obstacles(root: HostRoot, net: Any, found: Connection) -> Iterator[Finding]:
    if found.kind == BRIDGE and not is_bridge(root, found.where):
        yield _missing(net, f"The host has no bridge '{shown(found.where)}'")
    if found.kind == DIRECT and not is_interface(root, found.where):
        yield _missing(net, f"The host has no network interface '{shown(found.where)}'")
    elif found.kind == DIRECT:
        yield from _macvtap_obstacles(root, net, found)
    yield from _limits(root, net, found)
    name = net.chosen_ifname
    if name is None:
        return
    if not virnetdev.is_interface_name(name):
        yield Finding("unsupported", ERROR, None, f"'{shown(name)}' is not a valid interface name", net.line)
    elif net.target_managed is False and not is_interface(root, name):
        yield _missing(net, f"The host has no network interface '{name}'")
    elif net.target_managed is not False and is_interface(root, name):
        yield _missing(net, f"The host already has a network interface '{name}'")


def _macvtap_obstacles(root: HostRoot, net: Any, found: Connection) -> Iterator[Finding]:
    """
    Yield a finding for each user of a host interface that excludes a macvtap.

    Source: netdev_rx_handler_register (net/core/dev.c); macvlan_common_newlink (drivers/net/macvlan.c) needs the
        interface exclusively for mode passthru
    """
    place = os.path.join(root.class_net, found.where)
    if is_directory(root, os.path.join(place, "brport")):
        yield _missing(net, f"The interface '{shown(found.where)}' is a port of a bridge, so it cannot have a macvtap")
    uppers = [name.removeprefix("upper_") for name in list_names(root, place) if name.startswith("upper_macv")]
    if uppers and found.mode == "passthrough":
        message = (
            f"The interface '{shown(found.where)}' already has {uppers[0]}, but mode passthrough needs it exclusively"
        )
        yield _missing(net, message)


def _limits(root: HostRoot, net: Any, found: Connection) -> Iterator[Finding]:
    """Yield a finding for each number that the kernel refuses, and a note for an MTU that the host side lacks."""
    if queues_of(net) > _QUEUES_MAX:
        message = f"A tap can have at most {_QUEUES_MAX} queues, not {queues_of(net)}"
        yield Finding("unsupported", ERROR, None, message, net.line)
    if net.mtu is None:
        return
    if not MTU_MIN <= net.mtu <= MTU_MAX:
        message = f"The MTU of a tap must be from {MTU_MIN} to {MTU_MAX}, not {net.mtu}"
        yield Finding("unsupported", ERROR, None, message, net.line)
    host_side = read_attribute(root, os.path.join(root.class_net, found.where, "mtu")) if found.where else None
    if host_side is not None and host_side.isdecimal() and int(host_side) < net.mtu:
        message = f"'{shown(found.where)}' has the MTU {host_side}: larger packets of the guest are dropped"
        yield Finding("ignored", NOTE, None, message, net.line)


def _right_obstacles(
    dom: DomainDef, connections: list[tuple[Any, Connection | Finding]], root: HostRoot
) -> Iterator[Finding]:
    """Yield a finding for each node or privilege that is missing to open a tap."""
    first = connections[0][0]
    if not os.path.exists(root.dev_net_tun):
        yield _missing(first, f"This machine has no node '{root.dev_net_tun}', which is needed to create a tap")
    if not _may_change_network(root):
        yield _missing(first, "Creating a tap needs root or the capability CAP_NET_ADMIN")
    for net, found in connections:
        if net.driver_name == "vhost" and wants_vhost(dom, net) and not os.path.exists(_vhost_node(root, net)):
            yield _missing(net, f"This machine has no node '{_vhost_node(root, net)}', which the interface requires")
        elif wants_vhost(dom, net) and not os.path.exists(_vhost_node(root, net)):
            message = "QEMU itself moves the packets of this interface: the kernel has no vhost-net"
            yield Finding("ignored", NOTE, None, message, net.line)
        if isinstance(found, Connection) and found.kind == DIRECT and not netlink.has_netlink():
            yield _missing(net, "A macvtap needs the Python package pyroute2, which is not installed")


def _may_change_network(root: HostRoot) -> bool:
    """Return True if this process has CAP_NET_ADMIN."""
    words = (line.split() for line in read_lines(root, root.process_status) if line.startswith("CapEff:"))
    return any(int(word[1], 16) >> _CAP_NET_ADMIN & 1 for word in words)


def _vhost_node(root: HostRoot, net: Any) -> str:
    return net.backend_vhost or root.dev_vhost_net


def _possible_connection(root: HostRoot, net: Any) -> Connection:
    """
    Return what an interface is connected to.

    Raises:
        OperationError: it is missing or not supported, or it is a pool of virtual functions.
    """
    found = connection_of(root, net)
    if isinstance(found, Finding):
        raise OperationError(found.message)
    if found.kind == POOL:
        raise OperationError(f"The network '{shown(found.where)}' gives the guest no virtual function")
    return found


def open_vhosts(dom: DomainDef, net: Any, root: HostRoot) -> list[int]:
    """
    Open vhost once per queue; return an empty list if QEMU itself moves the packets. The caller closes the
    descriptors.

    Raises:
        OperationError: the definition requires vhost, and the kernel refuses.

    Mirrors: qemuInterfaceOpenVhostNet
    """
    if not wants_vhost(dom, net):
        return []
    try:
        return _open_each(_vhost_node(root, net), queues_of(net))
    except OperationError:
        if net.driver_name == "vhost" or net.backend_vhost is not None:
            raise
        return []


def _open_each(node: str, queues: int) -> list[int]:
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(open_character_device(node, "vhost-net", is_vhost_net))
    except OperationError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


class InterfaceConnector:
    """
    Connects the interfaces of one guest; the given stack undoes all changes.

    Args:
        owner: the name of the domain, for the record of interfaces that outlive a crash.
    """

    def __init__(self, host: Host, owner: str, undo: ExitStack) -> None:
        self.host = host
        self.owner = owner
        self.undo = undo
        self.lock_fds: list[int] = []  # of records; QEMU inherits the locks, which show that it runs

    def connect(self, net: Any) -> Tap:
        """
        Open an interface's tap and connect it.

        Raises:
            OperationError: the kernel refuses, or does not answer in time.

        Mirrors: qemuInterfaceBridgeConnect, qemuInterfaceEthernetConnect, qemuInterfaceDirectConnect
        """
        found = _possible_connection(self.host.root, net)
        what = f"connect the interface with MAC address {net.mac}"
        connect = self._macvtap if found.kind == DIRECT else self._tap
        if found.kind == DIRECT:
            netlink.load()
        return within(NETWORK_TIMEOUT_S, what, lambda: connect(net, found))

    def _tap(self, net: Any, found: Connection) -> Tap:
        is_ours = net.target_managed is not False
        node = net.backend_tap or self.host.root.dev_net_tun
        has_header = net.model in _HEADER_MODELS
        tap = open_tap(node, net.ifname, queues=queues_of(net), has_header=has_header, is_new=is_ours)
        self._close_at_end(tap.fds)
        if is_ours:
            virnetdev.set_mac(tap.name, _TAP_MAC_PREFIX + net.mac[2:])
            self._set_mtu(tap, net, found)
        if found.kind == BRIDGE:
            virnetdev.add_bridge_port(found.where, tap.name)
            if net.port_isolated:
                virnetdev.isolate_bridge_port(self.host.root, tap.name)
        if is_ours:
            virnetdev.set_online(tap.name, is_up=True)
        return tap

    def _set_mtu(self, tap: Tap, net: Any, found: Connection) -> None:
        """Set the MTU of the definition, or the bridge's: a port with a smaller MTU would lower the bridge's."""
        if net.mtu is not None:
            virnetdev.set_mtu(tap.name, net.mtu)
        elif found.kind == BRIDGE:
            virnetdev.set_mtu(tap.name, virnetdev.read_mtu(found.where))

    def _macvtap(self, net: Any, found: Connection) -> Tap:
        """
        Create a macvtap. It outlives its users, so it is recorded first, and removed at the end or by ``recover``.

        Mirrors: virNetDevMacVLanCreateWithVPortProfile (src/util/virnetdevmacvlan.c)
        """
        lower = virnetdev.interface_index(found.where)
        if lower is None:
            raise OperationError(f"The host has no network interface '{found.where}'")
        journal = MacvtapJournal(self.host)
        name = net.ifname or _free_name()
        lock = journal.begin(name, self.owner)
        created: list[int] = []
        self.lock_fds.append(lock)
        self.undo.callback(journal.finish, name, lock, lambda: _remove(name, created))
        index = netlink.add_macvtap(name, lower, found.mode, net.mac)
        created.append(index)
        journal.note(name, self.owner, index=index)
        fds = self._open_macvtap(name, index, net)
        virnetdev.set_online(name, is_up=True)
        return Tap(name, fds)

    def _open_macvtap(self, name: str, index: int, net: Any) -> tuple[int, ...]:
        fds: list[int] = []
        has_header, queues = net.model in _HEADER_MODELS, queues_of(net)
        with virnetdev.doing("open the macvtap", name):
            for _ in range(queues):
                fds.append(os.open(self.host.root.macvtap_node(index), os.O_RDWR | os.O_CLOEXEC))
                self._close_at_end(fds[-1:])
                set_up_macvtap(fds[-1], has_header=has_header, queues=queues)
        return tuple(fds)

    def _close_at_end(self, fds: tuple[int, ...] | list[int]) -> None:
        for fd in fds:
            self.undo.callback(os.close, fd)


def _remove(name: str, created: list[int]) -> None:
    """Remove a macvtap, if it was created."""
    for index in created:
        within(NETWORK_TIMEOUT_S, f"remove the macvtap '{name}'", partial(netlink.remove_link, name, index))


def _free_name() -> str:
    """Return the first unused name for a macvtap."""
    taken: Callable[[str], object] = virnetdev.interface_index
    return next(name for name in (f"macvtap{number}" for number in range(1 << 16)) if taken(name) is None)
