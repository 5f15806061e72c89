# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A cache of probe results, so that an emulator is probed only once.

There is one file per emulator binary, named after the binary's identity. A directory or a file that another user could
have written is not used. If a file cannot be read, the emulator is probed again. Without a directory there is no cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import Any

from pyhostdev.errors import OperationError
from pyhostdev.util.statedir import make_directory
from pyhostdev.util.virjson import parse_json

FORMAT = 3
ROOT_DIRECTORY = "/var/cache/pyhostdev"
ENTRY_BYTES = 4 << 20


def directory() -> str | None:
    """Return the caller's cache directory, None if its home is unknown; for root it does not depend on HOME."""
    if os.geteuid() == 0:
        return ROOT_DIRECTORY
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "pyhostdev") if os.path.isabs(base) else None


def identity(path: str) -> dict[str, Any]:
    """
    Return the values that change when the file at path is replaced.

    Raises:
        OSError: stat failed.
    """
    real = os.path.realpath(path)
    status = os.stat(real)
    return {
        "format": FORMAT,
        "path": real,
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def read(path: str) -> dict[str, Any] | None:
    """Return the result of an earlier probe of this file, None without a usable one."""
    top = _own_directory(create=False)
    if top is None:
        return None
    try:
        wanted = identity(path)
        entry = parse_json(_read_own_file(os.path.join(top, _name(wanted))))
        data = entry["data"] if entry["identity"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return data if isinstance(data, dict) else None


def write(path: str, before: dict[str, Any], data: dict[str, Any]) -> None:
    """
    Store the result of a probe, unless the file changed in the meantime; an unwritable cache is not an error.

    Args:
        before: the file's identity before the probe.
    """
    top = _own_directory(create=True)
    if top is None:
        return
    with contextlib.suppress(OSError):
        if identity(path) == before:
            _write_own_file(top, _name(before), json.dumps({"identity": before, "data": data}).encode())


def _name(wanted: dict[str, Any]) -> str:
    import hashlib  # loads OpenSSL; only an emulator that is asked has an answer to keep

    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest() + ".json"


def _own_directory(*, create: bool) -> str | None:
    """Return the cache directory if it belongs to the caller and no other user can write to it, else None."""
    top = directory()
    if top is None:
        return None
    with contextlib.suppress(OSError, OperationError):
        if create:
            make_directory(top, 0o700)
        status = os.lstat(top)
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if is_own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return top
    return None


def _read_own_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as stream:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return b""
        return stream.read(ENTRY_BYTES)


def _write_own_file(top: str, name: str, content: bytes) -> None:
    temporary = os.path.join(top, f".{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as stream:
            stream.write(content)
        os.rename(temporary, os.path.join(top, name))
    except OSError:
        os.unlink(temporary)
        raise
