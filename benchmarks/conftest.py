# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts for the measurements: created once per session, in memory if there is a tmpfs."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhostdev.testing.generator import PLAIN_CARDS, SRIOV_CARDS, make_tree
from pyhostdev.util.hostroot import HostRoot

TMPFS = "/dev/shm"  # noqa: S108  memory, and only a directory of our own in it


@pytest.fixture(scope="session")
def large_host() -> Iterator[Callable[[int, str], HostRoot]]:
    """Make hosts with a number of functions, on "sriov" or "plain" cards; each is created once."""
    made: dict[tuple[int, str], HostRoot] = {}
    cards = {"sriov": SRIOV_CARDS, "plain": PLAIN_CARDS}
    with tempfile.TemporaryDirectory(dir=TMPFS if os.access(TMPFS, os.W_OK) else None) as top:

        def make(functions: int, shape: str) -> HostRoot:
            if (functions, shape) not in made:
                path = Path(top, f"{shape}-{functions}")
                make_tree(path, functions, cards=cards[shape])
                made[functions, shape] = HostRoot(path)
            return made[functions, shape]

        yield make


@pytest.fixture
def cpu_times() -> Callable[..., dict[str, float]]:
    """Measure functions in turns, so that noise affects all of them; return medians of CPU seconds by name."""

    def measure(rounds: int = 9, **works: Callable[[], object]) -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                gc.collect()
                begin = time.process_time()
                work()
                taken[name].append(time.process_time() - begin)
        return {name: sorted(times)[rounds // 2] for name, times in taken.items()}

    return measure
