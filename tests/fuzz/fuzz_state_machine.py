# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state machine for long."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import HostMachine

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))


def test_invariants_hold_whatever_happens() -> None:
    """Many more runs, and longer ones; FUZZ_EXAMPLES sets how many."""
    checks = list(HealthCheck)
    many = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(HostMachine, settings=many)
