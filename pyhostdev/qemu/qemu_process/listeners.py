# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The addresses and TCP ports at which QEMU listens for a domain, and a check that the host lets it.

Only numeric addresses and ports are checked: a name would be a question to a name server. A port that the definition
leaves to us is chosen at start.

Mirrors: qemuProcessGraphicsReservePorts, qemuProcessGraphicsAllocatePorts (src/qemu/qemu_process.c)
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigError
from pyhostdev.qemu.qemu_command.graphics import SPICE_PORT, VNC_PORT, WEBSOCKET_PORT, listen_address
from pyhostdev.qemu.qemu_process.access import character_devices
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.tcplisteners import (
    Endpoint,
    can_bind_privileged,
    is_local,
    is_taken,
    needs_privilege,
    parse_address,
    read_listeners,
)
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.ownership import Ownership

_PORT_MAX = 65535
_EVERY = bytes(4)  # stands for a name: every address of IPv4


class _Server(NamedTuple):
    """A part of a domain that listens at an address as written, with a TCP port or without."""

    device: Any
    host: str
    port: int | None

    @property
    def what(self) -> str:
        """The element in a sentence."""
        kind = f" type='{self.device.type}'" if self.device.tag in ("graphics", "interface") else ""
        return f"<{self.device.tag}{kind}>"


class _Listener(NamedTuple):
    """A server with its address as the kernel knows it."""

    server: _Server
    address: bytes

    @property
    def endpoint(self) -> Endpoint:
        """Its address and TCP port."""
        return Endpoint(self.address, self.server.port or 0)


def listener_obstacles(dom: DomainDef, host: Host, ownership: Ownership | None) -> Iterator[Finding]:
    """
    Yield an error for each address that is not the host's, and for each TCP port that QEMU cannot have.

    Another machine's ports are unknown: with a root other than ``/`` nothing is checked.

    Args:
        ownership: the user that QEMU will run as; None means the current user.

    Raises:
        SysfsError: a table of the kernel cannot be read.
    """
    if not host.root.is_live:
        return
    found = [(server, parse_address(server.host)) for server in _servers(dom, host)]
    listeners = [_Listener(server, address) for server, address in found if address is not None]
    for listener in listeners:
        if not is_local(listener.address):
            message = f"{listener.server.what} listens at '{listener.server.host}', which is not an address of the host"
            yield Finding("address-missing", ERROR, None, message, listener.server.device.line)
    yield from _port_obstacles([listener for listener in listeners if listener.server.port], host.root, ownership)


def _port_obstacles(listeners: list[_Listener], root: HostRoot, ownership: Ownership | None) -> Iterator[Finding]:
    present = read_listeners(root) if listeners else []
    for number, listener in enumerate(listeners):
        why = _why_unusable(listener, listeners[:number], present, root, ownership)
        if why is not None:
            message = f"TCP port {listener.server.port} of {listener.server.what} {why}"
            yield Finding("port-unusable", ERROR, None, message, listener.server.device.line)


def _why_unusable(
    listener: _Listener, earlier: list[_Listener], present: list[Endpoint], root: HostRoot, ownership: Ownership | None
) -> str | None:
    """Return why QEMU cannot listen at the port, None if it can."""
    other = next((other for other in earlier if other.endpoint.excludes(listener.endpoint)), None)
    if other is not None:
        return f"is also the port of {other.server.what}"
    if is_taken(listener.endpoint, present):
        return f"is in use at '{listener.server.host}'"
    if needs_privilege(root, listener.endpoint.port) and not _is_privileged(root, ownership):
        return "needs a privilege that QEMU does not have"
    return None


def _is_privileged(root: HostRoot, ownership: Ownership | None) -> bool:
    """Return True if QEMU may listen at every port; as another user it has no capabilities."""
    return can_bind_privileged(root) if ownership is None else ownership.is_root


def choose_ports(dom: DomainDef, host: Host) -> list[str]:
    """
    Give each server with an automatic port the first free one, from libvirt's first port on.

    Returns:
        A sentence for each port that is not the first one.

    Raises:
        SysfsError: a table of the kernel cannot be read.
    """
    automatic = [(graphics, *place) for graphics in dom.graphics for place in _automatic_ports(graphics)]
    if not automatic or not host.root.is_live:
        return []
    fixed = [(parse_address(server.host), server.port) for server in _servers(dom, host)]
    taken = [*read_listeners(host.root), *(Endpoint(address, port) for address, port in fixed if address and port)]
    sentences = []
    for graphics, name, first in automatic:
        address = parse_address(listen_address(graphics, host).strip("[]")) or _EVERY
        place = next((e for e in _endpoints(address, first) if not is_taken(e, taken)), Endpoint(address, first))
        taken.append(place)
        setattr(graphics, name, place.port)
        graphics.autoport = False  # or the port would be forgotten when the command line is built
        if place.port != first:
            sentences.append(f"the {name} of <graphics type='{graphics.type}'> is {place.port}: others are in use")
    return sentences


def _endpoints(address: bytes, first: int) -> Iterator[Endpoint]:
    return (Endpoint(address, port) for port in range(first, _PORT_MAX + 1))


def _automatic_ports(graphics: Any) -> Iterator[tuple[str, int]]:
    """Yield the attribute of each port of a server that must be chosen, with the first port."""
    if graphics.type not in ("vnc", "spice") or graphics.socket or _listens_elsewhere(graphics):
        return
    if graphics.port in (None, -1):
        yield "port", VNC_PORT if graphics.type == "vnc" else SPICE_PORT
    if graphics.type == "vnc" and graphics.websocket == -1:
        yield "websocket", WEBSOCKET_PORT


def _servers(dom: DomainDef, host: Host) -> Iterator[_Server]:
    """Yield every part that listens, as far as the definition is valid."""
    for graphics in dom.graphics:
        with suppress(ConfigError):  # building the command line reports it
            yield from _graphics_servers(graphics, host)
    for device, source in character_devices(dom):
        part = source.source("bind") if source.type in ("tcp", "udp") else None
        if part is not None and part.host:
            yield _Server(device, part.host, _port(part.service) if source.type == "tcp" else None)
    for net in dom.interfaces:
        if net.type == "server" and net.source is not None and net.source.address:
            yield _Server(net, net.source.address, net.source.port)
        elif net.type == "udp" and net.source is not None and net.source.local_address:
            yield _Server(net, net.source.local_address, None)


def _graphics_servers(graphics: Any, host: Host) -> Iterator[_Server]:
    if graphics.type not in ("vnc", "spice") or graphics.socket or _listens_elsewhere(graphics):
        return
    address = listen_address(graphics, host).strip("[]")
    port = None if graphics.autoport or graphics.port in (None, -1, 0) else graphics.port
    yield _Server(graphics, address, port)
    if graphics.type == "vnc" and (graphics.websocket or 0) > 0:
        yield _Server(graphics, address, graphics.websocket)


def _listens_elsewhere(graphics: Any) -> bool:
    """Return True for a server at a UNIX socket or nowhere."""
    return bool(graphics.listens) and graphics.listens[0].type in ("socket", "none")


def _port(service: str | None) -> int | None:
    """Return the port of a service; None for the name of one."""
    is_number = service is not None and service.isdecimal() and service.isascii() and len(service) <= 5
    return int(service) if is_number and service is not None and int(service) <= _PORT_MAX else None
