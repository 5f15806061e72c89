# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where a privileged start creates files for a guest, and which files it copies: only what QEMU's user could do itself.

The XML names the paths. Without these checks it could have root create a file or directory anywhere, owned by QEMU's
user, or show the guest a file that only root may read. Checks are made on descriptors, so that a path that is replaced
meanwhile changes nothing.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_process.launch import make_directories

if TYPE_CHECKING:
    from pyhostdev.util.ownership import Ownership


def open_place(directory: str, own: str, ownership: Ownership | None) -> int:
    """
    Return a descriptor of the directory in which something is created for a guest.

    Args:
        own: the directory that is made where it is missing; any other must be one in which the user may create files.
        ownership: QEMU's user; None is the current user: any directory is made then.

    Raises:
        OperationError: the user may not create anything there.
        OSError: the directory is missing or cannot be opened.
    """
    if directory == own or ownership is None:
        make_directories(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if directory != own and ownership is not None and not _may(os.fstat(fd), ownership, os.W_OK | os.X_OK):
        os.close(fd)
        raise OperationError(f"User {ownership.name} may not create anything in '{directory}'")
    return fd


def open_source(path: str, ownership: Ownership | None) -> int:
    """
    Return a descriptor of a regular file whose content a guest will see.

    Raises:
        OperationError: it is not a regular file, or the user may not read it.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and (ownership is None or _may(status, ownership, os.R_OK)):
        return fd
    os.close(fd)
    raise OperationError(f"'{path}' is not a regular file that QEMU's user may read")


def make_private_directory(path: str, own: str, ownership: Ownership | None) -> None:
    """
    Make a directory for QEMU's user alone; the one above it is as for ``open_place``.

    Raises:
        OperationError: the user may not create anything there, or another process replaced the directory.
        OSError: it cannot be made.
    """
    parent, name = os.path.split(path)
    place = open_place(parent, own, ownership)
    try:
        os.mkdir(name, 0o700, dir_fd=place)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    finally:
        os.close(place)
    try:
        if os.fstat(made).st_uid != os.geteuid():
            raise OperationError(f"Another process replaced the directory '{path}'")
        if ownership is not None:
            os.fchown(made, ownership.uid, ownership.gid)
    finally:
        os.close(made)


def _may(status: os.stat_result, ownership: Ownership, mode: int) -> bool:
    """Tell whether the mode of a file grants rights to a user; other groups of the user do not count."""
    if ownership.uid == 0:
        return True
    shift = 6 if status.st_uid == ownership.uid else 3 if status.st_gid == ownership.gid else 0
    return status.st_mode >> shift & mode == mode
