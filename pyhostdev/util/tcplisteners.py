# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The TCP ports of this machine at which programs listen, and whether another program could listen at one.

The kernel's tables are read, so that the check does not occupy a port that another program needs.

Source: Documentation/networking/proc_net_tcp.rst, inet_csk_get_port (kernel, net/ipv4/inet_connection_sock.c)
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import read_attribute, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostroot import HostRoot

_LISTEN = "0A"  # TCP_LISTEN (include/net/tcp_states.h)
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
_BYTES = {str(number): number for number in range(256)}  # as an address has them: without further zeros
_CAP_NET_BIND_SERVICE = 10  # linux/capability.h


class Endpoint(NamedTuple):
    """An address of 4 or 16 bytes in network order, all zero for every address, and a TCP port."""

    address: bytes
    port: int

    @property
    def is_any(self) -> bool:
        """True if it stands for every address of its version of IP."""
        return not any(self.address)

    def excludes(self, other: Endpoint) -> bool:
        """Return True if no socket can listen at the other endpoint while one listens here."""
        one, two = _plain(self), _plain(other)
        same_version = len(one.address) == len(two.address)
        return one.port == two.port and same_version and (one.is_any or two.is_any or one.address == two.address)


def _plain(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with the IPv4 address that an IPv6 address can contain."""
    address = endpoint.address
    return Endpoint(address[12:], endpoint.port) if address.startswith(_MAPPED) else endpoint


def parse_address(text: str) -> bytes | None:
    """Return a numeric address as 4 or 16 bytes; None for a name, or an address with a zone."""
    numbers = [_BYTES.get(part) for part in text.split(".")]
    if len(numbers) == 4 and None not in numbers:
        return bytes(number for number in numbers if number is not None)
    if ":" not in text:
        return None
    import socket  # most servers listen at an IPv4 address

    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        return None


def parse_listener(row: str) -> Endpoint | None:
    """Return the endpoint of a row of /proc/net/tcp or tcp6; None for a socket that does not listen."""
    columns = row.split(maxsplit=4)
    if len(columns) < 5 or columns[3] != _LISTEN:
        return None
    address, _, port = columns[1].partition(":")
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    return Endpoint(b"".join(word.to_bytes(4, sys.byteorder) for word in words), int(port, 16))


def read_listeners(root: HostRoot) -> list[Endpoint]:
    """
    Return the endpoints at which programs of this network namespace listen.

    Raises:
        SysfsError: a table cannot be read.

    Host:
        proc/net/tcp, proc/net/tcp6
    """
    return [endpoint for path in root.tcp_sockets for endpoint in _listeners(root, path)]


def _listeners(root: HostRoot, path: str) -> Iterator[Endpoint]:
    rows = read_lines(root, path)
    next(rows, None)  # the titles of the columns
    for row in rows:
        endpoint = parse_listener(row)
        if endpoint is None:  # a connection: the kernel lists all listeners before them
            return
        yield endpoint


def is_taken(wanted: Endpoint, listeners: list[Endpoint]) -> bool:
    """
    Return True if the kernel would refuse a new listener at this endpoint of this machine.

    A listener at every IPv6 address may accept IPv4, too, which the tables do not show: then the kernel is asked.
    """
    if any(listener.excludes(wanted) for listener in listeners):
        return True
    every = Endpoint(bytes(16), wanted.port)
    return len(wanted.address) == 4 and every in listeners and _bind_error(wanted) == errno.EADDRINUSE


def is_local(address: bytes) -> bool:
    """Return False if no socket of this machine can have the address; the check uses no port."""
    if not any(address) or address == b"\x7f\0\0\x01":
        return True
    return _bind_error(Endpoint(address, 0)) not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _bind_error(endpoint: Endpoint) -> int:
    """Return the errno of giving a socket this endpoint, 0 without an error; the socket never listens."""
    import socket  # most servers listen at 127.0.0.1 or at every address

    family = socket.AF_INET if len(endpoint.address) == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((socket.inet_ntop(family, endpoint.address), endpoint.port))
    except OSError as err:
        return err.errno or errno.EIO
    return 0


def needs_privilege(root: HostRoot, port: int) -> bool:
    """
    Return True if only a privileged user can listen at a port.

    Raises:
        SysfsError: the limit cannot be read.

    Host:
        proc/sys/net/ipv4/ip_unprivileged_port_start
    """
    first = read_attribute(root, root.first_unprivileged_port)
    return port != 0 and first is not None and first.isdecimal() and port < int(first)


def can_bind_privileged(root: HostRoot) -> bool:
    """Return True if this process may listen at a privileged port, or if that is not known."""
    rows = (row for row in read_lines(root, root.process_status) if row.startswith("CapEff:"))
    found = next(rows, None)
    return found is None or bool(int(found.split()[1], 16) >> _CAP_NET_BIND_SERVICE & 1)
