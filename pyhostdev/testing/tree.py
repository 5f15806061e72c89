# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The files below a host's root, read and changed so that nothing outside the root is touched, even in an untrusted tree.

Only regular files of a bounded size are read, and opening them never blocks. Only new files, or files without a second
name, which could be outside, are written.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from pyhostdev.testing.treewalk import DEPTH_MAX, Place, Walker, failure
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

FILE_MAX = 1 << 24  # bytes; the state of a large host takes some 100 KiB
_PART = 1 << 16  # bytes read at once; most files are smaller
TEMPORARY = "fakehost.new."  # prefix of files that a dead writer leaves at the top

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = (FileNotFoundError, NotADirectoryError)


def is_live_host(root: HostRoot) -> bool:
    """Tell whether a root is the live host, by any name; False if the root does not exist yet."""
    try:
        return root.is_live or os.path.samefile(root.path, HostRoot("/").path)
    except FileNotFoundError:
        return False


class Tree:
    """
    The files of one host, by the paths of its HostRoot.

    A ``with`` block keeps directories open for a series of changes without other writers; outside of a block, each call
    opens what it needs. Every change can be repeated without harm: an interrupted kernel repeats its last write. A
    failing system call raises OSError; ELOOP and EXDEV mean that a path does not lead to a place in the host.
    """

    __slots__ = ("_top", "_walker", "root")

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self._top = root.join("")
        self._walker: Walker | None = None

    def __enter__(self) -> Tree:
        self._walker = Walker(self.root.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._walker is not None
        self._walker.close()  # now, because a kept error would keep the frames with their descriptors
        self._walker = None

    def fileno(self) -> int:
        """Return the root's descriptor, for a lock that ends with the block."""
        return self._walking().top

    def _walking(self) -> Walker:
        if self._walker is None:
            return Walker(self.root.path)
        self._walker.make_room()
        return self._walker

    def _below(self, path: str) -> str:
        """
        Return a path relative to the root.

        Raises:
            OSError: EXDEV if the path does not begin with the root.
        """
        if path.startswith(self._top):
            return path[len(self._top) :]
        if path == self.root.path:
            return ""
        raise failure(errno.EXDEV, path)

    # Reading

    def place(self, path: str) -> str:
        """Return a path without links; the last component may be absent."""
        return self.root.join(self._walking().find(self._below(path), follow=True).path).rstrip("/")

    def status(self, path: str, *, follow: bool = False) -> os.stat_result | None:
        """Return the status of an entry, without following a link by default; None if it does not exist."""
        walker = self._walking()
        try:
            place = walker.find(self._below(path), follow=follow)
            return os.stat(place.name, dir_fd=place.fd, follow_symlinks=False)
        except _ABSENT:
            return None

    def exists(self, path: str) -> bool:
        """True if an entry exists; False for a dangling link."""
        return self.status(path, follow=True) is not None

    def has_entry(self, path: str) -> bool:
        """True if an entry exists, even as a dangling link."""
        return self.status(path) is not None

    def is_directory(self, path: str) -> bool:
        """True for a directory, and for a link to one."""
        try:
            self._walking().enter(self._below(path))
        except _ABSENT:
            return False
        return True

    def link_name(self, path: str) -> str | None:
        """Return the last component of a link's target, None if the path is not a link."""
        target = self.read_link(path)
        return None if target is None else os.path.basename(target)

    def read_link(self, path: str) -> str | None:
        """Return a link's target, None if the path is not a link."""
        walker = self._walking()
        try:
            place = walker.find(self._below(path))
            return os.readlink(place.name, dir_fd=place.fd)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
                return None
            raise

    def list_dir(self, path: str) -> list[str]:
        """Return the sorted names in a directory, an empty list if it does not exist."""
        walker = self._walking()
        try:
            fd = os.open(".", _LIST, dir_fd=walker.enter(self._below(path)))
        except _ABSENT:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def open_file(self, path: str, flags: int = os.O_RDONLY) -> int:
        """
        Open an existing regular file.

        Raises:
            OSError: EINVAL if it is something else.
        """
        walker = self._walking()
        place = walker.find(self._below(path), follow=True)
        return _open_ordinary(place.fd, place.name, flags)

    def read_file(self, path: str) -> bytes | None:
        """Return a file's bytes, None if it does not exist."""
        try:
            fd = self.open_file(path)
        except _ABSENT:
            return None
        try:
            return _read_whole(fd, path)
        finally:
            os.close(fd)

    # Changing

    def make_dirs(self, path: str, *, exist_ok: bool = True) -> None:
        """
        Create a directory and its missing parents.

        Raises:
            FileExistsError: the directory exists and ``exist_ok`` is False, or the path is something else.
        """
        try:
            self._make_dir(path)
        except FileNotFoundError:
            self.make_dirs(os.path.dirname(path))
            self._make_dir(path)
        except FileExistsError:
            if not exist_ok or not self.is_directory(path):
                raise

    def _make_dir(self, path: str) -> None:
        walker = self._walking()
        place = walker.find(self._below(path))
        os.mkdir(place.name, 0o755, dir_fd=place.fd)

    def put_file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """
        Write the whole contents of a new or an existing file.

        Raises:
            OSError: EINVAL if the path is not a regular file, or the file has another name.
        """
        walker = self._walking()
        place = walker.find(self._below(path))
        fd = _open_to_write(place, mode)
        try:
            _write_whole(fd, content)
            os.ftruncate(fd, len(content))
        finally:
            os.close(fd)

    def replace_file(self, path: str, content: bytes) -> None:
        """Replace a file or a link by a new file; a killed process leaves the old or the new one."""
        walker = self._walking()
        temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o644, dir_fd=walker.top)
        try:
            place = walker.find(self._below(path))
            _write_whole(fd, content)
            os.rename(temporary, place.name, src_dir_fd=walker.top, dst_dir_fd=place.fd)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=walker.top)
            raise
        finally:
            os.close(fd)

    def sweep(self) -> None:
        """Remove the temporary files of dead writers; the caller keeps other writers away."""
        for name in self.list_dir(self.root.path):
            if name.startswith(TEMPORARY):
                self.drop_file(self.root.join(name))

    def put_link(self, path: str, target: str) -> None:
        """Create a relative link from path to the target's real path, replacing any other link."""
        walker = self._walking()
        real = self.place(target)
        place = walker.find(self._below(path))
        text = os.path.relpath(real, self.root.join(place.directory))
        try:
            os.symlink(text, place.name, dir_fd=place.fd)
        except FileExistsError:
            walker.forget(place)
            os.unlink(place.name, dir_fd=place.fd)
            os.symlink(text, place.name, dir_fd=place.fd)

    def put_text_link(self, path: str, text: str) -> None:
        """Create a link with a text that may lead nowhere, like the links below proc."""
        walker = self._walking()
        place = walker.find(self._below(path))
        os.symlink(text, place.name, dir_fd=place.fd)

    def move(self, path: str, other: str) -> None:
        """Rename an entry with all its contents."""
        walker = self._walking()
        old = walker.find(self._below(path))
        walker.forget(old)
        new = walker.find(self._below(other))
        os.rename(old.name, new.name, src_dir_fd=old.fd, dst_dir_fd=new.fd)

    def copy_tree(self, path: str, other: str) -> None:
        """
        Copy a directory of directories, regular files and links.

        Raises:
            OSError: EINVAL for an entry of another kind.
        """
        walker = self._walking()
        old, new = walker.find(self._below(path)), walker.find(self._below(other))
        _copy(old.fd, old.name, new.fd, new.name, DEPTH_MAX)

    def drop_file(self, path: str) -> None:
        """Remove a file or a link, if it exists."""
        walker = self._walking()
        with suppress(*_ABSENT):
            place = walker.find(self._below(path))
            os.unlink(place.name, dir_fd=place.fd)
            walker.forget(place)

    def drop_empty(self, path: str) -> bool:
        """Remove a directory, and tell whether it is gone; one with entries stays."""
        walker = self._walking()
        try:
            place = walker.find(self._below(path))
            os.rmdir(place.name, dir_fd=place.fd)
        except OSError as err:
            if err.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            return err.errno == errno.ENOENT
        walker.forget(place)
        return True

    def drop_tree(self, path: str) -> None:
        """Remove an entry with all its contents, if it exists."""
        walker = self._walking()
        with suppress(*_ABSENT):
            place = walker.find(self._below(path))
            walker.forget(place)
            _drop(place.fd, place.name, DEPTH_MAX)


