# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every read of every scenario, of recover after crashes and of every question refused, with the errnos in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from questions import QUESTIONS, Question
from reads import (
    ERRNOS,
    check_read,
    check_recover,
    errnos_in_turn,
    first_of_sites,
    is_left_out,
    reads_of,
    reads_of_phase,
    reads_of_recover,
)
from scenarios import SCENARIOS, Scenario, Stage

DEATHS_EACH = 4  # of each scenario, spread over prepare and release


@pytest.mark.parametrize("phase", ["prepare", "release"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_read(tmp_path: Path, scenario: Scenario, phase: str, count_cases: list[int]) -> None:
    """All is as before, or the error reports otherwise and recover finishes."""
    stage = Stage(scenario, tmp_path)
    errnos = errnos_in_turn(SCENARIOS.index(scenario))
    for number in range(1, 1 + len(reads_of_phase(stage, phase))):
        check_read(stage, phase, number, next(errnos))
        count_cases.append(1)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_place_that_reads_in_recover(tmp_path: Path, scenario: Scenario, count_cases: list[int]) -> None:
    """Recover's reported results are real, and the next recover finishes."""
    stage = Stage(scenario, tmp_path)
    errnos = errnos_in_turn(SCENARIOS.index(scenario))
    deaths = stage.deaths()
    for death in deaths[len(deaths) // 8 :: len(deaths) // DEATHS_EACH]:
        for number in first_of_sites(reads_of_recover(stage, death)):
            check_recover(stage, death, number, next(errnos))
            count_cases.append(1)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_every_read_of_every_question(tmp_path: Path, question: Question, count_cases: list[int]) -> None:
    """The same answer as without, or a HostdevError."""
    fake = question.build(tmp_path)
    answer = question.answer(fake)
    log = reads_of(fake, lambda: question.answer(fake))
    for number, read in enumerate(log, 1):
        for errnum in ERRNOS:
            if not is_left_out(read, errnum):
                question.check(fake, answer, number, errnum)
                count_cases.append(1)
