# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Start programs as another user, and ask what that user may open.

The work between fork and exec is done in C (csrc/spawn.c), where no other thread's lock can be in the way.
subprocess.Popen knows users and groups, and neither the capability bounding set nor ``no_new_privs``; setting them in
its ``preexec_fn`` would run Python in a copy of a process with threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.errors import OperationError
from pyhostdev.util import _spawn as _c  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyhostdev.util.ownership import Ownership

ACCESS_TIMEOUT_S = 10.0  # a server of files that does not answer

_ERRNO = struct.Struct("=i")


class SpawnError(OperationError):
    """A program could not be started; ``stage`` says at what, ``errno`` why."""

    def __init__(self, program: str, stage: int, errnum: int) -> None:
        self.stage = stage
        self.errno = errnum
        doing = _DOING.get(stage, "")
        super().__init__(f"Cannot run {program!r}{doing}: {os.strerror(errnum)}")


class Bounds(NamedTuple):
    """
    What a program may use that is asked a question and writes no file.

    It dies with the thread that started it and gains no privilege by a file; where a PID namespace can be made (by
    root), nothing that it starts outlives it.
    """

    cpu_s: int
    address_bytes: int
    processes: int = 0  # of its user altogether; 0 leaves the caller's limit


_DOING = {
    _c.lib.PHD_SPAWN_FORK: ", no process can be made",
    _c.lib.PHD_SPAWN_DESCRIPTORS: ", its files cannot be handed over",
    _c.lib.PHD_SPAWN_LIMIT: ", its limit of locked memory cannot be set",
    _c.lib.PHD_SPAWN_BOUNDS: ", what it may use cannot be bounded",
    _c.lib.PHD_SPAWN_USER: ", it cannot become the user",
}


def is_limit(error: SpawnError) -> bool:
    """Tell whether a program was not started because of its limit of locked memory."""
    return bool(error.stage == _c.lib.PHD_SPAWN_LIMIT)


class _Memory:
    """C values that stay alive for as long as this does."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def new(self, kind: str, value: Any) -> Any:
        pointer = _c.ffi.new(kind, value)
        self._kept.append(pointer)
        return pointer

    def strings(self, texts: Sequence[str]) -> Any:
        """Return the NULL-terminated array of an argv."""
        return self.new("char *[]", [*(self.string(text) for text in texts), _c.ffi.NULL])

    def string(self, text: str) -> Any:
        return self.new("char[]", os.fsencode(text))

    def user(self, ownership: Ownership | None) -> Any:
        """Return a user's numbers; NULL where nothing is to change."""
        if ownership is None:
            return _c.ffi.NULL
        groups = ownership.groups()
        array = self.new("uint32_t[]", groups)
        return self.new("struct phd_user *", (ownership.uid, ownership.gid, array, len(groups)))


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    output_fd: int,
    keep_fds: Sequence[int] = (),
    ownership: Ownership | None = None,
    memlock: tuple[int, int] | None = None,
    bounds: Bounds | None = None,
) -> int:
    """
    Start a program in a session of its own, in ``/``; return the pid of a child that the caller waits for.

    Args:
        argv: the first word is the program's absolute path.
        output_fd: gets its standard output and error; its standard input is empty.
        keep_fds: inherited under their own numbers, which are above 2; all others are closed.
        ownership: whom it becomes, without capabilities and without a way to win any; None leaves all as it is.
        memlock: soft and hard limit of the bytes that it may lock; None leaves it.
        bounds: of a program that only answers; the caller's thread has to live as long as it.

    Raises:
        SpawnError: it could not be started; nothing runs.
    """
    check_texts([*argv, *env.values()])
    memory = _Memory()
    keep = sorted(set(keep_fds))
    request = memory.new(
        "struct phd_spawn_request *",
        {
            "file": memory.string(argv[0]),
            "argv": memory.strings(argv),
            "envp": memory.strings([f"{name}={value}" for name, value in env.items()]),
            "out_fd": output_fd,
            "keep": memory.new("int[]", keep),
            "n_keep": len(keep),
            "user": memory.user(ownership),
            "memlock": _c.ffi.NULL if memlock is None else memory.new("uint64_t[]", [_limit(n) for n in memlock]),
            "bounds": _c.ffi.NULL if bounds is None else memory.new("struct phd_bounds *", tuple(bounds)),
        },
    )
    error = memory.new("struct phd_spawn_error *", None)
    pid: int = _c.lib.phd_spawn(request, error)
    if pid < 0:
        raise SpawnError(argv[0], error.stage, error.errnum)
    return pid


