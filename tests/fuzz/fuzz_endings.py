# SPDX-License-Identifier: LGPL-2.1-or-later
"""Released at 1,000 random moments around the end of QEMU."""

from __future__ import annotations

import random
from pathlib import Path

from endings import release_at_random

from pyhostdev import DomainDef
from pyhostdev.testing.fakehost import FakeHost

MOMENTS = 1000


def test_release_at_every_moment_of_the_end(tmp_path: Path, seed_domain: DomainDef) -> None:
    """No function is unbound under a holder of any kind, and all functions are restored in the end."""
    fake, chance = FakeHost.named("bcm5719", tmp_path), random.Random(9)
    outcomes = [release_at_random(fake, seed_domain, chance) for _ in range(MOMENTS)]
    assert {"waited", "refused"} == set(outcomes)
