# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prepare, release, crash, hot-plug, foreign changes and reboots in any order: the invariants hold."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import HostMachine


@pytest.mark.fault("F1", "F4", "F5", "F13", "F14", "F16")
def test_invariants_hold_whatever_happens() -> None:
    """No list has a device twice, no group has two owners, and every unlisted device is in its original state."""
    few = settings(
        max_examples=60,  # tests/fuzz/fuzz_state_machine.py makes 2,000 longer ones
        stateful_step_count=12,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(HostMachine, settings=few)
