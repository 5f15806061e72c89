# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts to measure on: made once a session, in memory where there is a tmpfs."""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pyhostdev.util.hostroot import HostRoot

TMPFS = "/dev/shm"  # noqa: S108  memory, and only a directory of our own in it


@pytest.fixture(scope="session")
def gen_tree() -> ModuleType:
    """Load the generator beside this file."""
    spec = importlib.util.spec_from_file_location("gen_tree", Path(__file__).with_name("gen_tree.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def large_host(gen_tree: ModuleType) -> Iterator[Callable[[int, str], HostRoot]]:
    """Make hosts of that many functions, with "sriov" or "plain" cards; each is made once."""
    made: dict[tuple[int, str], HostRoot] = {}
    cards = {"sriov": gen_tree.SRIOV_CARDS, "plain": gen_tree.PLAIN_CARDS}
    with tempfile.TemporaryDirectory(dir=TMPFS if os.access(TMPFS, os.W_OK) else None) as top:

        def make(functions: int, shape: str) -> HostRoot:
            if (functions, shape) not in made:
                path = Path(top, f"{shape}-{functions}")
                gen_tree.make_tree(path, functions, cards=cards[shape])
                made[functions, shape] = HostRoot(path)
            return made[functions, shape]

        yield make


@pytest.fixture
def cpu_times() -> Callable[..., dict[str, float]]:
    """Time works in turns, so that noise meets all of them; medians of CPU seconds by name."""

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
