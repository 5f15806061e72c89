# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Programs that run beside QEMU: swtpm for a TPM, virtiofsd for a directory, passt for an interface.

Each listens at an inherited socket (passt: at its own), runs as QEMU's user, and ends when QEMU closes its connection,
even if this process was killed. A program that still runs after the guest has ended is terminated here. If this process
was killed before QEMU connected to a program, its record remains, and ``recover`` terminates it.

Mirrors: src/qemu/qemu_tpm.c, src/qemu/qemu_virtiofs.c
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigUnsupportedError, OperationError
from pyhostdev.hypervisor.program_journal import ProgramJournal
from pyhostdev.qemu.qemu_alias import assign_aliases
from pyhostdev.qemu.qemu_command.builder import plain_value
from pyhostdev.qemu.qemu_process.launch import SYSTEM_PATH, describe_status, environment, make_directories, quoted
from pyhostdev.qemu.qemu_process.passt import is_listening, passt_arguments, passt_program, socket_directory, socket_in
from pyhostdev.qemu.qemu_process.places import make_private_directory
from pyhostdev.qemu.qemu_process.sockets import listen
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.spawn import spawn
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.undo import UndoOnExit
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.qemu.qemu_command.paths import DomainPaths
    from pyhostdev.util.ownership import Ownership

START_TIMEOUT_S = 10.0  # until a program listens at a socket that it makes itself
_LOOK_EVERY_S = 0.02
_OUTPUT_BYTES = 1 << 16
_OUTPUT_LINES = 3
END_TIMEOUT_S = 5.0  # from the end of QEMU to the end of its program; and after each signal
_VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")


class DaemonSpec(NamedTuple):
    """
    A program to run: its arguments, the path of its socket, and a directory to create for it.

    ``own`` is a parent directory that is created, too; the XML may name another. ``makes_socket`` is True if the
    program itself makes its socket, in a directory of its own.
    """

    what: str
    program: str
    fd_argument: str
    arguments: list[str]
    socket: str
    state: str | None = None
    own: str | None = None
    makes_socket: bool = False

    def argv(self, fd: int) -> list[str]:
        """Return the command line for a listening socket."""
        return [self.program, *(word.replace("{fd}", f"{fd}") for word in self.fd_argument.split()), *self.arguments]


def swtpm_program() -> str:
    """Return the path of swtpm; if it is missing, the usual path."""
    return shutil.which("swtpm", path=SYSTEM_PATH) or "/usr/bin/swtpm"


def virtiofsd_program(filesystem: Any) -> str:
    """Return the path of virtiofsd: the one in the definition, or the host's."""
    if filesystem.binary_path:
        return str(filesystem.binary_path)
    return next((path for path in _VIRTIOFSD if os.access(path, os.X_OK)), _VIRTIOFSD[0])


def daemon_specs(dom: DomainDef, paths: DomainPaths) -> Iterator[DaemonSpec]:
    """
    Yield the programs that a domain needs besides QEMU.

    Raises:
        ConfigUnsupportedError: a path cannot be written in the program's options.
    """
    dom = dom.copy()
    assign_aliases(dom)
    for tpm in dom.tpms:
        if tpm.backend_type == "emulator":
            yield _swtpm(dom, tpm, paths)
    for filesystem in dom.filesystems:
        if filesystem.is_virtiofs and filesystem.source_socket is None:
            yield _virtiofsd(filesystem, paths)
    for net in dom.interfaces:
        if net.backend_type == "passt":
            yield _passt(net, paths)


def _passt(net: Any, paths: DomainPaths) -> DaemonSpec:
    socket = socket_in(paths.passt_socket(str(net.info.alias)))
    what = f"passt of the interface with MAC address {net.mac}"
    return DaemonSpec(what, passt_program(), "", passt_arguments(net, socket), socket, makes_socket=True)


