# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real processes that are killed with SIGKILL while they prepare and release on a simulated host."""

from __future__ import annotations

import os
import random
import signal
import time

from crash import process, recovered
from scenarios import Stage

LONGEST_S = 0.06  # two or three rounds of prepare and release


def kill_at_random(stage: Stage, chance: random.Random) -> None:
    """
    Kill a working child at a random moment, recover, and check that everything is as before.

    The simulated kernel finishes the writes of the killed process, as a real one does.
    """
    child = os.fork()
    if child == 0:
        _work(stage)
    time.sleep(chance.uniform(0, LONGEST_S))
    os.kill(child, signal.SIGKILL)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    recovered(stage.fake)
    found = stage.look()
    if found == stage.prepared:
        stage.scenario.release(process(stage.fake).manager)
        found = stage.look()
    assert found in (*stage.before, stage.after)
    stage.rewind()


def _work(stage: Stage) -> None:
    """Prepare and release for ever; the process ends by a signal, or by an error with another status."""
    try:
        while True:
            manager = process(stage.fake).manager
            stage.scenario.prepare(manager)
            stage.scenario.release(manager)
    finally:
        os._exit(1)
