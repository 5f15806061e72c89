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
    """Yield every directory, link and file on the way to a program, each link's target included."""
    todo = [path]
    for _ in range(_LINKS_MAX):
        if not todo:
            return
        parts = PurePosixPath(todo.pop())
        for part in reversed([parts, *parts.parents]):
            yield str(part)
            if os.path.islink(part):
                target = os.path.join(os.path.dirname(part), os.readlink(part), parts.relative_to(part))
                todo.append(os.path.normpath(target))
                break
    if todo:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _problem(component: str) -> str | None:
    status = os.lstat(component)
    if status.st_uid not in (0, os.geteuid()):
        return f"'{component}' belongs to user {status.st_uid}"
    if not stat.S_ISLNK(status.st_mode) and status.st_mode & _WRITABLE_BY_OTHERS:
        return f"others can write to '{component}'"
    return None
