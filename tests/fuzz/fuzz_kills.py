# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many processes killed at random moments."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from kills import kill_at_random
from scenarios import SCENARIOS, Scenario, Stage

CHOSEN = ("seed", "vfs", "mixed-managed", "one-on-vfio-of-three", "driverless", "override-other", "nodedev")


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in CHOSEN], ids=lambda scenario: scenario.name)
def test_killed_at_random(tmp_path: Path, scenario: Scenario, count_cases: list[int]) -> None:
    """After SIGKILL at a random moment of prepare or release, recover restores everything."""
    stage, chance = Stage(scenario, tmp_path), random.Random(scenario.name)
    for _ in range(50):
        kill_at_random(stage, chance)
        count_cases.append(1)
