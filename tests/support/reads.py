# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Reads that are refused: the n-th read of a host by pyhostdev fails with an errno.

Every open, read, listing, link and stat below a fake host's directory counts, through ``os.path`` and streams too, but
not what the simulated kernel and the tests themselves read there. The rule: only a HostdevError comes out, and what
cannot be read never counts as absent.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

from crash import process, recovered, run_and_die
from refusals import check_refusal
from scenarios import Case, Stage

from pyhostdev.errors import HostdevError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util import confined, pciscan
from pyhostdev.util.hostroot import HostRoot

ERRNOS = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_CALLERS = ("crash", "scenarios", "refusals")  # whose frames are the end of a site
_WRITES = os.O_WRONLY | os.O_RDWR

_QUESTIONS = {confined.STATUS: "stat", confined.FILE: "read", confined.LINK: "readlink", confined.NAMES: "scandir"}

Site = tuple[str, ...]


class Read(NamedTuple):
    """One read: which call, of what, and through which lines of pyhostdev."""

    call: str
    path: str
    site: Site


class Reads:
    """
    Counts a block's reads below a fake host's directory, and refuses one of them.

    ``refused`` is the number, from 1, of the read that fails with ``errnum``; 0 refuses none. ``log`` has all reads.
    """

    def __init__(self, fake: FakeHost, refused: int = 0, errnum: int = 0) -> None:
        self.top = os.path.join(fake.root.path, "")
        self.refused = refused
        self.errnum = errnum
        self.log: list[Read] = []
        self._fds: dict[int, str] = {}
        self._patches = ExitStack()

    def __enter__(self) -> Reads:
        patch = self._patches.enter_context
        for name in ("listdir", "scandir", "readlink", "stat", "lstat"):
            patch(mock.patch.object(os, name, self._of_path(name, getattr(os, name))))
        for name in ("read", "pread", "fstat"):
            patch(mock.patch.object(os, name, self._of_descriptor(name, getattr(os, name))))
        for name in ("open_path", "open_directory", "open_file"):
            patch(mock.patch.object(confined, name, self._root_opener(getattr(confined, name))))
        patch(mock.patch.object(confined, "ask", self._asker(confined.ask)))
        patch(mock.patch.object(os, "open", self._opener(os.open)))
        patch(mock.patch.object(os, "close", self._closer(os.close)))
        patch(mock.patch.object(builtins, "open", self._stream_opener(builtins.open)))
        patch(mock.patch.object(pciscan, "_c", _Scanner(self, pciscan._c)))  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    @property
    def what(self) -> str:
        """Describe the refused read, for the message of a failed test."""
        if not 0 < self.refused <= len(self.log):
            return "nothing was refused"
        call, path, site = self.log[self.refused - 1]
        return f"{call} of '{path}' refused with {errno.errorcode[self.errnum]} at {' < '.join(site)}"

    def seen(self, call: str, path: str) -> None:
        """Count a read, or refuse it."""
        site = _site() if path.startswith(self.top) else ()
        if site:
            self.log.append(Read(call, path[len(self.top) :], site))
            if len(self.log) == self.refused:
                raise OSError(self.errnum, os.strerror(self.errnum), path)

    def place_of(self, fd: int) -> str:
        """Return the path of an open descriptor."""
        return self._fds.get(fd, "")

    def _place(self, path: Any, dir_fd: int | None = None) -> str:
        if isinstance(path, int):
            return self._fds.get(path, "")
        top = "" if dir_fd is None else self._fds.get(dir_fd, "")
        return os.path.join(top, os.fsdecode(path)).rstrip("/") or "/"

    def _of_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *args: Any, **options: Any) -> Any:
            self.seen(name, self._place(path, options.get("dir_fd")))
            return real(path, *args, **options)

        return call

    def _of_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            self.seen(name, self._place(fd))
            return real(fd, *args)

        return call

    def _opener(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **options: Any) -> int:
            place = self._place(path, options.get("dir_fd"))
            if not flags & _WRITES:
                self.seen("open", place)
            fd = real(path, flags, *args, **options)
            self._fds[fd] = place
            return fd

        return call

    def _root_opener(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(root: HostRoot, path: str, *args: Any) -> int:
            self.seen("open", path)
            fd = real(root, path, *args)
            self._fds[fd] = path
            return fd

        return call

    def _asker(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Count each of many questions; a refused one has the errno in its answer."""

        def call(root: HostRoot, kind: str, paths: Sequence[str], **limits: int) -> Any:
            facts, texts = real(root, kind, paths, **limits)
            for number, path in enumerate(paths):
                try:
                    self.seen(_QUESTIONS[kind], path)
                except OSError as err:
                    facts[number] = (0, 0, 0, 0, -(err.errno or 0))
            return facts, texts

        return call

    def _closer(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            self._fds.pop(fd, None)
            real(fd)

        return call

    def _stream_opener(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            place = self._place(file)
            if mode not in ("r", "rb") or not place.startswith(self.top) or not _site():
                return real(file, mode, *args, **options)
            if not isinstance(file, int):
                self.seen("open", place)
            stream = io.BufferedReader(_Raw(self, file, place))
            return stream if mode == "rb" else io.TextIOWrapper(stream, *args, **options)

        return call


class _Raw(io.FileIO):
    """A file whose reads are counted."""

    def __init__(self, reads: Reads, file: Any, path: str) -> None:
        super().__init__(file)
        self._reads = reads
        self._path = path

    def readinto(self, buffer: Any) -> int:
        self._reads.seen("read", self._path)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._reads.seen("read", self._path)
        return super().readall()


class _Scanner:
    """The C module of a scan, whose reads of configuration space and of groups are counted."""

    def __init__(self, reads: Reads, module: Any) -> None:
        self.reads = reads
        self.module = module
        self.ffi = module.ffi
        self.lib = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module.lib, name)

    def phd_read_at(self, root: bytes, path: bytes, *args: Any) -> int:
        try:
            self.reads.seen("phd_read_at", os.fsdecode(os.path.join(root, path)))
        except OSError as err:
            return -(err.errno or 0)
        count: int = self.module.lib.phd_read_at(root, path, *args)
        return count

    def phd_known_groups(self, groups_fd: int, *args: Any) -> int:
        """Count the lists of all groups as one read."""
        try:
            self.reads.seen("phd_known_groups", self.reads.place_of(groups_fd))
        except OSError as err:
            return -(err.errno or 0)
        ret: int = self.module.lib.phd_known_groups(groups_fd, *args)
        return ret


def _site() -> Site:
    """Return the lines of pyhostdev on the call stack, innermost first; empty if a test or its kernel reads."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("pyhostdev.testing"):
            return ()
        if module.startswith("pyhostdev."):
            found.append(f"{module.rpartition('.')[2]}:{frame.f_lineno}")
        elif module in _CALLERS:
            break
        frame = frame.f_back
    return tuple(found)


def errnos_in_turn(first: int) -> Iterator[int]:
    """Yield the errnos again and again, beginning with the n-th."""
    return islice(cycle(ERRNOS), first, None)


def is_left_out(read: Read, errnum: int) -> bool:
    """True for files that may be skipped without rights: others' descriptors, libvirtd's files, addresses."""
    place = f"{read.path}/"
    tops = ("run/libvirt/", "proc/iomem/", *(() if os.geteuid() == 0 else ("dev/vfio/",)))
    theirs = place.startswith(tops) or (place.startswith("proc/") and "/fd/" in place)
    return theirs and errnum in (errno.EACCES, errno.EPERM)


def reads_of(fake: FakeHost, action: Callable[[], object]) -> list[Read]:
    """Return all reads of an action, which is done."""
    with Reads(fake) as reads:
        action()
    return reads.log


def first_of_sites(log: list[Read]) -> list[int]:
    """Return the number of the first read of each site: loops over devices read many times in one place."""
    first: dict[Site, int] = {}
    for number, read in enumerate(log, 1):
        first.setdefault(read.site, number)
    return list(first.values())


def reads_of_phase(stage: Stage, phase: str) -> list[Read]:
    """Return all reads of a prepare or of a release."""
    action, victim = stage.action(phase), process(stage.fake)
    log = reads_of(stage.fake, lambda: action(victim.manager))
    if phase == "prepare":
        stage.scenario.release(process(stage.fake).manager)
    stage.rewind()
    return log


def reads_of_recover(stage: Stage, death: Case) -> list[Read]:
    """Return all reads of the recover after a death."""
    _leave_dead(stage, death)
    victim = process(stage.fake)
    log = reads_of(stage.fake, lambda: victim.manager.recover(timeout_s=0))
    stage.check_restored(death)
    return log


def _leave_dead(stage: Stage, death: Case) -> None:
    """Let a process die, and the kernel finish what it was at."""
    run_and_die(stage.action(death.phase), process(stage.fake, **death.fault))  # type: ignore[arg-type]
    stage.fake.kernel.complete()


def check_read(stage: Stage, phase: str, number: int, errnum: int) -> None:
    """Refuse one read of prepare or of release: all is as ``check_refusal`` wants it."""
    reads = Reads(stage.fake, number, errnum)
    check_refusal(stage, Case(phase, {"read": number}), errnum, reads)


def check_recover(stage: Stage, death: Case, number: int, errnum: int) -> None:
    """
    Refuse one read of the recover after a death.

    It reports for every device whether it is done, and reported results are real; the next recover finishes.
    """
    _leave_dead(stage, death)
    victim = process(stage.fake)
    with Reads(stage.fake, number, errnum) as reads:
        try:
            is_done = all(item.is_done for item in victim.manager.recover(timeout_s=0))
        except HostdevError:
            is_done = False
    if is_done:
        found = stage.look()
        recovered(stage.fake)
        assert found == stage.look(), (death, reads.what)
    stage.check_restored(death)
