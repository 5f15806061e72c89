# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that die where a test wants them to, at a write to the kernel or at an operation on their state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyhostdev import DomainDef, Host, HostdevManager
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Kill, SimulatedKill
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.journal import Journal
from pyhostdev.util.statedir import StateDir


class MortalStateDir(StateDir):
    """A state directory whose writer dies at its n-th operation, and does nothing more once it is dead."""

    def __init__(self, path: str, kernel: SimulatedKernel, dies_at: int = 0) -> None:
        super().__init__(path)
        self.kernel = kernel
        self.dies_at = dies_at
        self.steps = 0

    def step(self, operation: str, name: str) -> None:
        self.steps += 1
        if self.steps == self.dies_at:
            self.kernel.kill()
        if self.kernel.killed:
            raise SimulatedKill


class Process(NamedTuple):
    """One process of a test: a manager, its kernel and its state directory."""

    manager: HostdevManager
    kernel: SimulatedKernel
    state: MortalStateDir


def process(fake: FakeHost, *, dies_at_state: int = 0, dies_at_write: int = 0, how: str = "before") -> Process:
    kernel = SimulatedKernel(fake.root)
    if dies_at_write:
        kernel.inject(dies_at_write, Kill(how))
    state = MortalStateDir(fake.root.state_dir, kernel, dies_at_state)
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


def deaths(total_writes: int, total_steps: int) -> Iterator[dict[str, object]]:
    for number in range(1, total_writes + 1):
        for how in ("before", "after", "blocked"):
            yield {"dies_at_write": number, "how": how}
    for number in range(1, total_steps + 1):
        yield {"dies_at_state": number}
