# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Decide whether the emulator that a definition names may be run to probe it.

A definition may come from an untrusted user. Running its emulator with the caller's privileges would give these
privileges to the author of the definition (in libvirt: CVE-2019-10167).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

_LINKS_MAX = 40  # the kernel's limit
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def why_untrusted(path: str) -> str | None:
    """
    Return why a program must not be run, None if it may be run.

    It may be run if its path is absolute and only root or the caller owns, and can change, every component: each
    directory, each symbolic link and its target, and the program.
    """
    if not os.path.isabs(path) or os.path.normpath(path) != path:
        return "its path is not absolute, or has '.', '..' or empty components"
    try:
        real = os.path.realpath(path, strict=True)
        for component in _components(path):
            problem = _problem(component)
            if problem is not None:
                return problem
        if not stat.S_ISREG(os.stat(real).st_mode):
            return "it is not a regular file"
    except OSError as err:
        return f"cannot read its status: {err.strerror}"
    return None if os.access(real, os.X_OK) else "it is not executable"


def _components(path: str) -> Iterator[str]:
    """
    Yield every directory, link and file that the kernel visits when it resolves the path of a program.

    ".." in the target of a link is relative to the directory that was reached, not to the text of the link.
    """
    todo = _parts(path)
    reached, links = "/", 0
    yield reached
    while todo:
        part = todo.pop()
        if part == "..":
            reached = os.path.dirname(reached)
            continue
        component = os.path.join(reached, part)
        yield component
        if not os.path.islink(component):
            reached = component
            continue
        links += 1
        if links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(component)
        reached = "/" if target.startswith("/") else reached
        todo += _parts(target)


def _parts(path: str) -> list[str]:
    """Return the components of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _problem(component: str) -> str | None:
    status = os.lstat(component)
    if status.st_uid not in (0, os.geteuid()):
        return f"'{component}' is owned by user {status.st_uid}"
    if not stat.S_ISLNK(status.st_mode) and status.st_mode & _WRITABLE_BY_OTHERS:
        return f"other users can write to '{component}'"
    return None
