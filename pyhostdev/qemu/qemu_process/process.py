# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Run one guest in the foreground, from the start of its QEMU to the proven end.

Before a function of this module returns or raises, a pidfd has proven that QEMU has ended, so a caller can reattach
host devices at once. The functions are safe in a process with threads; signals are handled in the main thread only.

Mirrors: qemuProcessStart, qemuProcessStop (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_process.control import Control, beside
from pyhostdev.qemu.qemu_process.launch import CONTROL_SOCKET, QEMUProcess, RuntimeDir, describe_status, quoted
from pyhostdev.qemu.qemu_process.lifecycle import ON_CRASH, ON_POWEROFF, ON_REBOOT, Lifecycle, lifecycle_actions
from pyhostdev.qemu.qemu_process.monitor import QEMUMonitor
from pyhostdev.util.spawn import standard_descriptors
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from pyhostdev.qemu.qemu_process.log import OutputPipe
    from pyhostdev.util.ownership import Ownership

    ArgvBuilder = Callable[[int], Sequence[str]]
    OnStarted = Callable[[int], object]
    BeforeRunning = Callable[[QEMUMonitor, int], Coroutine[Any, Any, None]]

_T = TypeVar("_T")

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

GREETING_TIMEOUT_S = 120.0  # QEMU pins the guest's memory before the greeting
ANSWER_TIMEOUT_S = 30.0
HANGUP_TIMEOUT_S = 10.0  # from the end of the connection to QEMU's end: the kernel frees the guest's memory first
QUIT_TIMEOUT_S = 10.0
TERM_TIMEOUT_S = 10.0

SHUTDOWN = "shutdown"
DESTROYED = "destroyed"
CRASHED = "crashed"

END_REASONS = {ON_POWEROFF: SHUTDOWN, ON_REBOOT: SHUTDOWN, ON_CRASH: CRASHED}


class Domain(Lifecycle, Protocol):
    """The part of a domain's definition that its process needs; a DomainDef has it."""

    @property
    def name(self) -> str | None:
        """Return the name of the domain."""


class GuestOutcome(NamedTuple):
    """
    How a guest ended.

    ``reason`` is "shutdown" (by the guest), "destroyed" (by a request from outside) or "crashed" (the guest panicked,
    or QEMU failed: then ``failed`` is True). ``status`` is QEMU's exit status, negative for a signal.

    Mirrors: virDomainShutoffReason
    """

    reason: str
    status: int
    failed: bool
    last_output: str

    def __str__(self) -> str:
        if not self.failed:
            return f"The guest ended ({self.reason})"
        return f"QEMU {describe_status(self.status)}{quoted(self.last_output)}"


class _GuestEnded(Exception):  # noqa: N818 - not an error
    """The wait ended early: QEMU has ended, or a signal requests its end."""


class _Guest:
    """A QEMU, its monitor and the actions of its domain; ``over`` is set when QEMU ends or must end."""

    def __init__(
        self,
        process: QEMUProcess,
        name: str | None,
        actions: dict[str, str],
        over: asyncio.Event,
        links_down: Sequence[str] = (),
        before_running: BeforeRunning | None = None,
    ) -> None:
        self.process = process
        self.links_down = links_down
        self.before_running = before_running
        self.monitor = QEMUMonitor(name)
        self.actions = actions
        self.ended = asyncio.Event()
        self.over = over
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(process.pidfd, self._on_end)

    def _on_end(self) -> None:
        self._loop.remove_reader(self.process.pidfd)  # from now on it is always readable
        self.ended.set()
        self.over.set()

    async def run(self, monitor_path: str, on_started: OnStarted | None, control: Control | None) -> str | None:
        """
        Let the guest run; return the reason of its end, None if QEMU ended by itself.

        Raises:
            OperationError: QEMU ended before the guest could run, or refuses a command.
        """
        try:
            await self._start(monitor_path)
            if on_started is not None:
                on_started(self.process.pid)
            async with beside(control, self.monitor.client):
                return await self._follow()
        except _GuestEnded:
            return None if self.ended.is_set() else DESTROYED

    async def _start(self, monitor_path: str) -> None:
        try:
            await self._unless_over(self.monitor.connect(monitor_path), GREETING_TIMEOUT_S)
            if self.actions[ON_REBOOT] != "restart":
                await self._unless_over(self.monitor.stop_on_reboot(), ANSWER_TIMEOUT_S)
            for device in self.links_down:
                await self._unless_over(self.monitor.set_link_down(device), ANSWER_TIMEOUT_S)
            if self.before_running is not None:
                await self._unless_over(self.before_running(self.monitor, self.process.pid), ANSWER_TIMEOUT_S)
            await self._unless_over(self.monitor.cont(), ANSWER_TIMEOUT_S)
        except _GuestEnded:
            if self.ended.is_set():
                raise self._failure_at_start() from None
            raise

    async def _follow(self) -> str:
        """Execute the domain's action for each lifecycle event of the guest, until an action ends the guest."""
        while True:
            event = await self._unless_over(self.monitor.next_lifecycle_event())
            action = self.actions[event.action]
            if action == "destroy":
                return END_REASONS[event.action]
            if action == "restart" and event.stopped:
                await self._unless_over(self.monitor.restart(), ANSWER_TIMEOUT_S)
            elif action == "preserve" and not event.stopped:
                await self._unless_over(self.monitor.stop(), ANSWER_TIMEOUT_S)

    async def _unless_over(self, wanted: Coroutine[Any, Any, _T], timeout_s: float | None = None) -> _T:
        """
        Wait for a result while the guest runs.

        Raises:
            _GuestEnded: QEMU has ended, or a signal requests its end.
            OperationError: the deadline has passed, or the awaited call failed while QEMU still runs.
        """
        task = asyncio.ensure_future(wanted)
        over = asyncio.ensure_future(self.over.wait())
        try:
            await asyncio.wait({task, over}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                raise _GuestEnded
            if not task.done():
                raise OperationError(f"QEMU's monitor did not answer within {timeout_s:g} s")
            return await self._result(task)
        finally:
            task.cancel()
            over.cancel()
            await asyncio.gather(task, over, return_exceptions=True)

    async def _result(self, task: asyncio.Future[_T]) -> _T:
        """Return the result; if it is an error because QEMU is ending, raise _GuestEnded instead."""
        try:
            return task.result()
        except OperationError:
            if await self._ends_within(HANGUP_TIMEOUT_S):
                raise _GuestEnded from None
            raise

    async def _ends_within(self, timeout_s: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ended.wait(), timeout_s)
        return self.ended.is_set()

    def _failure_at_start(self) -> OperationError:
        process = self.process
        return OperationError(
            f"QEMU {describe_status(process.status)} before the guest could run{quoted(process.last_output())}"
        )

    async def end(self) -> None:
        """End QEMU by the command quit, then by SIGTERM; the exit of the process's context kills it."""
        try:
            if not await self._quit():
                self.process.send_signal(signal.SIGTERM)
                await self._ends_within(TERM_TIMEOUT_S)
        finally:
            self._loop.remove_reader(self.process.pidfd)
            await self.monitor.close()

    async def _quit(self) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            if await asyncio.wait_for(self.monitor.quit(), ANSWER_TIMEOUT_S):
                return await self._ends_within(QUIT_TIMEOUT_S)
        return self.ended.is_set()


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """
    Block the signals that end a program; pending ones are delivered at the end of the block.

    Inside the block, run_guest still receives them, and ends its guest.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _end_signals(react: Callable[[], None]) -> Iterator[None]:
    """
    Call ``react`` for each signal that ends a program, including blocked ones; restore the handlers at the end.

    In a thread other than the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in END_SIGNALS}
    for number in END_SIGNALS:
        loop.add_signal_handler(number, react)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _GuestRun(NamedTuple):
    """
    One run of a guest; the optional arguments of ``run_guest``.

    ``argv_builder`` receives the descriptor of the listening monitor socket and returns QEMU's argv, which starts the
    guest paused (-S) and keeps QEMU when the guest powers off (-no-shutdown). ``memlock_limit`` is the number of bytes
    that QEMU may lock; None keeps the limit. ``on_started`` is called with QEMU's pid when the guest runs.
    ``ownership`` is the user that QEMU runs as, without any privilege; None keeps the current user. ``pass_fds`` are
    the descriptors in the argv besides the monitor's. ``on_spawned`` is called when QEMU has inherited the
    descriptors, so that copies that would hold a device can be closed; it must not raise. ``environment`` has
    variables for QEMU. ``links_down`` are the aliases of network cards whose link is down at the start. ``control``
    provides a second monitor and reacts to device events; None for a guest without hot-plug. ``before_running``
    changes settings of the paused QEMU; it receives the monitor and QEMU's pid.
    """

    argv_builder: ArgvBuilder
    name: str | None
    actions: dict[str, str]
    memlock_limit: int | None
    on_started: OnStarted | None
    ownership: Ownership | None
    pass_fds: tuple[int, ...]
    on_spawned: Callable[[], object]
    environment: Mapping[str, str]
    links_down: tuple[str, ...]
    control: Control | None
    before_running: BeforeRunning | None

    def run_in(self, runtime_dir: str, log_path: str | None) -> GuestOutcome:
        """Run the guest with its files in a directory."""
        gid = None if self.ownership is None else self.ownership.gid
        log_path = None if log_path is None else os.path.abspath(log_path)
        with standard_descriptors(), RuntimeDir(runtime_dir, gid) as runtime, runtime.open_log(log_path) as output:
            return asyncio.run(self.run(runtime, output))

    def spawn(self, runtime: RuntimeDir, output: OutputPipe) -> QEMUProcess:
        """Start QEMU with its monitors on listening sockets."""
        with contextlib.ExitStack() as listening:
            monitor_fd = listening.enter_context(runtime.listening_socket())
            argv, fds = list(self.argv_builder(monitor_fd)), [monitor_fd]
            if self.control is not None:
                fds.append(listening.enter_context(runtime.listening_socket(CONTROL_SOCKET)))
                argv += self.control.arguments(fds[-1])
            process = self._spawn(argv, fds, runtime, output)
        self.on_spawned()
        return process

    def _spawn(self, argv: Sequence[str], fds: Sequence[int], runtime: RuntimeDir, output: OutputPipe) -> QEMUProcess:
        return QEMUProcess.spawn(
            argv,
            home=runtime.path,
            output=output,
            pass_fds=(*fds, runtime.fd, *self.pass_fds),
            memlock_limit=self.memlock_limit,
            ownership=self.ownership,
            more_environment=self.environment,
        )

    async def run(self, runtime: RuntimeDir, output: OutputPipe) -> GuestOutcome:
        """Start QEMU, and follow the guest to its end."""
        over = asyncio.Event()
        owning = contextlib.nullcontext() if self.control is None else self.control.owning(runtime.path)
        with owning, _end_signals(over.set), self.spawn(runtime, output) as process:
            output.follow(asyncio.get_running_loop())
            guest = _Guest(process, self.name, self.actions, over, self.links_down, self.before_running)
            try:
                if self.control is not None:
                    self.control.spawned(process.pid)
                reason = await guest.run(runtime.monitor_path, self.on_started, self.control)
            finally:
                await guest.end()
                output.unfollow()
        return _outcome(reason, process)


def _outcome(reason: str | None, process: QEMUProcess) -> GuestOutcome:
    """Return the outcome of a guest; if QEMU ended by itself without an error, another program has ended it."""
    failed = reason is None and process.status != 0
    return GuestOutcome(reason or (CRASHED if failed else DESTROYED), process.status, failed, process.last_output())


def run_guest(
    argv_builder: ArgvBuilder,
    *,
    dom: Domain,
    runtime_dir: str,
    memlock_limit: int | None = None,
    on_started: OnStarted | None = None,
    log_path: str | None = None,
    ownership: Ownership | None = None,
    pass_fds: Sequence[int] = (),
    on_spawned: Callable[[], object] = lambda: None,
    environment: Mapping[str, str] | None = None,
    links_down: Sequence[str] = (),
    control: Control | None = None,
    before_running: BeforeRunning | None = None,
) -> GuestOutcome:
    """
    Run QEMU with a guest until it ends; SIGINT, SIGTERM, SIGHUP and SIGQUIT end it at once, without asking the guest.

    Args:
        dom: the guest's name, and its actions for a power-off, a reboot or a crash.
        runtime_dir: the directory of the master key in argv; created if missing, and emptied at the end.
        log_path: QEMU's output is appended to this file; it rolls over at 2 MiB. None keeps it while the guest runs.

    Raises:
        ConfigUnsupportedError: the domain requests an unsupported lifecycle action.
        OperationError: QEMU did not start, ended before the guest ran, or refused a command; it has ended then.
    """
    return _GuestRun(
        argv_builder,
        dom.name,
        lifecycle_actions(dom),
        memlock_limit,
        on_started,
        ownership,
        tuple(pass_fds),
        on_spawned,
        dict(environment or {}),
        tuple(links_down),
        control,
        before_running,
    ).run_in(runtime_dir, log_path)
