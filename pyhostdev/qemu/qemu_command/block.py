# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where a disk's image is, as QEMU's block layer describes it.

Mirrors: src/qemu/qemu_block.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.builder import unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import Properties

_PORTS = {"nbd": 10809, "iscsi": 3260, "http": 80, "https": 443, "ftp": 21, "ftps": 990}


def storage_properties(disk: Any) -> Properties:
    """
    Return the block driver and what it needs to find the image.

    Raises:
        ConfigUnsupportedError: a source that we do not build.
    """
    source = disk.source
    aio = disk.io
    if disk.type == "file":
        return {"driver": "file", "filename": source.file, "aio": aio}
    if disk.type == "block":
        driver = "host_cdrom" if disk.device == "cdrom" else "host_device"
        return {"driver": driver, "filename": source.dev, "aio": aio}
    if disk.type == "network" and source.protocol in _NETWORK and aio is None:
        if source.tls or source.query is not None or source.config_file is not None:
            raise unsupported("TLS, a query or a configuration file of a network disk", disk)
        return _NETWORK[source.protocol](disk)
    raise unsupported(f"A disk of type {disk.type} ({source.protocol or 'local'})", disk)


def _one_host(disk: Any) -> Any:
    if len(disk.source.hosts) != 1:
        raise unsupported(f"A {disk.source.protocol} disk with other than one <host>", disk)
    return disk.source.hosts[0]


def _server(disk: Any, host: Any) -> Properties:
    if host.transport == "unix":
        return {"type": "unix", "path": host.socket}
    if host.transport not in (None, "tcp"):
        raise unsupported(f"A <host> with transport {host.transport}", disk)
    port = host.port or _PORTS.get(disk.source.protocol)
    return {"type": "inet", "host": host.name, "port": str(port)}


def _nbd(disk: Any) -> Properties:
    server = _server(disk, _one_host(disk))
    return {"driver": "nbd", "server": server, "export": disk.source.name}


def _iscsi(disk: Any) -> Properties:
    host = _one_host(disk)
    return iscsi_properties(host.name, host.port, disk.source.name, disk.source.initiator)


def iscsi_properties(host: str | None, port: object, name: str | None, initiator: str | None) -> Properties:
    """
    Return the block driver of an iSCSI unit; its name is the target's name, and a number after a slash.

    Raises:
        ConfigUnsupportedError: the text after the slash is not a number.
    """
    target, _, lun = (name or "").partition("/")
    if not (lun or "0").isdecimal():
        raise unsupported(f"The iSCSI unit '{name}'")
    return {
        "driver": "iscsi",
        "portal": f"{host}:{port or _PORTS['iscsi']}",
        "target": target,
        "lun": int(lun or 0),
        "transport": "tcp",
        "initiator-name": initiator,
    }


def _rbd(disk: Any) -> Properties:
    pool, _, image = (disk.source.name or "").partition("/")
    hosts = [{"host": host.name, "port": str(host.port or 6789)} for host in disk.source.hosts]
    return {
        "driver": "rbd",
        "pool": pool,
        "image": image,
        "snapshot": disk.source.snapshot,
        "server": hosts or None,
    }


def _url(disk: Any) -> Properties:
    host = _one_host(disk)
    protocol = disk.source.protocol
    port = host.port or _PORTS[protocol]
    name = (disk.source.name or "").lstrip("/")
    return {"driver": protocol, "url": f"{protocol}://{host.name}:{port}/{name}"}


_NETWORK: dict[str, Callable[[Any], Properties]] = {
    "nbd": _nbd,
    "iscsi": _iscsi,
    "rbd": _rbd,
    "http": _url,
    "https": _url,
    "ftp": _url,
    "ftps": _url,
}
