# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Start a QEMU and prove its end.

QEMU leads a session of its own: a terminal's signals reach us alone, and we end the guest. It is
not tied to our life by a parent-death signal. That signal belongs to the thread that forked, so a
guest would die with any worker thread; and a guest that dies with us would still leave its devices
detached, only less visibly. When we are killed by SIGKILL the guest goes on, and keeps the lock on
its directory.

Mirrors: qemuProcessLaunch (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import BinaryIO

MONITOR_SOCKET = "monitor.sock"
MASTER_KEY = "master-key.aes"
MASTER_KEY_BYTES = 32  # AES-256
LOG = "qemu.log"
LAST_WORDS_BYTES = 4096
LAST_WORDS_LINES = 10

KILL_TIMEOUT_S = 30.0  # closing the devices resets them, one after the other


def describe_status(status: int) -> str:
    """Say how a process ended, as the end of a sentence."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def quoted(words: str) -> str:
    """Append what QEMU wrote, if it wrote anything."""
    return f": '{words}'" if words else ""


class RuntimeDir:
    """
    The directory of one running guest: monitor socket, master key, log; 0700 and ours alone.

    It stays locked for as long as QEMU or its starter lives, so two guests never share one and
    anyone can ask whether the guest is still there. Leaving it removes what we put there, and the
    directory when that was all.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fds = contextlib.ExitStack()
        self.fd = -1

    def __enter__(self) -> RuntimeDir:
        Path(self.path).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        Path(self.path).mkdir(mode=0o700, exist_ok=True)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._fds.callback(os.close, self.fd)
        try:
            self._check_ours()
            self._lock()
            self._write_master_key()
        except BaseException:
            self._fds.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._fds:
            for name in (MONITOR_SOCKET, MASTER_KEY, LOG):
                self._unlink(name)
            with contextlib.suppress(OSError):  # what others put there is not ours to remove
                Path(self.path).rmdir()

    def _check_ours(self) -> None:
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise OperationError(f"The runtime directory '{self.path}' is open to other users")

    def _lock(self) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise OperationError(f"A guest is running in '{self.path}'") from err

    def _write_master_key(self) -> None:
        self._unlink(MASTER_KEY)
        fd = os.open(MASTER_KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.fd)
        with os.fdopen(fd, "wb") as file:
            file.write(os.urandom(MASTER_KEY_BYTES))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def open_log(self, path: str | None) -> BinaryIO:
        """Open the file QEMU writes to: the caller's, appended to, or one of ours."""
        if path is None:
            self._unlink(LOG)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        fd = os.open(path or LOG, flags, 0o600, dir_fd=self.fd)
        return os.fdopen(fd, "r+b", buffering=0)

    @property
    def monitor_path(self) -> str:
        """The socket's path through our fd: it fits a socket address however deep we are."""
        return f"/proc/self/fd/{self.fd}/{MONITOR_SOCKET}"

    @contextlib.contextmanager
    def listening_socket(self) -> Iterator[int]:
        """Listen where QEMU's monitor will answer: a client can connect before QEMU accepts."""
        self._unlink(MONITOR_SOCKET)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.monitor_path)
            listener.listen(1)
            yield listener.fileno()


@contextlib.contextmanager
def memlock_limited(limit: int | None) -> Iterator[None]:
    """
    Let a child started inside lock that many bytes; we have the limit ourselves until then.

    Setting it on the child alone would come too late for what it locks first, or need code between
    fork and exec.
    """
    if limit is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = resource.RLIM_INFINITY in (limit, before[1])
    hard = resource.RLIM_INFINITY if unlimited else max(limit, before[1])
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, hard))
    except (ValueError, OSError) as err:
        raise OperationError(
            f"QEMU must be able to lock {limit} bytes of memory for its host devices, "
            f"and the limit of {before[1]} bytes cannot be raised: {err}"
        ) from err
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def _environment(home: str) -> dict[str, str]:
    """QEMU's words in English, and nothing of the caller's but where programs are."""
    return {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath), "HOME": home}


class QEMUProcess:
    """One QEMU from its start to its proven end; leaving it as a context manager is that end."""

    def __init__(
        self, child: subprocess.Popen[bytes], log: BinaryIO, log_start: int, memlock_limit: int | None = None
    ) -> None:
        self._child = child
        self._log = log
        self._log_start = log_start
        try:
            self.pidfd = os.pidfd_open(child.pid)  # not reaped yet: the pid is not another's
            if memlock_limit is not None:  # and no more than that, whatever our own hard limit
                both = (memlock_limit, memlock_limit)
                resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK, both)
        except OSError:
            child.kill()
            child.wait()
            raise

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        home: str,
        log: BinaryIO,
        pass_fds: tuple[int, ...] = (),
        memlock_limit: int | None = None,
    ) -> QEMUProcess:
        """
        Start QEMU in a session of its own.

        Raises:
            OperationError: its memory limit cannot be raised, or it cannot be executed.
        """
        log_start = os.fstat(log.fileno()).st_size  # what ends at once has written before we look again
        with memlock_limited(memlock_limit):
            try:
                child = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=pass_fds,
                    cwd="/",
                    env=_environment(home),
                    start_new_session=True,
                )
            except OSError as err:
                raise OperationError(f"Cannot run '{argv[0]}': {err.strerror}") from err
        return cls(child, log, log_start, memlock_limit)

    def __enter__(self) -> QEMUProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.kill()
        finally:
            os.close(self.pidfd)

    @property
    def pid(self) -> int:
        """The process id; another's once we have been left."""
        return self._child.pid

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Ask the kernel whether QEMU is gone, all its threads and open devices included."""
        ready = select.poll()  # select(2) knows no descriptor beyond 1023
        ready.register(self.pidfd, select.POLLIN)
        return bool(ready.poll(timeout_s * 1000))

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, or to nobody."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """
        End QEMU whatever it is doing, and reap it.

        Raises:
            OperationError: it does not end; a device it holds must not be touched.
        """
        self.send_signal(signal.SIGKILL)
        if not self.has_ended(KILL_TIMEOUT_S):
            raise OperationError(
                f"QEMU (process {self.pid}) was killed and does not end; it may hold its devices",
                rolled_back=False,
            )
        self._child.wait()

    @property
    def status(self) -> int:
        """The exit status of a QEMU that has ended, negative for a signal."""
        return self._child.wait()

    def last_words(self) -> str:
        """The last lines QEMU wrote, joined by "; "; "" when it wrote none."""
        end = os.fstat(self._log.fileno()).st_size
        start = max(self._log_start, end - LAST_WORDS_BYTES)
        text = os.pread(self._log.fileno(), end - start, start).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "; ".join(lines[-LAST_WORDS_LINES:])
