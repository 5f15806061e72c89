# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crash matrix of plugging and unplugging as a whole: every write, file operation and command x every scenario."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugcrash import ACTIONS, World, scenarios

from pyhostdev.testing import FakeHost

SECONDS_EACH = 2  # second deaths for each first one


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("machine", "guest"), list(scenarios()))
def test_killed_anywhere(tmp_path: Path, machine: str, guest: str, action: str, count_cases: list[int]) -> None:
    """The guest has the whole unit, or none of it, or it is pending; at the end everything is restored."""
    stage = World(FakeHost.named("bcm5719", tmp_path), machine, guest)
    for death in stage.deaths(action):
        stage.die(action, death)
        stage.check_decided(death)
        stage.check_restored(death)
        count_cases.append(1)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("machine", "guest"), list(scenarios()))
def test_killed_again_while_finishing(
    tmp_path: Path, machine: str, guest: str, action: str, count_cases: list[int]
) -> None:
    """A finish that dies, too, leaves nothing that the next one does not finish; second deaths take turns."""
    stage = World(FakeHost.named("bcm5719", tmp_path), machine, guest)
    deaths, turn = stage.deaths(action), 0
    for death in deaths:
        for _ in range(SECONDS_EACH):
            stage.die(action, death)
            stage.fake.kernel.complete()
            stage.run("finish", deaths[turn % len(deaths)])
            stage.check_decided(death)
            stage.check_restored(death)
            turn += 7
            count_cases.append(1)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("machine", "guest"), list(scenarios()))
def test_qemu_and_its_owner_die_as_well(
    tmp_path: Path, machine: str, guest: str, action: str, count_cases: list[int]
) -> None:
    """recover reattaches a unit that was being plugged; release reattaches the units of the guest."""
    stage = World(FakeHost.named("bcm5719", tmp_path), machine, guest)
    for death in stage.deaths(action):
        stage.die(action, death)
        stage.check_restored_after_the_end(death)
        count_cases.append(1)
