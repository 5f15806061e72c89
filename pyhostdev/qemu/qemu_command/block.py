# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The location of a disk's image, in the terms of QEMU's block layer.

Mirrors: src/qemu/qemu_block.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.builder import unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import Properties

_PORTS = {"nbd": 10809, "iscsi": 3260, "http": 80, "https": 443, "ftp": 21, "ftps": 990, "gluster": 24007}


def storage_properties(disk: Any, kind: str, source: Any) -> Properties:
    """
    Return the block driver of a disk's image, with the properties that locate the image.

    Args:
        kind: the type of the image's source; that of a backing image may differ from the disk's.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of source.
    """
    aio = disk.io
    if kind == "file":
        return {"driver": "file", "filename": source.file, "aio": aio}
    if kind == "block":
        driver = "host_cdrom" if disk.device == "cdrom" else "host_device"
        return {"driver": driver, "filename": source.dev, "aio": aio}
    if kind == "network" and source.protocol in _NETWORK:
        if source.tls:
            raise unsupported("TLS of a network disk", disk)
        return _NETWORK[source.protocol](source)
    raise unsupported(f"A disk of type {kind} ({source.protocol or 'local'})", disk)


def _one_host(source: Any) -> Any:
    if len(source.hosts) != 1:
        raise unsupported(f"A {source.protocol} disk without exactly one <host>", source)
    return source.hosts[0]


def _server(source: Any, host: Any) -> Properties:
    if host.transport == "unix":
        return {"type": "unix", "path": host.socket}
    if host.transport not in (None, "tcp"):
        raise unsupported(f"A <host> with transport {host.transport}", source)
    port = host.port or _PORTS.get(source.protocol)
    return {"type": "inet", "host": host.name, "port": str(port)}


def _nbd(source: Any) -> Properties:
    server = _server(source, _one_host(source))
    return {"driver": "nbd", "server": server, "export": source.name}


def _iscsi(source: Any) -> Properties:
    host = _one_host(source)
    return iscsi_properties(host.name, host.port, source.name, source.initiator)


def iscsi_properties(host: str | None, port: object, name: str | None, initiator: str | None) -> Properties:
    """
    Return the block driver of an iSCSI unit; its name is TARGET/LUN.

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


def _rbd(source: Any) -> Properties:
    pool, _, image = (source.name or "").partition("/")
    hosts = [{"host": host.name, "port": str(host.port or 6789)} for host in source.hosts]
    return {
        "driver": "rbd",
        "pool": pool,
        "image": image,
        "snapshot": source.snapshot,
        "conf": source.config_file,
        "server": hosts or None,
    }


def _gluster(source: Any) -> Properties:
    volume, _, path = (source.name or "").partition("/")
    servers = [_server(source, host) for host in source.hosts]
    return {"driver": "gluster", "volume": volume, "path": path, "server": servers}


def _url(source: Any) -> Properties:
    host = _one_host(source)
    protocol = source.protocol
    port = host.port or _PORTS[protocol]
    name = (source.name or "").lstrip("/")
    query = f"?{source.query}" if source.query else ""
    return {"driver": protocol, "url": f"{protocol}://{host.name}:{port}/{name}{query}"}


_NETWORK: dict[str, Callable[[Any], Properties]] = {
    "nbd": _nbd,
    "iscsi": _iscsi,
    "rbd": _rbd,
    "gluster": _gluster,
    "http": _url,
    "https": _url,
    "ftp": _url,
    "ftps": _url,
}
