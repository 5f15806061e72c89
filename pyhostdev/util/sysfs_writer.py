# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Writing to sysfs so that a write that never returns costs only its deadline.

The kernel blocks an unbind for as long as a guest holds the device. No signal ends that wait, and every lock and pipe
of the waiting process stays held. So the write happens in a process of its own that holds only the device's in-flight
lock. While that lock is held, the device is in doubt.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pyhostdev.errors import (
    ConfigUnsupportedError,
    InDoubtError,
    InternalError,
    SysfsError,
)
from pyhostdev.util import _sysfs_write as _c  # type: ignore[attr-defined]
from pyhostdev.util.devnode import LiveNodes
from pyhostdev.util.hostroot import HostRoot, check_driver_name
from pyhostdev.util.memlock import LiveLimits
from pyhostdev.util.modprobe import module_error, scratch, start_modprobe
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.procfs import read_lock_holders
from pyhostdev.util.securedir import open_directory
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import is_directory

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator


DEFAULT_TIMEOUT_S = 30.0

_WALL = 0x40000000  # waitid(2) __WALL: a helper sends no SIGCHLD and is invisible without this flag
_BUSY_RETRIES_S = (0.0, 0.01, 0.05)  # another process may just be testing whether the lock is held


class SysfsWriter(Protocol):
    """Changes a host: the helper of the live host, or the simulated kernel."""

    def write(self, path: str, value: bytes, *, device: PCIDeviceAddress) -> None:
        """
        Write the whole value to an attribute with one write(2).

        Raises:
            SysfsError: the kernel refused, or accepted only a part of the value.
            InDoubtError: this write, or an earlier write to the device, has not returned.
        """

    def load_module(self, name: str) -> None:
        """
        Load a kernel module and its dependencies; do nothing if it is already loaded.

        Raises:
            OperationError: the module is absent, prohibited or broken.
            InDoubtError: loading has not finished within the deadline.
        """

    def is_in_flight(self, device: PCIDeviceAddress) -> bool:
        """Tell whether a write to the device has not returned yet, by any process."""


class _Outcome(NamedTuple):
    """How far a helper got, from struct phd_write_result."""

    has_ended: bool
    stage: int
    errnum: int
    taken: int
    pid: int

    @property
    def met_lock(self) -> bool:
        """True when an earlier write to the device is in flight."""
        return bool(self.stage == _c.lib.PHD_STAGE_LOCK and self.errnum == errno.EWOULDBLOCK)


