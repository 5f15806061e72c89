# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Start programs as another user, and test which files that user may open.

The work between fork and exec is done in C (csrc/spawn.c), where another thread's lock cannot interfere.
subprocess.Popen supports users and groups, but neither the capability bounding set nor ``no_new_privs``. Its
``preexec_fn`` could set them, but would run Python in the copy of a threaded process.
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
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import OperationError
from pyhostdev.util import _spawn as _c  # type: ignore[attr-defined]
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyhostdev.util.ownership import Ownership

ACCESS_TIMEOUT_S = 10.0  # the deadline for a file server that does not answer

_ERRNO = struct.Struct("=i")


class SpawnError(OperationError):
    """A program could not be started; ``stage`` tells at which step, ``errno`` why."""

    def __init__(self, program: str, stage: int, errnum: int) -> None:
        self.stage = stage
        self.errno = errnum
        doing = _DOING.get(stage, "")
        super().__init__(f"Cannot run {program!r}{doing}: {os.strerror(errnum)}")


class Bounds(NamedTuple):
    """
    The limits of a program that only answers a query and writes no file.

    It dies with the thread that started it and gains no privilege from a file. If a PID namespace can be created (by
    root), none of its children outlives it.
    """

    cpu_s: int
    address_bytes: int
    processes: int = 0  # of its user in total; 0 keeps the caller's limit


_DOING = {
    _c.lib.PHD_SPAWN_FORK: ", a process cannot be created",
    _c.lib.PHD_SPAWN_DESCRIPTORS: ", its files cannot be passed on",
    _c.lib.PHD_SPAWN_LIMIT: ", its limit of locked memory cannot be set",
    _c.lib.PHD_SPAWN_BOUNDS: ", its resources cannot be limited",
    _c.lib.PHD_SPAWN_USER: ", it cannot become the user",
}


def is_limit(error: SpawnError) -> bool:
    """Tell whether a program was not started because its limit of locked memory could not be set."""
    return bool(error.stage == _c.lib.PHD_SPAWN_LIMIT)


class _Memory:
    """C values that live as long as this object."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def new(self, kind: str, value: Any) -> Any:
        pointer = _c.ffi.new(kind, value)
        self._kept.append(pointer)
        return pointer

    def strings(self, texts: Sequence[str]) -> Any:
        """Return the NULL-terminated array for an argv."""
        return self.new("char *[]", [*(self.string(text) for text in texts), _c.ffi.NULL])

    def string(self, text: str) -> Any:
        return self.new("char[]", os.fsencode(text))

    def user(self, ownership: Ownership | None) -> Any:
        """Return a user's numbers; NULL to change nothing."""
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
    Start a program in its own session, in ``/``; return the pid of the child, which the caller reaps.

    Args:
        argv: the first item is the program's absolute path.
        output_fd: receives its standard output and error; its standard input is empty.
        keep_fds: inherited under their own numbers, which are above 2; all others are closed.
        ownership: the user it becomes, without capabilities or a way to gain any; None changes nothing.
        memlock: soft and hard limit of the bytes that it may lock; None keeps the caller's.
        bounds: limits of a program that only answers a query; the calling thread must outlive the program.

    Raises:
        SpawnError: the program could not be started; no process remains.
    """
    check_texts([*argv, *env.values()])
    memory = _Memory()
    request = memory.new(
        "struct phd_spawn_request *",
        {
            **_program(memory, argv, env),
            **_descriptors(memory, output_fd, keep_fds),
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


def _program(memory: _Memory, argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a request for the program, its arguments and its environment."""
    return {
        "file": memory.string(argv[0]),
        "argv": memory.strings(argv),
        "envp": memory.strings([f"{name}={value}" for name, value in env.items()]),
    }


def _descriptors(memory: _Memory, output_fd: int, keep_fds: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a request for the inherited descriptors, in ascending order."""
    keep = sorted(set(keep_fds))
    return {"out_fd": output_fd, "keep": memory.new("int[]", keep), "n_keep": len(keep)}


def check_texts(texts: Sequence[str]) -> None:
    """
    Refuse a text that C would truncate.

    Raises:
        OperationError: a text contains a NUL byte.
    """
    bad = next((text for text in texts if "\0" in text), None)
    if bad is not None:
        raise OperationError(f"A NUL byte cannot be passed to a program: {bad!a}")


def _limit(value: int) -> int:
    return (1 << 64) - 1 if value == resource.RLIM_INFINITY else value


@contextlib.contextmanager
def standard_descriptors() -> Iterator[None]:
    """Keep 0, 1 and 2 occupied, so that no file opened inside gets the number of a stream that the caller closed."""
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
    Ask the kernel whether a user may open files, considering supplementary groups; nothing is opened.

    Args:
        files: paths, each with os.R_OK, os.W_OK and os.X_OK combined, or os.F_OK.
        ownership: the user to test; None tests the current user.
        timeout_s: for all files together.

    Returns:
        An errno for each file, 0 if the user may open it; ETIMEDOUT for files without an answer in time.

    Raises:
        OperationError: the test cannot be made.
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
                raise OperationError(f"A process cannot be created: {os.strerror(-pid)}")
            answers = _read_answers(read_fd, len(files), timeout_s)
        finally:
            os.close(read_fd)
            status = _end(pid) if pid > 0 else 0
    if status != 0 and len(answers) < len(files):
        raise OperationError(f"Cannot become the user {ownership.name if ownership else ''!r} to test file access")
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
    Reap a child that only tests access; return its exit status, 0 if it had to be killed.

    A child that hangs in the kernel, for example with a file server, is left behind: it cannot be killed.
    """
    pidfd = os.pidfd_open(pid)
    try:
        ready = select.poll()
        ready.register(pidfd, select.POLLIN)
        if not ready.poll(200):  # it has answered, and is about to exit
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not ready.poll(1000):
                return 0
        return max(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    except ChildProcessError:  # the importer ignores SIGCHLD: the kernel has reaped it
        return 0
    finally:
        os.close(pidfd)
