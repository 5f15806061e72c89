# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kills at many points of many scenarios: a sample of the cases of tests/fuzz/fuzz_crash_matrix.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash import deaths, process, run_and_die
from scenarios import SCENARIOS, Scenario, Stage

EACH = 3  # deaths of each scenario


def test_scenarios_are_many_and_distinct() -> None:
    """At least 40 scenarios, no name twice."""
    assert len(SCENARIOS) >= 40
    assert len(SCENARIOS) == len({scenario.name for scenario in SCENARIOS})


@pytest.mark.fault("F1", "F2", "F15")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_killed_anywhere(tmp_path: Path, scenario: Scenario) -> None:
    """Wherever prepare or release is killed, recover restores drivers, overrides, the tree and the lists."""
    stage = Stage(scenario, tmp_path)
    cases = stage.deaths()
    first = len(scenario.name) * 5 % (len(cases) // EACH)
    for case in cases[first :: len(cases) // EACH]:
        stage.die(case)
        stage.check_restored(case)


@pytest.mark.fault("F1")
@pytest.mark.parametrize("scenario", SCENARIOS[::6], ids=lambda scenario: scenario.name)
def test_killed_again_while_recovering(tmp_path: Path, scenario: Scenario) -> None:
    """The next recover finishes a killed one."""
    stage = Stage(scenario, tmp_path)
    cases = stage.deaths()
    for number, case in enumerate(cases[3 :: len(cases) // 4]):
        run_and_die(stage.action(case.phase), process(stage.fake, **case.fault))  # type: ignore[arg-type]
        stage.fake.kernel.complete()
        second = list(deaths(6, 20))[number * 7]
        run_and_die(lambda manager: manager.recover(timeout_s=0), process(stage.fake, **second))  # type: ignore[arg-type]
        stage.check_restored(case)
