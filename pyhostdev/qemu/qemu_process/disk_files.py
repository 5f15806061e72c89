# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The host files that QEMU opens for a disk: images, their contents elsewhere, sockets of servers, certificates.

Mirrors: qemuProcessStartValidateDisks (in what it is for)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.qemu.qemu_command.block import TLS_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator

READ = os.R_OK
WRITE = os.R_OK | os.W_OK
CONTENT, DIRECTORY, SOCKET = "content", "directory", "socket"  # what a file must be: not a directory, or the kind


class NeededFile(NamedTuple):
    """
    A file that QEMU opens: its purpose in the domain, its path, and the access that QEMU needs (F_OK: it must exist).

    ``making`` is "absent" if QEMU creates a missing file, and "always" if it replaces the file. ``is_device`` is True
    for a file that a host directory in place of ``/`` contains, too.
    """

    what: str
    path: str
    mode: int
    line: int | None = None
    making: str | None = None
    is_device: bool = False
    is_handed_over: bool = False  # pyhostdev opens it, and QEMU inherits the descriptor
    is_optional: bool = False  # the guest starts without it
    kind: str | None = CONTENT  # None if it may be anything, or has a check of its own

    @property
    def directory(self) -> str:
        """The directory in which it is created."""
        return os.path.dirname(self.path)


def disk_files(disk: Any) -> Iterator[NeededFile]:
    """Yield the files of one disk."""
    source = disk.source
    if source is None:
        return
    path = _local_path(disk.type, source)
    what = f"disk '{disk.target}'"
    if disk.type == "vhostuser" and source.path:
        yield NeededFile(f"the server of {what}", source.path, os.W_OK, disk.line, kind=SOCKET)
    if disk.type == "vhostvdpa" and source.dev:
        yield NeededFile(what, source.dev, WRITE, disk.line, is_handed_over=True)
    if path:
        mode = READ if disk.readonly or disk.device == "cdrom" else WRITE
        is_optional = source.startup_policy == "optional"
        kind, is_device = DIRECTORY if disk.type == "dir" else None, disk.type == "block"
        yield NeededFile(what, path, mode, disk.line, is_device=is_device, is_optional=is_optional, kind=kind)
    yield from _files_beside(source, what, disk.line, WRITE)
    yield from _backing_files(disk, what)


def _local_path(kind: str | None, source: Any) -> str | None:
    if source is None:
        return None
    return {"file": source.file, "block": source.dev, "dir": source.dir}.get(str(kind))


def _files_beside(source: Any, what: str, line: int | None, mode: int) -> Iterator[NeededFile]:
    """Yield the content of an image that is elsewhere, and what QEMU needs to reach it."""
    yield from _server_sockets(source, what, line)
    if source.tls:
        certificate = os.path.join(TLS_DIRECTORY, "ca-cert.pem")
        yield NeededFile(f"the certificate for {what}", certificate, READ, line)
    if source.reservations is not None and source.reservations.path and not source.reservations.managed:
        yield NeededFile(f"the reservations of {what}", source.reservations.path, os.W_OK, line, kind=SOCKET)
    store = source.data_store
    if store is not None and store.source is not None:
        path = _local_path(store.type, store.source)
        if path:
            kind = DIRECTORY if store.type == "dir" else CONTENT
            yield NeededFile(f"the content of {what}", path, mode, line, is_device=store.type == "block", kind=kind)
        yield from _server_sockets(store.source, what, line)


def _server_sockets(source: Any, what: str, line: int | None) -> Iterator[NeededFile]:
    for host in source.hosts:
        if host.transport == "unix" and host.socket:
            yield NeededFile(f"the server of {what}", host.socket, os.W_OK, line, kind=SOCKET)


def _backing_files(disk: Any, what: str) -> Iterator[NeededFile]:
    """Yield the images below the first one that the definition names."""
    below, what = disk.backing_store, f"the backing store of {what}"
    while below is not None and below.type is not None:
        source = below.source
        path = _local_path(below.type, source)
        if path:
            kind = DIRECTORY if below.type == "dir" else CONTENT
            yield NeededFile(what, path, READ, disk.line, is_device=below.type == "block", kind=kind)
        if source is not None:
            yield from _files_beside(source, what, disk.line, READ)
        below = below.backing_store