def _swtpm(dom: DomainDef, tpm: Any, paths: DomainPaths) -> DaemonSpec:
    """Mirrors: qemuTPMEmulatorBuildCommand"""
    version = "tpm1.2" if tpm.backend_version == "1.2" else "tpm2"
    state = f"{HostRoot.SWTPM}/{dom.uuid}/{version}"
    if tpm.backend_source is not None and tpm.backend_source.type == "dir" and tpm.backend_source.path:
        state = tpm.backend_source.path
    words = ["--tpmstate", f"dir={plain_value(state, 'The directory', tpm)},mode=0600", "--terminate"]
    words += ["--tpm2"] if version == "tpm2" else []
    what = "the emulator of <tpm>"
    own = f"{HostRoot.SWTPM}/{dom.uuid}"
    return DaemonSpec(what, swtpm_program(), "socket --ctrl type=unixio,fd={fd}", words, paths.tpm_socket, state, own)


def _virtiofs_options(filesystem: Any) -> list[str]:
    options = []
    if filesystem.binary_cache is not None:
        options.append(f"cache={filesystem.binary_cache}")
    if filesystem.binary_sandbox is not None:
        options.append(f"sandbox={filesystem.binary_sandbox}")
    for name in ("xattr", "posix_lock", "flock"):
        value = getattr(filesystem, f"binary_{name}")
        options += [] if value is None else [name if value else f"no_{name}"]
    return options


def _virtiofsd(filesystem: Any, paths: DomainPaths) -> DaemonSpec:
    """Mirrors: qemuVirtioFSBuildCommandLine"""
    source = plain_value(filesystem.source_dir or "", "The directory", filesystem)
    if "\\" in source:  # it escapes the next character (fuse_opt_parse of libfuse), such as the comma behind the path
        raise ConfigUnsupportedError(f"The directory '{shown(source)}' has a backslash", line=filesystem.line)
    words = ["-o", ",".join([f"source={source}", *_virtiofs_options(filesystem)])]
    if filesystem.binary_threads is not None:
        words.append(f"--thread-pool-size={filesystem.binary_threads}")
    if filesystem.binary_openfiles is not None:
        words.append(f"--rlimit-nofile={filesystem.binary_openfiles}")
    words += ["--readonly"] if filesystem.readonly else []
    what = f"virtiofsd of '{filesystem.target}'"
    socket = paths.fs_socket(str(filesystem.info.alias))
    return DaemonSpec(what, virtiofsd_program(filesystem), "--fd={fd}", words, socket)


