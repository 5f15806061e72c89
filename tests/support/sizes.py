# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sizes of property tests: small in ``make test``, FUZZ_FACTOR times as large in ``make fuzz``."""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))


def examples(count: int) -> int:
    """Return the number of examples for this run; ``count`` is the number in ``make test``."""
    return count * FACTOR
