# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crash matrix as a whole: every write and state operation x how to die there x every scenario."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash import deaths, process, run_and_die
from scenarios import SCENARIOS, Scenario, Stage

from pyhostdev import HostdevManager

SECONDS_EACH = 2  # second deaths for each first one


def recover(manager: HostdevManager) -> object:
    return manager.recover(timeout_s=0)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_killed_anywhere(tmp_path: Path, scenario: Scenario, count_cases: list[int]) -> None:
    """Wherever prepare or release is killed, recover restores drivers, overrides, the tree and the lists."""
    stage = Stage(scenario, tmp_path)
    for case in stage.deaths():
        stage.die(case)
        stage.check_restored(case)
        count_cases.append(1)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_killed_again_while_recovering(tmp_path: Path, scenario: Scenario, count_cases: list[int]) -> None:
    """Wherever the recover after a death dies too, the next one finishes; second deaths take all places in turn."""
    stage = Stage(scenario, tmp_path)
    turn = 0
    for case in stage.deaths():
        for _ in range(SECONDS_EACH):
            run_and_die(stage.action(case.phase), process(stage.fake, **case.fault))  # type: ignore[arg-type]
            stage.fake.kernel.complete()
            places = list(deaths(2 + 4 * len(scenario.hostdevs), 4 + 10 * len(scenario.hostdevs)))
            second = process(stage.fake, **places[turn % len(places)])  # type: ignore[arg-type]
            run_and_die(recover, second)
            stage.check_restored(case)
            turn += 1
            count_cases.append(1)
