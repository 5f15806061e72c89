# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Start QEMU, and make sure that it ends.

QEMU has its own session: the signals of a terminal reach only this process, which ends the guest. A parent-death
signal is not used. It is tied to the thread that forked, so a guest would end with a worker thread. And a guest
that ends together with this process still leaves its devices detached. If this process is killed by SIGKILL, the guest
continues to run and keeps the lock of its directory.

Mirrors: qemuProcessLaunch (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import select
import shutil
import signal
import socket
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_process.log import OutputPipe, RollingLog, rolled_names
from pyhostdev.util.spawn import SpawnError, is_limit, spawn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from pyhostdev.util.ownership import Ownership

MONITOR_SOCKET = "monitor.sock"
CONTROL_SOCKET = "control.sock"  # the second monitor: for other processes, one at a time
MASTER_KEY = "master-key.aes"
MASTER_KEY_BYTES = 32  # AES-256
LOG = "qemu.log"
# files about the running guest, and temporary files of killed writers
_GUEST_FILES = re.compile(
    r"\.?(?:control\.lock|owner\.lock|guest\.json|live\.xml|memlock\.json|spent-ids\.json|unit-[0-9a-f:.]+\.xml)"
    r"(?:\.[0-9a-f]{16})?"
)

# A fixed PATH instead of the caller's; QEMU itself is run by its absolute path.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

KILL_TIMEOUT_S = 30.0  # closing the devices resets each of them
_PASSED_THROUGH = 0o711  # a directory that others can neither list nor change


def describe_status(status: int) -> str:
    """Return how a process ended, as the end of a sentence."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def quoted(output: str) -> str:
    """Return QEMU's last output as the end of a sentence; empty without output."""
    return f": '{output}'" if output else ""


class RuntimeDir:
    """
    The private directory of one running guest: monitor socket, master key, log.

    If QEMU runs as another user, its group may enter the directory (0710) and read the key (0640), but nothing else:
    QEMU inherits the rest as descriptors. The directory stays locked while QEMU or its starter runs, so two guests
    never share one, and any process can test whether the guest runs. On exit our files are removed, and the directory
    if it is empty.
    """

    def __init__(self, path: str, gid: int | None = None) -> None:
        self.path = path
        self.gid = gid
        self._fds = contextlib.ExitStack()
        self.fd = -1

    def __enter__(self) -> RuntimeDir:
        make_directories(os.path.dirname(self.path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._fds.callback(os.close, self.fd)
        try:
            self._check_ours()
            self._lock()
            self._open_to_group(self.fd, 0o700, 0o710)
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
            found = [name for name in os.listdir(self.fd) if _GUEST_FILES.fullmatch(name)]
            for name in (MONITOR_SOCKET, CONTROL_SOCKET, MASTER_KEY, *rolled_names(LOG), *found):
                self._unlink(name)
            with contextlib.suppress(OSError):  # it holds files of other programs
                os.rmdir(self.path)

    def _check_ours(self) -> None:
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o067:
            raise OperationError(f"The runtime directory '{self.path}' is open to other users")

    def _lock(self) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise OperationError(f"A guest is running in '{self.path}'") from err

    def _open_to_group(self, fd: int, closed: int, opened: int) -> None:
        """Set the mode of a file: for the current user, or also for QEMU's group, regardless of the umask."""
        if self.gid is not None:
            os.fchown(fd, -1, self.gid)
        os.fchmod(fd, closed if self.gid is None else opened)

    def _write_master_key(self) -> None:
        self._unlink(MASTER_KEY)
        fd = os.open(MASTER_KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        with os.fdopen(fd, "wb") as file:
            self._open_to_group(fd, 0o600, 0o640)
            file.write(os.urandom(MASTER_KEY_BYTES))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def open_log(self, path: str | None) -> OutputPipe:
        """
        Return a writer that copies QEMU's output into a file: the caller's, appended to, or our own.

        Raises:
            OperationError: the file cannot be opened.
        """
        if path is None:
            for name in rolled_names(LOG):
                self._unlink(name)
        return OutputPipe(RollingLog(path or self._path_of(LOG)))

    def _path_of(self, name: str) -> str:
        """Return a file's path through the directory's descriptor, which is short enough for a socket address."""
        return f"/proc/self/fd/{self.fd}/{name}"

    @property
    def monitor_path(self) -> str:
        """The path of the socket of QEMU's monitor."""
        return self._path_of(MONITOR_SOCKET)

    @contextlib.contextmanager
    def listening_socket(self, name: str = MONITOR_SOCKET) -> Iterator[int]:
        """Listen at the socket of QEMU's monitor: a client can connect before QEMU accepts."""
        self._unlink(name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            os.fchmod(listener.fileno(), 0o600)  # the file's mode, whatever the umask
            listener.bind(self._path_of(name))
            listener.listen(1)
            yield listener.fileno()


def make_directories(path: str) -> None:
    """Create a directory and its missing parents; other users may enter them, but neither list nor change them."""
    if not os.path.isdir(path):
        make_directories(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, _PASSED_THROUGH)
            os.chmod(path, _PASSED_THROUGH)


def environment(home: str, ownership: Ownership | None) -> dict[str, str]:
    """
    Return QEMU's environment: messages in English, and the guest's directory as home.

    Only PATH is inherited, and only if QEMU runs as the user of the caller and this is not root.

    Mirrors: qemuBuildCommandLine, virCommandAddEnvXDG
    """
    path = os.environ.get("PATH", os.defpath) if ownership is None and os.geteuid() != 0 else SYSTEM_PATH
    return {
        "LC_ALL": "C",
        "PATH": path,
        "HOME": home,
        "XDG_DATA_HOME": f"{home}/.local/share",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_CONFIG_HOME": f"{home}/.config",
    }


def absolute_program(name: str) -> str:
    """
    Return the absolute path of a program; a relative path starts at the current directory of the caller.

    Raises:
        OperationError: the name has no directory, and no directory of PATH has the program.
    """
    path = os.path.abspath(name) if "/" in name else shutil.which(name)
    if path is None:
        raise OperationError(f"Cannot run '{name}': it is in no directory of PATH")
    return path


class QEMUProcess:
    """One QEMU, from its start to its proven end; as a context manager it ends QEMU on exit."""

    def __init__(self, pid: int, output: OutputPipe) -> None:
        self.pid = pid  # after the exit, another process can get this number
        self._output = output
        self._status: int | None = None
        try:
            self.pidfd = os.pidfd_open(pid)  # the child is not reaped yet, so the number is still its own
        except OSError:
            os.kill(pid, signal.SIGKILL)
            self._wait()
            raise

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        home: str,
        output: OutputPipe,
        pass_fds: tuple[int, ...] = (),
        memlock_limit: int | None = None,
        ownership: Ownership | None = None,
        more_environment: Mapping[str, str] | None = None,
    ) -> QEMUProcess:
        """
        Start QEMU in a session of its own.

        Raises:
            OperationError: its memory limit cannot be raised, or it cannot be executed.
        """
        program = absolute_program(argv[0])
        try:
            pid = spawn(
                [program, *argv[1:]],
                env=environment(home, ownership) | dict(more_environment or {}),
                output_fd=output.write_fd,
                keep_fds=pass_fds,
                ownership=ownership,
                memlock=None if memlock_limit is None else (memlock_limit, memlock_limit),
            )
        except SpawnError as err:
            if memlock_limit is not None and is_limit(err):
                raise _memlock_error(memlock_limit) from err
            raise
        output.handed_over()
        return cls(pid, output)

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

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Tell whether QEMU has ended, with all of its threads, and has closed all devices."""
        ready = select.poll()  # select(2) does not support descriptors above 1023
        ready.register(self.pidfd, select.POLLIN)
        return bool(ready.poll(timeout_s * 1000))

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to QEMU, never to another process with the same number."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """
        Kill QEMU and reap it.

        Raises:
            OperationError: QEMU does not end; the devices that it holds must not be touched.
        """
        self.send_signal(signal.SIGKILL)
        if not self.has_ended(KILL_TIMEOUT_S):
            raise OperationError(
                f"QEMU (process {self.pid}) was killed and does not end; it may hold its devices",
                rolled_back=False,
            )
        self._wait()

    @property
    def status(self) -> int:
        """The exit status of a QEMU that has ended, negative for a signal."""
        return self._wait()

    def _wait(self) -> int:
        """Reap QEMU once; if the importer ignores SIGCHLD, the kernel has reaped it, and the status is unknown."""
        if self._status is None:
            try:
                self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:
                self._status = 0
        return self._status

    def last_output(self) -> str:
        """Return the last lines that QEMU wrote, joined by "; "; empty without output."""
        return self._output.last_output()


def _memlock_error(limit: int) -> OperationError:
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return OperationError(
        f"QEMU must be able to lock {limit} bytes of memory for its host devices, "
        f"and the limit of {hard} bytes cannot be raised"
    )
