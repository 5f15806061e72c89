# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's rules for network interfaces.

Mirrors: qemuValidateDomainDeviceDefNetwork (src/qemu/qemu_validate.c), virDomainNetDefValidate
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigError, ConfigUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef

    Errors = Iterator[ConfigError]

_MTU_TYPES = ("network", "bridge", "ethernet", "vhostuser", "hostdev")
_COALESCE_TYPES = ("network", "bridge")
_IPV4_PREFIXES = range(4, 28)  # user-mode networking needs addresses for gateway, name server and guest
_IPV6_PREFIX_MAX = 120


def net_errors(dom: DomainDef, net: Any) -> Errors:
    """Yield the errors of one interface."""
    yield from _backend_errors(net)
    yield from _ip_errors(net)
    if net.mtu is not None and net.type not in _MTU_TYPES:
        yield _unsupported(f"An interface of type {net.type} cannot have <mtu>", net)
    if net.coalesce is not None and net.type not in _COALESCE_TYPES:
        yield _unsupported(f"An interface of type {net.type} cannot have <coalesce>", net)
    if net.type == "vhostuser" and not net.is_virtio:
        yield _unsupported("An interface of type vhostuser must have a virtio model", net)
    for name in ("rx_queue_size", "tx_queue_size") if net.is_virtio else ():
        size = getattr(net, name) or 0
        if size & (size - 1):
            yield _unsupported(f"The {name} of an interface must be a power of 2, not {size}", net)


def _backend_errors(net: Any) -> Errors:
    if net.backend_type == "passt" and net.type not in ("user", "vhostuser"):
        yield _unsupported(f"An interface of type {net.type} cannot have the backend passt", net)
    is_server = (
        net.type == "vhostuser"
        and net.source is not None
        and net.backend_type != "passt"
        and net.source.mode == "server"
    )
    if is_server and net.source.reconnect_enabled:
        yield _unsupported("<reconnect> of an interface needs mode='client'", net)


def _ip_errors(net: Any) -> Errors:
    if net.type != "user" and net.backend_type != "passt":
        if net.ips or net.routes:
            yield _unsupported(f"An interface of type {net.type} cannot have <ip> or <route>", net)
        return
    if net.backend_type != "passt" and net.routes:
        yield _unsupported("QEMU's own network does not support <route>", net)
    for is_ipv6, family in ((False, "IPv4"), (True, "IPv6")):
        ips = [ip for ip in net.ips if ip.is_ipv6 is is_ipv6]
        if len(ips) > 1:
            yield _unsupported(f"QEMU's own network can have at most one {family} address", net)
        for ip in ips if net.backend_type != "passt" else ():
            yield from _prefix_errors(ip)


def _prefix_errors(ip: Any) -> Errors:
    if ip.peer is not None:
        yield _unsupported("QEMU's own network cannot have a peer address", ip)
    if ip.is_ipv6 and (ip.prefix or 0) > _IPV6_PREFIX_MAX:
        yield _unsupported(f"The IPv6 prefix of QEMU's own network can have at most {_IPV6_PREFIX_MAX} bits", ip)
    if not ip.is_ipv6 and ip.prefix and ip.prefix not in _IPV4_PREFIXES:
        yield _unsupported("The IPv4 prefix of QEMU's own network must have 4 to 27 bits", ip)


def _unsupported(message: str, where: Any) -> ConfigError:
    return ConfigUnsupportedError(message, line=where.line)
