# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kills during plugging or unplugging: a sample of the cases of tests/fuzz/fuzz_hotplug_crash.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugcrash import ACTIONS, World, scenarios

from pyhostdev.testing import FakeHost

EACH = 5


def world(tmp_path: Path, machine: str, guest: str) -> World:
    return World(FakeHost.named("bcm5719", tmp_path), machine, guest)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("machine", "guest"), list(scenarios()))
def test_killed_anywhere(tmp_path: Path, machine: str, guest: str, action: str) -> None:
    """The guest has the whole unit, or none of it, or it is pending; at the end everything is restored."""
    stage = world(tmp_path, machine, guest)
    deaths = stage.deaths(action)
    assert len(deaths) > 60
    for death in deaths[:: max(1, len(deaths) // EACH)]:
        assert stage.die(action, death), death
        stage.check_decided(death)
        stage.check_restored(death)


@pytest.mark.parametrize("action", ACTIONS)
def test_killed_again_while_finishing(tmp_path: Path, action: str) -> None:
    """The next finish completes a killed one."""
    stage = world(tmp_path, "pc", "linux")
    deaths = stage.deaths(action)
    for number, death in enumerate(deaths[:: max(1, len(deaths) // EACH)]):
        stage.die(action, death)
        stage.fake.kernel.complete()
        stage.run("finish", deaths[(number * 37 + 11) % len(deaths)])
        stage.check_decided(death)
        stage.check_restored(death)


@pytest.mark.parametrize("action", ACTIONS)
def test_qemu_and_its_owner_die_as_well(tmp_path: Path, action: str) -> None:
    """recover reattaches a unit that was being plugged; release reattaches the units of the guest."""
    stage = world(tmp_path, "pc", "linux")
    deaths = stage.deaths(action)
    for death in deaths[3 :: max(1, len(deaths) // EACH)]:
        stage.die(action, death)
        stage.check_restored_after_the_end(death)