def _open_to_write(place: Place, mode: int) -> int:
    """Open a new file, or an existing file without another name."""
    try:
        return os.open(place.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, mode, dir_fd=place.fd)
    except FileExistsError:
        fd = _open_ordinary(place.fd, place.name, os.O_WRONLY)
    if os.fstat(fd).st_nlink != 1:
        os.close(fd)
        raise failure(errno.EINVAL, place.path)
    return fd


def _open_ordinary(top: int, name: str, flags: int) -> int:
    """Open a regular file and nothing else: opening a pipe may block, and opening a device may have effects."""
    _check_ordinary(os.stat(name, dir_fd=top, follow_symlinks=False), name)
    fd = os.open(name, flags | _SAFE, dir_fd=top)
    try:
        _check_ordinary(os.fstat(fd), name)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_ordinary(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise failure(errno.EINVAL, name)


def _read_whole(fd: int, path: str) -> bytes:
    content = b""
    while part := os.read(fd, _PART):
        content += part
        if len(content) > FILE_MAX:
            raise failure(errno.EFBIG, path)
    return content


def _write_whole(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _drop(top: int, name: str, depth: int) -> None:
    with suppress(FileNotFoundError):  # another process removed it meanwhile
        try:
            fd = os.open(name, _LIST, dir_fd=top)
        except NotADirectoryError:  # also raised for a link
            os.unlink(name, dir_fd=top)
            return
        try:
            _drop_entries(fd, depth)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top)


def _drop_entries(fd: int, depth: int) -> None:
    for entry in os.listdir(fd):
        if depth == 0:
            raise failure(errno.ELOOP, entry)
        _drop(fd, entry, depth - 1)


def _copy(old: int, name: str, new: int, other: str, depth: int) -> None:
    status = os.stat(name, dir_fd=old, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=old), other, dir_fd=new)
    elif stat.S_ISDIR(status.st_mode):
        _copy_directory(old, name, new, other, depth)
    else:
        _copy_file(old, name, new, other, stat.S_IMODE(status.st_mode) & 0o777)


def _copy_directory(old: int, name: str, new: int, other: str, depth: int) -> None:
    if depth == 0:
        raise failure(errno.ELOOP, name)
    os.mkdir(other, 0o755, dir_fd=new)
    source = os.open(name, _LIST, dir_fd=old)
    try:
        target = os.open(other, _LIST, dir_fd=new)
        try:
            for entry in os.listdir(source):
                _copy(source, entry, target, entry, depth - 1)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_file(old: int, name: str, new: int, other: str, mode: int) -> None:
    source = _open_ordinary(old, name, os.O_RDONLY)
    try:
        target = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, mode, dir_fd=new)
        try:
            _write_whole(target, _read_whole(source, name))
        finally:
            os.close(target)
    finally:
        os.close(source)