def check_texts(texts: Sequence[str]) -> None:
    """
    Refuse what would end early in C.

    Raises:
        OperationError: there is a NUL byte in one of them.
    """
    bad = next((text for text in texts if "\0" in text), None)
    if bad is not None:
        raise OperationError(f"A NUL byte cannot be told to a program: {bad!a}")


def _limit(value: int) -> int:
    return (1 << 64) - 1 if value == resource.RLIM_INFINITY else value


@contextlib.contextmanager
def standard_descriptors() -> Iterator[None]:
    """Keep 0, 1 and 2 occupied, so that nothing opened inside gets the number of a stream that the caller closed."""
    with contextlib.ExitStack() as opened:
        while True:
            fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            if fd > 2:
                break
        yield


def access_errors(
    files: Sequence[tuple[str, int]], ownership: Ownership | None, *, timeout_s: float = ACCESS_TIMEOUT_S
) -> list[int]:
    """
    Ask the kernel whether a user may open files, supplementary groups considered; nothing is opened.

    Args:
        files: paths, each with os.R_OK, os.W_OK and os.X_OK combined, or os.F_OK.
        ownership: whose right is asked for; None asks for our own.
        timeout_s: for all of them.

    Returns:
        An errno for each, 0 where it may; ETIMEDOUT for those that got no answer within the time.

    Raises:
        OperationError: the question cannot be put.
    """
    check_texts([path for path, _ in files])
    memory = _Memory()
    array = memory.new("struct phd_access[]", [(memory.string(path), mode) for path, mode in files])
    with standard_descriptors():
        read_fd, write_fd = os.pipe()
        try:
            pid = _c.lib.phd_access_start(array, len(files), memory.user(ownership), write_fd)
        finally:
            os.close(write_fd)
        try:
            if pid < 0:
                raise OperationError(f"No process can be made: {os.strerror(-pid)}")
            answers = _read_answers(read_fd, len(files), timeout_s)
        finally:
            os.close(read_fd)
            status = _end(pid) if pid > 0 else 0
    if status != 0 and len(answers) < len(files):
        raise OperationError(f"Cannot become the user {ownership.name if ownership else ''!r} to ask what it may open")
    return answers + [errno.ETIMEDOUT] * (len(files) - len(answers))


def _read_answers(fd: int, count: int, timeout_s: float) -> list[int]:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    data = b""
    while len(data) < count * _ERRNO.size:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            break
        chunk = os.read(fd, count * _ERRNO.size - len(data))
        if not chunk:
            break
        data += chunk
    whole = len(data) // _ERRNO.size * _ERRNO.size
    return [number for (number,) in _ERRNO.iter_unpack(data[:whole])]


def _end(pid: int) -> int:
    """
    Reap a child of ours that only asks; return its exit status, 0 when it had to be ended.

    One that hangs in the kernel, with a file server, is left: nobody waits for what cannot be killed.
    """
    pidfd = os.pidfd_open(pid)
    try:
        ready = select.poll()
        ready.register(pidfd, select.POLLIN)
        if not ready.poll(200):  # it has answered, and is about to end
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not ready.poll(1000):
                return 0
        return max(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    except ChildProcessError:  # the importer ignores SIGCHLD: the kernel has reaped it
        return 0
    finally:
        os.close(pidfd)
