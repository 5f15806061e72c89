# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Settings of a network interface of this machine, by ioctl.

Mirrors: src/util/virnetdev.c, src/util/virnetdevbridge.c
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostroot import HostRoot

NAME_MAX = 15  # linux/if.h, IFNAMSIZ without the end
REQUEST_BYTES = 40  # struct ifreq of 64-bit machines

# linux/sockios.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_SIOCSIFHWADDR = 0x8924
_SIOCBRADDIF = 0x89A2

_IFF_UP = 0x1  # linux/if.h
_ARPHRD_ETHER = 1  # linux/if_arp.h


def is_interface_name(name: str) -> bool:
    """True for a valid name of a network interface."""
    return 0 < len(os.fsencode(name)) <= NAME_MAX and name not in (".", "..") and not set(name) & set("/: \t\n")


def interface_index(name: str) -> int | None:
    """Return the number of an interface; None if this network namespace does not have it."""
    import socket  # few domains have an interface that is looked up

    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def request(name: str, form: str, *values: object) -> bytes:
    """Return a struct ifreq: the name, and values in the form of ``struct``."""
    return struct.pack(f"=16s{form}", os.fsencode(name), *values).ljust(REQUEST_BYTES, b"\0")


@contextmanager
def doing(what: str, name: str) -> Iterator[None]:
    """Turn a system error into an error that names the failed action and the interface."""
    try:
        yield
    except OSError as err:
        why = err.strerror or str(err)
        raise OperationError(f"Cannot {what} of the network interface '{name}': {why}") from err


def _call(number: int, argument: bytes) -> bytes:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, number, argument)


def read_mtu(name: str) -> int:
    """
    Return the MTU of an interface, in bytes.

    Raises:
        OperationError: the kernel refuses.
    """
    with doing("read the MTU", name):
        return int(struct.unpack_from("=i", _call(_SIOCGIFMTU, request(name, "i", 0)), 16)[0])


def set_mtu(name: str, mtu: int) -> None:
    """
    Set the MTU of an interface, in bytes.

    Raises:
        OperationError: the kernel refuses.
    """
    with doing(f"set the MTU to {mtu}", name):
        _call(_SIOCSIFMTU, request(name, "i", mtu))


def set_mac(name: str, mac: str) -> None:
    """
    Set the MAC address of an interface.

    Raises:
        OperationError: the kernel refuses.
    """
    with doing("set the MAC address", name):
        octets = bytes.fromhex(mac.replace(":", ""))
        _call(_SIOCSIFHWADDR, request(name, "H6s", _ARPHRD_ETHER, octets))


def set_online(name: str, *, is_up: bool) -> None:
    """
    Switch an interface on or off.

    Raises:
        OperationError: the kernel refuses.
    """
    with doing("switch the state", name):
        flags = struct.unpack_from("=H", _call(_SIOCGIFFLAGS, request(name, "H", 0)), 16)[0]
        wanted = flags | _IFF_UP if is_up else flags & ~_IFF_UP
        if wanted != flags:
            _call(_SIOCSIFFLAGS, request(name, "H", wanted))


def add_bridge_port(bridge: str, name: str) -> None:
    """
    Add an interface to a bridge; it stays a port until the interface vanishes.

    Raises:
        OperationError: the kernel refuses.
    """
    index = interface_index(name)
    with doing(f"make a port on bridge '{bridge}'", name):
        if index is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        _call(_SIOCBRADDIF, request(bridge, "i", index))


def isolate_bridge_port(root: HostRoot, name: str) -> None:
    """
    Let a port of a bridge exchange packets only with ports that are not isolated.

    Raises:
        OperationError: the kernel refuses.

    Host: writes sys/class/net/NAME/brport/isolated
    """
    with doing("isolate the bridge port", name):
        fd = os.open(os.path.join(root.class_net, name, "brport", "isolated"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
