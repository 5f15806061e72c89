# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every operation of every scenario refused with every errno."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import ERRNOS, check_refusal, refusals
from scenarios import SCENARIOS, Scenario, Stage


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_operation_and_every_errno(tmp_path: Path, scenario: Scenario, count_cases: list[int]) -> None:
    """All is as before, or the error reports otherwise and recover finishes."""
    stage = Stage(scenario, tmp_path)
    for case in refusals(stage):
        for errnum in ERRNOS:
            check_refusal(stage, case, errnum)
            count_cases.append(1)