class _Helper(NamedTuple):
    """
    A process that writes, and the memory it uses.

    There is no finalizer: the memory of an abandoned helper must stay.
    """

    pidfd: int
    result: Any

    def wait(self, timeout_s: float) -> None:
        """Wait until the helper ends, or until the deadline."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        poller.poll(timeout_s * 1000)

    def collect(self) -> bool:
        """Reap the process if it has ended, and close its pidfd in that case."""
        try:
            if os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | _WALL) is None:
                return False
        except ChildProcessError:  # this process is a fork of the one that started the helper
            pass
        os.close(self.pidfd)
        return True

    def outcome(self, *, has_ended: bool) -> _Outcome:
        """Return how far the helper got."""
        result = self.result
        return _Outcome(has_ended, result.stage, result.errnum, result.count, result.pid)

    def free(self) -> None:
        """Free the memory of a reaped helper."""
        _c.lib.phd_write_end(self.result)


class ForkedWriter(LiveNodes, LiveLimits):
    """
    Write from a helper process; after the deadline only the helper is left waiting.

    Safe in a threaded process: the helper only makes system calls, has its own session, inherits only the
    descriptors of two directories, and sends no SIGCHLD. It is never signalled; one that outlives its deadline is
    reaped by a later call. It shares the memory of the importing process, which costs the same at any size. That
    memory stays in use until the last write has returned, even if the importer is killed. Several processes may have
    a writer on the same ``inflight_dir``.
    """

    def __init__(
        self,
        root: HostRoot,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        inflight_dir: str | None = None,
    ) -> None:
        self.root = root
        self.timeout_s = timeout_s
        self.inflight_dir = os.path.abspath(inflight_dir or os.path.join(root.state_dir, "in-flight"))
        self._inflight_below = None if inflight_dir else root.path
        self._left_behind: deque[_Helper] = deque()
        self._modprobes: list[subprocess.Popen[bytes]] = []

    def write(self, path: str, value: bytes, *, device: PCIDeviceAddress | str) -> None:
        """
        Write the whole value to an attribute with one write(2), in a helper.

        An exception raised here by a signal handler leaves the write in flight.

        Raises:
            SysfsError: the kernel refused, or accepted only a part of the value.
            InDoubtError: the deadline passed, or an earlier write to the device has not returned.
            InternalError: the value is empty; the kernel would ignore it.
        """
        device = PCIDeviceAddress.of(device)
        if not value:
            raise InternalError(f"An empty write to '{path}' would change nothing")
        self.reap()
        doing = f"write '{_printable(value)}'"
        for delay_s in _BUSY_RETRIES_S:
            time.sleep(delay_s)
            outcome = self._try_write(path, value, doing, device)
            if not outcome.met_lock:
                break
        self._judge(outcome, path, value, doing, device)

    def is_in_flight(self, device: PCIDeviceAddress | str) -> bool:
        """
        Tell whether a write to the device has not returned yet, by any process; creates nothing.

        Raises:
            SysfsError: the lock file exists but cannot be read.
        """
        device = PCIDeviceAddress.of(device)
        try:
            top = open_directory(self.inflight_dir, below=self._inflight_below)
            if top is None:
                return False
            try:
                return self._is_marked(str(device), top)
            finally:
                os.close(top)
        except FileNotFoundError:
            return False
        except SysfsError:
            raise
        except OSError as err:
            path = os.path.join(self.inflight_dir, str(device))
            raise _error(err, path, "look for a write in flight", device) from err

    def _is_marked(self, name: str, top: int) -> bool:
        facts = os.stat(name, dir_fd=top, follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.ELOOP if stat.S_ISLNK(facts.st_mode) else errno.EINVAL, name)
        try:
            return _is_locked(name, top)
        except PermissionError:  # the kernel's list also covers files that this user may not open
            return bool(read_lock_holders(self.root, facts))

    def reap(self) -> int:
        """Reap helpers that have ended, without waiting; return how many still run."""
        for _ in range(len(self._left_behind)):
            try:
                helper = self._left_behind.popleft()
            except IndexError:  # another thread is reaping too
                break
            if helper.collect():
                helper.free()
            else:
                self._left_behind.append(helper)
        self._modprobes = [process for process in self._modprobes if process.poll() is None]
        return len(self._left_behind) + len(self._modprobes)

    def load_module(self, name: str) -> None:
        """
        Load a kernel module with ``modprobe -b``, which honors the administrator's blacklist.

        Raises:
            ConfigError: the name is not valid for a module.
            ConfigUnsupportedError: the root is not the live host.
            OperationError: the module is absent, prohibited or broken, or there is no modprobe.
            InDoubtError: loading has not finished within the deadline.
        """
        check_driver_name(name)
        if not self.root.is_live:
            raise ConfigUnsupportedError(f"The module '{name}' cannot be loaded into the host at '{self.root.path}'")
        code, output = self._modprobe(name)
        # modprobe returns 0 for a blacklisted module
        if code != 0 or not is_directory(self.root, self.root.module(name)):
            raise module_error(self.root, name, code, output)

    def _try_write(self, path: str, value: bytes, doing: str, device: PCIDeviceAddress) -> _Outcome:
        helper = self._start(path, value, doing, device)
        try:
            helper.wait(self.timeout_s)
        except BaseException:
            self._left_behind.append(helper)
            raise
        outcome = helper.outcome(has_ended=helper.collect())
        if outcome.has_ended:
            helper.free()
        else:
            self._left_behind.append(helper)
        return outcome

    def _start(self, path: str, value: bytes, doing: str, device: PCIDeviceAddress) -> _Helper:
        top, name = os.path.split(path)
        with _directory(top, path, doing, device) as dir_fd, self._locks(device) as lock_dir_fd:
            keep = [_c.ffi.new("char[]", os.fsencode(text)) for text in (name, str(device))]
            data = _c.ffi.from_buffer(value)
            request = _c.ffi.new(
                "struct phd_write_request *",
                (dir_fd, keep[0], lock_dir_fd, keep[1], data, len(value)),
            )
            result = _c.ffi.new("struct phd_write_result **")
            pidfd: int = _c.lib.phd_write_start(request, result)
        if pidfd < 0:
            raise SysfsError(-pidfd, path, f"start a helper to {doing}", address=device)
        return _Helper(pidfd, result[0])

    @contextmanager
    def _locks(self, device: PCIDeviceAddress) -> Iterator[int]:
        doing = "open the directory of in-flight locks"
        try:
            fd = open_directory(self.inflight_dir, below=self._inflight_below, mode=0o755)
        except OSError as err:
            raise _error(err, self.inflight_dir, doing, device) from err
        assert fd is not None
        try:
            yield fd
        finally:
            os.close(fd)

    def _judge(self, outcome: _Outcome, path: str, value: bytes, doing: str, device: PCIDeviceAddress) -> None:
        if outcome.stage == _c.lib.PHD_STAGE_DONE:
            if outcome.taken != len(value):
                doing = f"{doing}, only {outcome.taken} bytes were accepted"
                raise SysfsError(errno.EIO, path, doing, address=device)
        elif outcome.met_lock:
            raise _in_doubt(device, f"{doing} to '{path}' while an earlier write is in flight")
        elif outcome.errnum and outcome.stage < _c.lib.PHD_STAGE_OPEN:
            doing = "mark a write in flight"
            raise SysfsError(outcome.errnum, self.inflight_dir, doing, address=device)
        elif outcome.errnum:
            raise SysfsError(outcome.errnum, path, doing, address=device)
        elif outcome.has_ended:
            doing = f"{doing}, the helper was killed"
            raise SysfsError(errno.EINTR, path, doing, address=device)
        else:
            within = f"within {self.timeout_s:g} s (process {outcome.pid})"
            raise _in_doubt(device, f"{doing} to '{path}' {within}")

    def _modprobe(self, name: str) -> tuple[int, str]:
        import subprocess

        with scratch() as output:
            process = start_modprobe(self.root, name, output)
            try:
                process.wait(self.timeout_s)
            except subprocess.TimeoutExpired as err:
                self._modprobes.append(process)
                raise InDoubtError(
                    f"Loading the module '{name}' has not finished within {self.timeout_s:g} s",
                    reason="in-doubt",
                ) from err
            output.seek(0)
            return process.returncode, output.read(4096).decode(errors="replace").strip()


def _printable(value: bytes) -> str:
    return value.decode("ascii", "backslashreplace").replace("\n", "\\n")


def _error(err: OSError, path: str, doing: str, device: PCIDeviceAddress) -> SysfsError:
    return SysfsError(err.errno or errno.EIO, path, doing, address=device)


def _in_doubt(device: PCIDeviceAddress, what: str) -> InDoubtError:
    message = f"Device {device} is in doubt: could not {what}"
    return InDoubtError(message, reason="in-doubt", address=device)


@contextmanager
def _directory(top: str, path: str, doing: str, device: PCIDeviceAddress) -> Iterator[int]:
    try:
        fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise _error(err, path, doing, device) from err
    try:
        yield fd
    finally:
        os.close(fd)


def _is_locked(name: str, top: int) -> bool:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
