# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The number of the device at a path, without waiting for a file server.

stat(2) of a file on FUSE or on a network asks its server, which may be an untrusted program that never answers.

Source: statx(2), include/uapi/linux/stat.h
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE = 0x1
_SIZE = 256
_MODE = struct.Struct("=28xH")
_RDEV = struct.Struct("=128xII")  # major, minor

_libc = ctypes.CDLL(None, use_errno=True)


def read_device_number(path: str) -> int | None:
    """
    Return the number of a character device, None for any other file.

    Raises:
        OSError: from statx(2).
    """
    buffer = ctypes.create_string_buffer(_SIZE)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_TYPE, buffer) != 0:
        errnum = ctypes.get_errno()
        raise OSError(errnum, os.strerror(errnum), path)
    (mode,) = _MODE.unpack_from(buffer.raw)
    return os.makedev(*_RDEV.unpack_from(buffer.raw)) if stat.S_ISCHR(mode) else None
