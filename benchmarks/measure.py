# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all measurements share: a goal, the turns of two sides, the scan's C part, and trees in memory."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from floor import Floor

from pyhostdev.testing.generator import PLAIN_CARDS, SRIOV_CARDS, make_tree
from pyhostdev.util import pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciscan import Tuning

TMPFS = "/dev/shm"  # noqa: S108  memory, and only a directory of our own in it
SIZE = 10_000
AS_SYSFS = Tuning(linked=True)  # what the scanner finds out by itself on the live host

INFORMATION = float("inf")  # the limit of a figure that is not a goal

Work = Callable[[], object]


class Goal(NamedTuple):
    """A figure and its limit: at most, or at least."""

    name: str
    figure: float | None  # None: what it needs is not installed
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """True if the figure meets its goal; None if it could not be measured."""
        if self.figure is None:
            return None
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def row(self) -> str:
        """Return its line of the table."""
        figure = "not measured" if self.figure is None else f"{self.figure:.3g}"
        if self.limit == INFORMATION:
            return f"| {self.name} | | {figure} | |"
        met = {True: "yes", False: "**no**", None: ""}[self.is_met]
        return f"| {self.name} | {'≥' if self.at_least else '≤'} {self.limit:g} | {figure} | {met} |"


class CPart:
    """The three C calls of a scan and nothing else, in reused memory."""

    def __init__(self, root: HostRoot, tuning: Tuning) -> None:
        self.bus_fd = os.open(root.pci_bus, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.scanner = pciscan._Scanner(root, self.bus_fd, tuning)
        self.ffi, self.lib = pciscan._c.ffi, pciscan._c.lib
        self.keys, self.count = self.scanner._list()
        self.records = self.ffi.new("struct phd_record[]", self.count)
        self.text = self.ffi.new("char[]", self.count * 17)
        self.found = self.ffi.new("size_t *")
        self.summary = self.ffi.new("struct phd_summary *")

    def __call__(self) -> None:
        scanner, capacity = self.scanner, len(self.keys) // 2
        args = (self.keys, capacity, scanner.buffers, self.found, scanner.error)
        scanner._check(self.lib.phd_list(self.bus_fd, *args))
        more = (self.records, scanner.buffers, self.summary, scanner.error)
        scanner._check(self.lib.phd_fill(self.bus_fd, scanner.tuning, self.keys, self.found[0], *more))
        self.lib.phd_format(self.records, self.summary.count, self.text)


class Trees:
    """Synthetic hosts, each made once."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.made: dict[tuple[str, int], HostRoot] = {}

    def __call__(self, shape: str, functions: int) -> HostRoot:
        key = (shape, functions)
        if key not in self.made:
            path = self.top / f"{shape}-{functions}"
            cards = {"sriov": SRIOV_CARDS, "plain": PLAIN_CARDS}[shape]
            make_tree(path, functions, cards=cards)
            self.made[key] = HostRoot(path)
        return self.made[key]


def in_turns(rounds: int, works: dict[str, Work]) -> dict[str, float]:
    """Run functions in turns; return medians of CPU seconds. One that returns a float measured itself."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for name in [*works] * (rounds + 1):  # the first round warms up
        gc.collect()
        begin = time.process_time()
        told = works[name]()
        taken[name].append(told if isinstance(told, float) else time.process_time() - begin)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def machine() -> str:
    """Return the class of the machine, no more."""
    release = ".".join(platform.release().split(".")[:2])
    return (
        f"{os.cpu_count()} CPUs, {platform.machine()}, Linux {release}, "
        f"CPython {platform.python_version()}, trees in {'tmpfs' if in_memory() else 'a directory'}"
    )


def in_memory() -> bool:
    """Tell whether there is a tmpfs to put trees into."""
    return os.access(TMPFS, os.W_OK)


@contextmanager
def trees_in_memory() -> Iterator[tuple[Trees, Floor]]:
    """Make room for trees and for the floor's build."""
    with tempfile.TemporaryDirectory(dir=TMPFS if in_memory() else None) as top:
        yield Trees(Path(top)), Floor(Path(top))
