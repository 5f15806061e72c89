# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that die where a test wants them to, at a write to the kernel or at an operation on their state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyhostdev import DomainDef, Host, HostdevManager
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Kill, SimulatedKill
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.journal import Journal
from pyhostdev.util.statedir import StateDir


class MortalStateDir(StateDir):
    """
    A state directory whose writer dies at its n-th operation, and does nothing afterwards.

    With ``torn`` it dies in the middle of a write there; with ``errnum`` the operation fails instead.
    """

    def __init__(
        self, path: str, kernel: SimulatedKernel, dies_at: int = 0, *, torn: bool = False, errnum: int = 0
    ) -> None:
        super().__init__(path)
        self.kernel = kernel
        self.dies_at = dies_at
        self.torn = torn
        self.errnum = errnum
        self.steps = 0
        self.names_of_steps: list[str] = []

    def step(self, operation: str, name: str) -> None:
        self.steps += 1
        self.names_of_steps.append(operation)
        if self.steps == self.dies_at and self.errnum:
            raise OSError(self.errnum, os.strerror(self.errnum))
        if self.steps == self.dies_at and not self.torn:
            self.kernel.kill()
        if self.kernel.killed:
            raise SimulatedKill

    def _put(self, fd: int, data: bytes) -> None:
        if self.torn and self.steps == self.dies_at:
            os.write(fd, data[: len(data) // 2])
            self.kernel.kill()
        super()._put(fd, data)


class Process(NamedTuple):
    """One process of a test: a manager, its kernel and its state directory."""

    manager: HostdevManager
    kernel: SimulatedKernel
    state: MortalStateDir


def process(
    fake: FakeHost,
    *,
    dies_at_state: int = 0,
    dies_at_write: int = 0,
    how: str = "before",
    errnum: int = 0,
) -> Process:
    """Make a process that dies, or with errnum is refused something, once; with no place named it lives."""
    kernel = SimulatedKernel(fake.root)
    if dies_at_write:
        kernel.inject(dies_at_write, Kill(how))
    state = MortalStateDir(fake.root.state_dir, kernel, dies_at_state, torn=how == "torn", errnum=errnum)
    manager = HostdevManager(Host(fake.root, writer=kernel), journal=Journal(state))
    return Process(manager, kernel, state)


def run_and_die(action: Callable[[HostdevManager], object], victim: Process) -> bool:
    """Run an action in a process that may die; True when it did."""
    try:
        action(victim.manager)
    except SimulatedKill:
        return True
    return False


def prepare(definition: DomainDef) -> Callable[[HostdevManager], object]:
    return lambda manager: manager.prepare(manager.host.plan(definition))


def release(manager: HostdevManager) -> object:
    return manager.release("vm1")


def recovered(fake: FakeHost) -> HostdevManager:
    """Let the kernel finish what hangs, then recover in a new process."""
    fake.kernel.complete()
    manager = process(fake).manager
    assert all(item.is_done for item in manager.recover(timeout_s=0))
    return manager


def deaths(total_writes: int, total_steps: int, steps: list[str] | None = None) -> Iterator[dict[str, object]]:
    """
    Yield every place to die: around and in each write to the kernel, before each operation on the state.

    After an operation on the state is before the next one; where the names of the operations are given, a process
    also dies in the middle of writing a file.
    """
    for number in range(1, total_writes + 1):
        for how in ("before", "after", "blocked"):
            yield {"dies_at_write": number, "how": how}
    for number in range(1, total_steps + 1):
        yield {"dies_at_state": number}
        if steps is not None and steps[number - 1] == "write":
            yield {"dies_at_state": number, "how": "torn"}
