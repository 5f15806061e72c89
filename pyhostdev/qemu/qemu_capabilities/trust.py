# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Whether a program that a definition names may be run to ask what it can do.

A definition comes from anyone. Running what it names as the caller would hand the caller's rights to its author
(libvirt had this fault as CVE-2019-10167).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

_LINKS_MAX = 40  # as the kernel follows
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def why_untrusted(path: str) -> str | None:
    """
    Return why a program is not run, None when it may be.

    It may be run when its path is absolute and every component, the program and what links lead to included, belongs
    to root (or to the caller) and can be changed by no one else.
    """
    if not os.path.isabs(path) or os.path.normpath(path) != path:
        return "its path is not absolute and normal"
    try:
        real = os.path.realpath(path, strict=True)
        for component in _components(path):
            problem = _problem(component)
            if problem is not None:
                return problem
        if not stat.S_ISREG(os.stat(real).st_mode):
            return "it is not a regular file"
    except OSError as err:
        return f"it cannot be looked at: {err.strerror}"
    return None if os.access(real, os.X_OK) else "it is not executable"


def _components(path: str) -> Iterator[str]:
    """
    Yield every directory, link and file that the kernel looks at on the way to a program.

    ".." in a link is taken from the directory that was reached, not from the link's text.
    """
    todo = list(reversed(PurePosixPath(path).parts[1:]))
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
        target = PurePosixPath(os.readlink(component))
        reached = "/" if target.is_absolute() else reached
        todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _problem(component: str) -> str | None:
    status = os.lstat(component)
    if status.st_uid not in (0, os.geteuid()):
        return f"'{component}' belongs to user {status.st_uid}"
    if not stat.S_ISLNK(status.st_mode) and status.st_mode & _WRITABLE_BY_OTHERS:
        return f"others can write to '{component}'"
    return None
