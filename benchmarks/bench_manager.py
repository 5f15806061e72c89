# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cost of a plan, of prepare and of release, on a simulated host that reacts at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyhostdev import DomainDef, Host, HostdevManager
from pyhostdev.testing import FakeHost
from pyhostdev.tools.demo import GUEST


@pytest.fixture
def manager(tmp_path: Path) -> HostdevManager:
    """A manager on the seed's host."""
    fake = FakeHost.named("bcm5719", tmp_path)
    return HostdevManager(Host(fake.root, writer=fake.kernel))


@pytest.fixture
def definition() -> DomainDef:
    """The seed's guest."""
    return DomainDef.parse(Path(GUEST).read_bytes())


@pytest.mark.benchmark(group="manager")
def test_plan(benchmark: Any, manager: HostdevManager, definition: DomainDef) -> None:
    """A plan of four functions."""
    assert manager.host.plan(definition).ok
    benchmark(manager.host.plan, definition)


@pytest.mark.benchmark(group="manager")
def test_prepare_and_release(benchmark: Any, manager: HostdevManager, definition: DomainDef) -> None:
    """Four functions are detached, recorded, reset and reattached; the simulated kernel's time is included."""
    plan = manager.host.plan(definition)

    def round_trip() -> None:
        manager.prepare(plan)
        manager.release("seed")

    round_trip()
    assert ([], [], []) == manager.status()
    benchmark(round_trip)
