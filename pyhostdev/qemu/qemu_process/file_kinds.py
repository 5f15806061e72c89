# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Check the existing files that a domain names: QEMU refuses a file of the wrong kind.

Source: raw_open_common, raw_check_perm (QEMU, block/file-posix.c)
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_process.disk_files import CONTENT, DIRECTORY, SOCKET
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.qemu.qemu_process.disk_files import NeededFile

_NAME_MAX = 107 - len("/proc/self/fd/9999/")  # bytes of a socket's name: it is bound through its directory


class _Image(NamedTuple):
    """The first image of a disk, and the status of its file."""

    disk: Any
    path: str
    status: os.stat_result

    @property
    def writes(self) -> bool:
        """True if the guest may write to it."""
        return not self.disk.readonly and self.disk.device != "cdrom"


def kind_obstacles(dom: DomainDef, sockets: Iterator[tuple[Any, str]]) -> Iterator[Finding]:
    """
    Yield a finding for each existing file of a kind that QEMU or its starter cannot use.

    Args:
        sockets: devices with a socket that is created for them, each with the socket's path.
    """
    images = list(_images(dom))
    for image in images:
        yield from _image_kind(image)
    first: dict[tuple[int, int], _Image] = {}
    for image in images:
        earlier = first.setdefault((image.status.st_dev, image.status.st_ino), image)
        if earlier is not image and _exclude(earlier, image):
            what = f"Disks '{shown(earlier.disk.target)}' and '{shown(image.disk.target)}' have the same image"
            message = f"{what}, '{image.path}', and are not <shareable/>"
            yield Finding("image-unusable", ERROR, None, message, image.disk.line)
    made: dict[str, Any] = {}
    for device, path in sockets:
        yield from _socket_kind(device, path)
        if made.setdefault(path, device) is not device:
            message = f"A <{device.tag}> and a <{made[path].tag}> would listen at the same socket '{path}'"
            yield Finding("image-unusable", ERROR, None, message, device.line)


def needed_kinds(files: list[NeededFile]) -> Iterator[Finding]:
    """Yield a finding for each existing file of a wrong kind, and for each socket at which no program listens."""
    for file in files:
        status = None if file.kind is None else _status(file.path)
        if status is None:
            continue
        is_directory, is_socket = stat.S_ISDIR(status.st_mode), stat.S_ISSOCK(status.st_mode)
        if not {CONTENT: not is_directory, DIRECTORY: is_directory, SOCKET: is_socket}[str(file.kind)]:
            why = "is a directory" if file.kind == CONTENT else f"is not a {file.kind}"
            yield Finding("image-unusable", ERROR, None, f"'{file.path}' of {file.what} {why}", file.line)
        elif file.kind == SOCKET and not _is_listening(file.path):
            message = f"No program listens at '{file.path}' of {file.what}"
            yield Finding("image-unusable", ERROR, None, message, file.line)


def _is_listening(path: str) -> bool:
    """Return False if no program has the socket at a path, which sees no connection; True if that is not known."""
    from pyhostdev.hypervisor.guest_journal import is_alive  # few domains have a socket

    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return is_alive(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _images(dom: DomainDef) -> Iterator[_Image]:
    for disk in dom.disks:
        path = None if disk.source is None else {"file": disk.source.file, "block": disk.source.dev}.get(str(disk.type))
        status = _status(path) if path is not None and os.path.isabs(path) else None
        if path is not None and status is not None:
            yield _Image(disk, path, status)


def _status(path: str, *, follow: bool = True) -> os.stat_result | None:
    """Return the status of a file, None if it cannot be read: missing and hidden files have findings of their own."""
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError:
        return None


def _image_kind(image: _Image) -> Iterator[Finding]:
    mode = image.status.st_mode
    is_right = stat.S_ISREG(mode) if image.disk.type == "file" else stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
    if not is_right:
        kind = "a regular file" if image.disk.type == "file" else "a device"
        message = f"'{image.path}' of disk '{shown(image.disk.target)}' is not {kind}"
        yield Finding("image-unusable", ERROR, None, message, image.disk.line)


def _exclude(one: _Image, other: _Image) -> bool:
    """Return True if QEMU's locks of one file refuse the second disk: one writes, and the other does not share it."""
    return (one.writes and not other.disk.shareable) or (other.writes and not one.disk.shareable)


def _socket_kind(device: Any, path: str) -> Iterator[Finding]:
    status = _status(path, follow=False)
    if status is not None and not stat.S_ISSOCK(status.st_mode):
        message = f"'{path}' of a <{device.tag}> exists and is not a socket"
        yield Finding("image-unusable", ERROR, None, message, device.line)
    elif status is not None and _is_listening(path):
        message = f"Another program listens at '{path}' of a <{device.tag}>"
        yield Finding("image-unusable", ERROR, None, message, device.line)
    if len(os.fsencode(os.path.basename(path))) > _NAME_MAX:
        message = f"The name of the socket '{shown(path)}' has more than {_NAME_MAX} bytes"
        yield Finding("image-unusable", ERROR, None, message, device.line)
