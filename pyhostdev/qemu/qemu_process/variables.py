# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Create the store of a guest's firmware variables from its template, if it is missing.

Mirrors: qemuPrepareNVRAM (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_process.places import open_place, open_source
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from pyhostdev.conf.os_conf import OSDef
    from pyhostdev.util.ownership import Ownership


def make_variables(os_: OSDef, ownership: Ownership | None) -> bool:
    """
    Copy the template to the store of a guest, readable for QEMU's user only; return False if nothing was to do.

    An existing store is never overwritten, and a new one appears complete or not at all.

    Raises:
        OperationError: the copy failed, QEMU's user may not read the template or write to the directory, or the
            formats of store and template differ.
    """
    path, template = os_.nvram, os_.nvram_template
    if not path or not template or os.path.lexists(path):
        return False
    formats = [os_.nvram_template_format or "raw", os_.nvram_format or "raw"]
    if formats[0] != formats[1]:
        raise OperationError(f"Cannot make '{path}' of format {formats[1]} from '{template}' of format {formats[0]}")
    try:
        _copy(template, path, ownership)
    except FileExistsError:  # made by another start in the meantime
        return False
    except OSError as err:
        raise OperationError(f"Cannot make '{path}' from '{template}': {err.strerror or err}") from err
    return True


def _copy(template: str, path: str, ownership: Ownership | None) -> None:
    """Write a temporary file and link it to the path: unlike a rename, a link never replaces a file."""
    directory, name = os.path.split(path)
    with contextlib.ExitStack() as undo:
        source = undo.enter_context(os.fdopen(open_source(template, ownership), "rb"))
        place = open_place(directory, HostRoot.NVRAM, ownership)
        undo.callback(os.close, place)
        partial = f".{name}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = undo.enter_context(os.fdopen(os.open(partial, flags, 0o600, dir_fd=place), "wb"))
        undo.callback(_unlink, partial, place)
        shutil.copyfileobj(source, target)
        target.flush()
        if ownership is not None:
            os.fchown(target.fileno(), ownership.uid, ownership.gid)
        os.fsync(target.fileno())
        os.link(partial, name, src_dir_fd=place, dst_dir_fd=place, follow_symlinks=False)


def _unlink(name: str, place: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=place)
