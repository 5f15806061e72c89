# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Read libvirt's virtual networks from its files and the kernel, without its daemon.

Mirrors: virNetworkObj (src/conf/virnetworkobj.h)
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pyhostdev.conf.network_conf import NetworkDef, parse_network, parse_port
from pyhostdev.errors import HostdevError, SysfsError, XMLError
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import is_directory, list_names, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_NETWORK_MAX = 1 << 20  # bytes of a network's file; one with a thousand fixed addresses has 100 KiB


class HostNetwork(NamedTuple):
    """A network of this host; it is active while its status file or its bridge exists."""

    definition: NetworkDef
    is_active: bool


def read_network(root: HostRoot, name: str) -> HostNetwork | None:
    """
    Return a network by its name, from its status or its definition; None if libvirt has neither.

    Raises:
        XMLError: the file is not well-formed.
        SysfsError: it exists but cannot be read.

    Host: run/libvirt/network, etc/libvirt/qemu/networks
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        return None
    for path, is_status in ((root.libvirt_network_status(name), True), (root.libvirt_network(name), False)):
        data = read_bytes(root, path, _NETWORK_MAX)
        if data is not None:
            definition = _parsed(data, path)
            bridge = definition.bridge
            return HostNetwork(definition, is_status or (bridge is not None and is_bridge(root, bridge)))
    return None


class KnownNetworks:
    """The networks of a host, each read once at most: a definition can name one in every interface."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self._read: dict[str, HostNetwork | HostdevError | None] = {}

    def read(self, name: str) -> HostNetwork | None:
        """
        Return a network as ``read_network`` does.

        Raises:
            XMLError, SysfsError: as ``read_network``, on every call.
        """
        if name not in self._read:
            try:
                self._read[name] = read_network(self.root, name)
            except HostdevError as err:
                self._read[name] = err
        found = self._read[name]
        if isinstance(found, HostdevError):
            raise found
        return found


def read_port_functions(root: HostRoot) -> set[PCIDeviceAddress]:
    """
    Return the host devices that libvirt's pools have given to running domains.

    Raises:
        XMLError: a file is not well-formed.
        SysfsError: a file cannot be read, except for lack of permission.

    Host: run/libvirt/network/NAME.ports

    Mirrors: virNetworkObjLoadAllPorts (src/conf/virnetworkobj.c)
    """
    try:
        return {address for port in _ports(root) if (address := parse_port(port)) is not None}
    except SysfsError as err:
        if err.errno not in (errno.EACCES, errno.EPERM):
            raise
        return set()


def _ports(root: HostRoot) -> Iterator[bytes]:
    """Yield the file of each port of each network."""
    for directory in list_names(root, root.libvirt_network_states):
        place = os.path.join(root.libvirt_network_states, directory)
        for name in list_names(root, place) if directory.endswith(".ports") else ():
            data = read_bytes(root, os.path.join(place, name), _NETWORK_MAX)
            if data is not None:
                yield data


def _parsed(data: bytes, path: str) -> NetworkDef:
    try:
        return parse_network(data)
    except XMLError as err:
        raise XMLError(f"The network's file '{path}' cannot be read: {err.message}") from err


def is_bridge(root: HostRoot, name: str) -> bool:
    """Tell whether the host has a bridge of the kernel with this name."""
    return is_interface(root, name) and is_directory(root, os.path.join(root.class_net, name, "bridge"))


def is_interface(root: HostRoot, name: str) -> bool:
    """Tell whether the host has a network interface with this name."""
    return "/" not in name and name not in ("", ".", "..") and is_directory(root, os.path.join(root.class_net, name))
