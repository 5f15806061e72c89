# SPDX-License-Identifier: LGPL-2.1-or-later
"""
passt, the program that connects a guest's interface to the network without privileges.

passt makes the socket at which it listens, as QEMU's user, so it gets a directory that belongs to this user. QEMU finds
the socket through a link at the path that libvirt uses.

Mirrors: src/qemu/qemu_passt.c
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from typing import TYPE_CHECKING, Any

from pyhostdev.hypervisor.program_journal import SOCKET_DIRECTORY_END, remove_own_directory, remove_socket
from pyhostdev.qemu.qemu_process.launch import SYSTEM_PATH
from pyhostdev.util.virfile import read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.ownership import Ownership

_NOBODY = "nobody"  # passt(1), --runas
_FLAGS, _COLUMNS = 3, 8  # of a row of /proc/net/unix with a path
_ACCEPTS = 0x10000  # __SO_ACCEPTCON (linux/net.h)
_SOCKET = "passt.socket"


def passt_program() -> str:
    """Return the path of passt; if it is missing, the usual path."""
    return shutil.which("passt", path=SYSTEM_PATH) or "/usr/bin/passt"


def socket_in(link: str) -> str:
    """Return the path at which passt makes the socket that a link leads to."""
    return os.path.join(f"{link}{SOCKET_DIRECTORY_END}", _SOCKET)


def _valued_options(net: Any) -> dict[str, object]:
    return {
        "--mtu": net.mtu,
        "--interface": None if net.source is None else net.source.dev,
        "--log-file": net.backend_log,
        "--hostname": net.backend_hostname,
        "--fqdn": net.backend_fqdn,
    }


def passt_arguments(net: Any, socket: str) -> list[str]:
    """
    Return the arguments of passt for an interface; it ends when QEMU closes its connection.

    Source: passt(1)
    """
    words = ["--foreground", "--one-off", "--socket", socket]
    words += ["--vhost-user"] if net.type == "vhostuser" else []
    for option, value in _valued_options(net).items():
        words += [] if value is None else [option, str(value)]
    for ip in net.ips:
        words += ["--address", ip.address]
        words += ["--netmask", str(ip.prefix)] if ip.prefix and not ip.is_ipv6 else []
    for forward in net.port_forwards:
        words += [f"--{forward.proto}-ports", _ports(forward)]
    return words


def _ports(forward: Any) -> str:
    """Return the ports of the host that lead to the guest, all without a range."""
    device = f"%{forward.dev}" if forward.dev is not None else ""
    where = f"{forward.address or ''}{device}"
    ranges = ",".join(_range(part) for part in forward.ranges) or "all"
    return f"{where}/{ranges}" if where else ranges


def _range(part: Any) -> str:
    ports = f"{part.start}" if part.end is None else f"{part.start}-{part.end}"
    if part.exclude:
        return f"~{ports}"
    if part.to is None:
        return ports
    last = "" if part.end is None else f"-{part.to + part.end - part.start}"
    return f"{ports}:{part.to}{last}"


@contextlib.contextmanager
def socket_directory(socket: str, ownership: Ownership | None) -> Iterator[None]:
    """
    Provide the directory of passt's socket and the link to it; both are removed at the end.

    Raises:
        OSError: they cannot be made.
    """
    directory = os.path.dirname(socket)
    link = directory.removesuffix(SOCKET_DIRECTORY_END)
    _remove(socket)
    os.mkdir(directory, 0o700)
    try:
        uid, gid = _owner(ownership)
        os.chown(directory, uid, gid, follow_symlinks=False)
        os.symlink(socket, link)
        yield
    finally:
        _remove(socket)


def _owner(ownership: Ownership | None) -> tuple[int, int]:
    """Return the user and group that passt runs as: QEMU's, but passt never stays root."""
    if ownership is not None:
        return ownership.uid, ownership.gid
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    nobody = pwd.getpwnam(_NOBODY)
    return nobody.pw_uid, nobody.pw_gid


def is_listening(root: HostRoot, path: str) -> bool:
    """
    Return True if a program listens at a socket; a connection would be passt's only one.

    Source: unix_seq_show (net/unix/af_unix.c)
    """
    rows = (line.split() for line in read_lines(root, root.unix_sockets))
    return any(row[-1] == path and int(row[_FLAGS], 16) & _ACCEPTS for row in rows if len(row) == _COLUMNS)


def _remove(socket: str) -> None:
    """Remove the directory of a run, with the socket and the link to it."""
    remove_socket(socket)
    remove_own_directory(socket)
