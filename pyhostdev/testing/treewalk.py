# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Resolves a path below a root to the open parent directory of its last component, without leaving the root.

A path is resolved as in a chroot: a link's target is looked up below the root, and ``..`` stops there. Every component
is opened on its own and never through a link, so a concurrent change of the tree cannot lead outside.
"""

from __future__ import annotations

import errno
import os

from pyhostdev.util.typed import NamedTuple

_LINKS_MAX = 40  # Source: MAXSYMLINKS (include/linux/namei.h)
DEPTH_MAX = 64  # nested directories; a sysfs has less than half of that
_OPEN_MAX = 256
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def failure(errnum: int, path: str) -> OSError:
    """Return an error in the form of a system error."""
    return OSError(errnum, os.strerror(errnum), path)


class Place(NamedTuple):
    """One entry: its directory, as a path without links and as a descriptor, and its name there."""

    directory: str
    fd: int
    name: str

    @property
    def path(self) -> str:
        """The entry's path below the root, without links up to the name."""
        return self.directory if self.name == "." else f"{self.directory}{self.name}"


class Walker:
    """
    The opened directories of one tree, by their paths without links; each path ends with a slash.

    They stay open until ``close``, or as long as the object lives. A caller that changes where a path leads has to
    ``forget`` it.
    """

    __slots__ = ("_fds", "_links", "_links_left")

    def __init__(self, top: str) -> None:
        self._fds: dict[str, int] = {}
        self._links: dict[str, str] = {}  # path of a link to the directory it leads to
        self._links_left = _LINKS_MAX
        self._fds[""] = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close all directories, including the root."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    __del__ = close

    @property
    def top(self) -> int:
        """The root's descriptor."""
        return self._fds[""]

    def make_room(self) -> None:
        """Close all but the root if many are open, because a process may only open a limited number."""
        if len(self._fds) > _OPEN_MAX // 2:
            self._links.clear()
            for path in [path for path in self._fds if path]:
                os.close(self._fds.pop(path))

    def forget(self, place: Place) -> None:
        """Close the directories at or below a place, so that they are opened again."""
        self._links.clear()
        path = f"{place.path}/"
        for known in [known for known in self._fds if known.startswith(path)]:
            os.close(self._fds.pop(known))

    def find(self, path: str, *, follow: bool = False) -> Place:
        """
        Return the place of a path's last component; with ``follow``, links are resolved until it is not a link.

        Raises:
            OSError: the system error for a component; ELOOP for too many links or directories.
        """
        self._links_left = _LINKS_MAX
        top, _, name = path.rpartition("/")
        place = self._place("" if not top else self._enter("", top), name)
        for _ in range(_LINKS_MAX if follow else 0):
            try:
                target = os.readlink(place.name, dir_fd=place.fd)
            except OSError:  # not a link, or absent
                break
            base = "" if target.startswith("/") else place.directory
            top, _, name = target.rstrip("/").rpartition("/")
            place = self._place(self._enter(base, top), name)
        return place

    def _place(self, directory: str, name: str) -> Place:
        if name == "..":
            directory = _above(directory)
        return Place(directory, self._fds[directory], "." if name in ("", "..") else name)

    def enter(self, path: str) -> int:
        """
        Return a descriptor of a directory.

        Raises:
            OSError: as ``find``, or the path is not a directory.
        """
        self._links_left = _LINKS_MAX
        return self._fds[self._enter("", path)]

    def _enter(self, directory: str, path: str) -> str:
        """Follow a path from a directory, and return the directory that it leads to."""
        for name in path.split("/"):
            if name == "..":
                directory = _above(directory)
            elif name not in ("", "."):
                below = f"{directory}{name}/"
                directory = below if below in self._fds else self._links.get(below) or self._step(directory, name)
        return directory

    def _step(self, directory: str, name: str) -> str:
        """Open one directory, or resolve a link to one."""
        below = f"{directory}{name}/"
        if directory.count("/") >= DEPTH_MAX or len(self._fds) >= _OPEN_MAX or not self._links_left:
            raise failure(errno.ELOOP, below)
        top = self._fds[directory]
        try:
            self._fds[below] = os.open(name, _DIRECTORY, dir_fd=top)
        except NotADirectoryError:
            target = _read_link(name, top, below)
        else:
            return below
        self._links_left -= 1
        base = "" if target.startswith("/") else directory
        self._links[below] = self._enter(base, target)
        return self._links[below]


def _above(directory: str) -> str:
    return directory[: directory.rfind("/", 0, -1) + 1]


def _read_link(name: str, top: int, path: str) -> str:
    try:
        return os.readlink(name, dir_fd=top)
    except OSError as err:
        if err.errno == errno.EINVAL:  # neither a link nor a directory
            raise failure(errno.ENOTDIR, path) from None
        raise
