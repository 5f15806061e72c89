# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Nothing is ever lost: crashes, stuck writes, races and foreign writes, on a real kernel.

A short form belongs to ``make lab``; with LAB_SOAK=1 the long one runs, which is ``make soak``.
"""

from __future__ import annotations

import os
import shutil
import sys

import crash
import cycles
import errnos
import loss
import races
import stuck
import truth
from labhost import run_all

STEPS = [
    crash.killed_anywhere,
    crash.start_killed_anywhere,
    crash.start_killed_beside_its_guest,
    stuck.stuck_unbind,
    stuck.held_group,
    stuck.released_at_the_end,
    races.two_managers,
    races.hostile_writer,
    cycles.detach_and_reattach,
    truth.functions_with_vfs,
    truth.dynamic_id,
    truth.missing_module,
    truth.rebound_in_the_middle,
    truth.odd_originals,
    truth.overrides_of_driverctl,
    loss.vanished,
    loss.plugged_in_again,
    loss.stub_unloaded,
    loss.full_disk,
    loss.without_rights,
]


def clean_up() -> None:
    """Restore the host without the library, after a step that failed."""
    kernel = errnos.RealKernel()
    kernel.write("rescan", b"1")  # what was unplugged
    errnos.go_home(kernel)
    shutil.rmtree("/run/pyhostdev", ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("LAB_PATIENCE", "1")
    sys.exit(run_all(STEPS, clean_up))
