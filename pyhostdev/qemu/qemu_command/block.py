# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The location of a disk's image, in the terms of QEMU's block layer.

Mirrors: src/qemu/qemu_block.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.storage_source_conf import DEFAULT_PORTS
from pyhostdev.errors import VIR_ERR_INVALID_ARG, ConfigUnsupportedError
from pyhostdev.qemu.qemu_command.builder import unsupported
from pyhostdev.util.virfile import is_cdrom
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

PR_MANAGER = "pr-helper0"
TLS_DIRECTORY = "/etc/pki/qemu"  # libvirt's default_tls_x509_cert_dir
_GLUSTER_DEBUG = 4  # the level that libvirt's gluster_debug_level has by default


def storage_properties(
    build: CommandBuilder, kind: str, source: Any, node: str, *, disk: Any = None, aio: str | None = None
) -> Properties:
    """
    Return the block driver of an image, with the properties that locate the image.

    Args:
        kind: the type of the image's source; that of a backing image may differ from the disk's.
        node: the name of the image's node, after which the objects that it needs are named.
        disk: the disk whose own image it is; the medium of a cdrom can be a drive of the host.
        aio: how QEMU reads and writes a local image.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of source.
    """
    if source.fd_group is not None:
        text = f"The descriptors of fdgroup='{shown(source.fd_group)}' are not passed"
        raise ConfigUnsupportedError(text, line=source.line, libvirt_code=VIR_ERR_INVALID_ARG)
    device = disk.device if disk is not None else "disk"
    if kind == "file":
        return {"driver": "file", "filename": source.file, "aio": aio}
    if kind == "block":
        driver = "host_cdrom" if device == "cdrom" and _is_drive(build, str(source.dev)) else "host_device"
        return {"driver": driver, "filename": source.dev, "aio": aio, "pr-manager": _pr_manager(build, source, node)}
    if kind == "dir":
        return {"driver": "vvfat", "dir": source.dir, "floppy": device == "floppy", "rw": False}
    if kind == "nvme":
        return {"driver": "nvme", "device": str(source.address.pci), "namespace": source.namespace}
    if kind == "vhostvdpa" and disk is not None:
        path = build.add_fdset(build.descriptor("vdpa", disk), f"{node}-vdpa")
        return {"driver": "virtio-blk-vhost-vdpa", "path": path}
    if kind == "network" and source.protocol in _NETWORK:
        return {**_NETWORK[source.protocol](source), **_tls(build, source, node)}
    raise unsupported(f"A disk of type {kind} ({source.protocol or 'local'})", source)


def _tls(build: CommandBuilder, source: Any, node: str) -> Properties:
    """
    Add the certificates of an encrypted connection; return the properties that name them.

    Raises:
        ConfigUnsupportedError: the client of this protocol has no TLS.

    Mirrors: qemuDomainPrepareStorageSourceTLS (src/qemu/qemu_domain.c)
    """
    if source.tls and source.protocol != "nbd":
        raise unsupported(f"TLS of a disk of protocol {source.protocol}", source)
    name = f"obj{node}_tls0" if source.tls else None
    if name is not None:
        build.add_object("tls-creds-x509", name, dir=TLS_DIRECTORY, endpoint="client", **{"verify-peer": True})
    return {"tls-creds": name, "tls-hostname": source.tls_hostname} if source.protocol == "nbd" else {}


def _pr_manager(build: CommandBuilder, source: Any, node: str) -> str | None:
    """
    Return the id of the object that makes reservations; add the object if the administrator runs its program.

    Mirrors: qemuDomainPrepareStorageSourcePR (src/qemu/qemu_domain.c)
    """
    reservations = source.reservations
    if reservations is None:
        return None
    if reservations.managed:
        return PR_MANAGER
    build.add_object("pr-manager-helper", f"pr-helper-{node}", path=reservations.path)
    return f"pr-helper-{node}"


def _is_drive(build: CommandBuilder, path: str) -> bool:
    """Return True if a path leads to a CD-ROM drive of the host; False without a host."""
    root = build.host.root if build.host is not None else None
    return root is not None and is_cdrom(root, root.join(path.lstrip("/")))


def _one_host(source: Any) -> Any:
    if len(source.hosts) != 1:
        raise unsupported(f"A {source.protocol} disk without exactly one <host>", source)
    return source.hosts[0]


def _server(source: Any, host: Any) -> Properties:
    if host.transport == "unix":
        return {"type": "unix", "path": host.socket}
    if host.transport not in (None, "tcp"):
        raise unsupported(f"A <host> with transport {host.transport}", source)
    port = host.port or DEFAULT_PORTS.get(source.protocol)
    return {"type": "inet", "host": host.name, "port": str(port)}


def _nbd(source: Any) -> Properties:
    server = _server(source, _one_host(source))
    return {"driver": "nbd", "server": server, "export": source.name, "reconnect-delay": source.reconnect_delay}


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
        "portal": f"{host}:{port or DEFAULT_PORTS['iscsi']}",
        "target": target,
        "lun": int(lun or 0),
        "transport": "tcp",
        "initiator-name": initiator,
    }


def _rbd(source: Any) -> Properties:
    pool, _, image = (source.name or "").partition("/")
    hosts = [{"host": host.name, "port": str(host.port or 0)} for host in source.hosts]
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
    return {"driver": "gluster", "volume": volume, "path": path, "server": servers, "debug": _GLUSTER_DEBUG}


def _url(source: Any) -> Properties:
    host = _one_host(source)
    protocol = source.protocol
    port = host.port or DEFAULT_PORTS[protocol]
    name = (source.name or "").lstrip("/")
    query = f"?{source.query}" if source.query else ""
    return {
        "driver": protocol,
        "url": f"{protocol}://{host.name}:{port}/{name}{query}",
        "sslverify": source.ssl_verify,
        "timeout": source.timeout,
        "readahead": source.readahead,
    }


def _nfs(source: Any) -> Properties:
    server = {"host": _one_host(source).name, "type": "inet"}
    path = f"/{(source.name or '').lstrip('/')}"
    ids = {"user": _id(source, source.identity_user), "group": _id(source, source.identity_group)}
    return {"driver": "nfs", "server": server, "path": path, **ids}


def _id(source: Any, text: str | None) -> int | None:
    """
    Return the number of a user or group that is written as +NUMBER or NUMBER.

    Raises:
        ConfigUnsupportedError: it is a name, whose number only the host's databases have.
    """
    if text is None:
        return None
    if not text.removeprefix("+").isdecimal():
        raise unsupported(f"The name '{text}' in <identity>", source, "write the number")
    return int(text.removeprefix("+"))


def _ssh(source: Any) -> Properties:
    host = _one_host(source)
    server = {"host": host.name, "port": str(host.port or DEFAULT_PORTS["ssh"])}
    return {"driver": "ssh", "path": source.name, "server": server, "user": source.identity_username}


_NETWORK: dict[str, Callable[[Any], Properties]] = {
    "nbd": _nbd,
    "iscsi": _iscsi,
    "rbd": _rbd,
    "gluster": _gluster,
    "http": _url,
    "https": _url,
    "ftp": _url,
    "ftps": _url,
    "nfs": _nfs,
    "ssh": _ssh,
}