class ProgramOutput:
    """
    What a program prints, in the buffer of a pipe: its first 64 KiB, the rest is lost.

    The program inherits both ends in one descriptor, so that it never gets SIGPIPE, even if pyhostdev is killed.
    """

    def __init__(self) -> None:
        read_fd, write_fd = os.pipe()
        try:
            self.fd = os.open(f"/proc/self/fd/{write_fd}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(read_fd)
            os.close(write_fd)

    def close(self) -> None:
        """Close our copy."""
        os.close(self.fd)

    def last_lines(self) -> str:
        """Return the last lines that it has printed, joined by "; "; an empty string without any."""
        try:
            text = os.read(self.fd, _OUTPUT_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""
        return "; ".join([line.strip() for line in text.splitlines() if line.strip()][-_OUTPUT_LINES:])


class _Running(NamedTuple):
    """A program that was started, as long as its end was not waited for."""

    spec: DaemonSpec
    pidfd: int
    output: ProgramOutput

    def failure(self) -> str | None:
        """Return how the program has failed, as a sentence; None while it runs, and after an end without an error."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None or ended.si_status == 0:
            return None
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return f"{self.spec.what} {describe_status(status)}{quoted(self.output.last_lines())}"


class Daemons(UndoOnExit):
    """
    The programs of one guest; on exit they are terminated and their sockets removed. Their state stays.

    Args:
        ownership: the user that they run as, the same as QEMU's.
        journal: where they are recorded.
        owner: the name of the domain, for the records.

    Raises:
        OperationError, SysfsError: a program cannot be started or recorded; those already started are terminated.
    """

    def __init__(
        self, specs: Sequence[DaemonSpec], ownership: Ownership | None, journal: ProgramJournal, owner: str
    ) -> None:
        super().__init__()
        self.specs = specs
        self.ownership = ownership
        self.journal = journal
        self.owner = owner
        self._running: list[_Running] = []
        self.lock_fds: list[int] = []  # of records; QEMU inherits the locks, so they show whether it still runs

    def _begin(self, undo: contextlib.ExitStack) -> None:
        for spec in self.specs:
            self._start(spec, undo)

    def failures(self) -> list[str]:
        """Return a sentence for each program that has failed: QEMU only says that it lost its connection."""
        return [failure for program in self._running if (failure := program.failure()) is not None]

    def _start(self, spec: DaemonSpec, undo: contextlib.ExitStack) -> None:
        try:
            self._make_directories(spec, undo)
            if spec.makes_socket:
                self._run(spec, None, undo)
                return
            listener = listen(spec.socket, undo)
            if self.ownership is not None:
                os.chown(spec.socket, self.ownership.uid, self.ownership.gid, follow_symlinks=False)
            self._run(spec, listener.fileno(), undo)
            listener.close()  # if the program fails, QEMU's connection fails
        except OSError as err:
            raise OperationError(f"Cannot start {spec.what}: {err.strerror or err}") from err

    def _run(self, spec: DaemonSpec, listener_fd: int | None, undo: contextlib.ExitStack) -> None:
        """Record a program, and start it; wait for the socket of a program that makes its own."""
        argv = spec.argv(-1 if listener_fd is None else listener_fd)
        keep_fds = [] if listener_fd is None else [listener_fd]
        variables = environment(spec.state or "/", self.ownership)
        output = ProgramOutput()
        undo.callback(output.close)
        name, lock = self.journal.start(self.owner, argv, spec.socket)
        try:
            pid = spawn(argv, env=variables, output_fd=output.fd, keep_fds=keep_fds, ownership=self.ownership)
        except BaseException:
            self.journal.end(name, lock)
            raise
        pidfd = os.pidfd_open(pid)
        undo.callback(self.journal.finish, name, lock, partial(_end, pid, pidfd, spec))
        self.lock_fds.append(lock)
        self._running.append(_Running(spec, pidfd, output))
        self.journal.started(name, self.owner, argv, spec.socket, pid)
        if listener_fd is None:
            _await_socket(self._running[-1], self.journal.host.root)

    def _make_directories(self, spec: DaemonSpec, undo: contextlib.ExitStack) -> None:
        directory = os.path.dirname(spec.socket)
        make_directories(os.path.dirname(directory))
        if spec.makes_socket:
            undo.enter_context(socket_directory(spec.socket, self.ownership))
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o711 if spec.state is not None else 0o700)
        undo.callback(_remove_directory, directory)
        if spec.state is not None and not os.path.isdir(spec.state):
            make_private_directory(spec.state, spec.own or "", self.ownership)


def daemons_of(dom: DomainDef, paths: DomainPaths, ownership: Ownership | None, host: Host) -> Daemons:
    """
    Return the programs of a domain, not started yet.

    Raises:
        ConfigUnsupportedError: a path cannot be written in a program's options.
    """
    return Daemons(list(daemon_specs(dom, paths)), ownership, ProgramJournal(host), dom.name or "")


def _await_socket(program: _Running, root: HostRoot) -> None:
    """
    Wait until a program listens at its own socket.

    Raises:
        OperationError: it has ended, or makes no socket in time.
    """
    ready = select.poll()
    ready.register(program.pidfd, select.POLLIN)
    spec = program.spec
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_listening(root, spec.socket):
        if ready.poll(_LOOK_EVERY_S * 1000):
            raise OperationError(f"Cannot start {spec.what}: it has ended{quoted(program.output.last_lines())}")
        if time.monotonic() > deadline:
            raise OperationError(f"Cannot start {spec.what}: it makes no socket")


def _remove_directory(path: str) -> None:
    with contextlib.suppress(OSError):  # in use by the socket of another guest
        os.rmdir(path)


def _end(pid: int, pidfd: int, spec: DaemonSpec) -> None:
    """
    Wait for the end of a program, then terminate it; reap it.

    Raises:
        OperationError: it does not end.
    """
    ready = select.poll()
    ready.register(pidfd, select.POLLIN)
    try:
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                if number is not None:
                    signal.pidfd_send_signal(pidfd, number)
            if ready.poll(END_TIMEOUT_S * 1000):
                break
        else:
            raise OperationError(f"Process {pid} ({spec.what}) was killed but does not end")
        with contextlib.suppress(ChildProcessError):  # the importer ignores SIGCHLD
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
