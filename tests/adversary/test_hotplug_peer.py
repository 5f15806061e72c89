# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU that its guest has taken over, at the other end of hot-plug; ``make fuzz`` tries many more."""

from __future__ import annotations

import pytest

pytest.importorskip("qemu.qmp", reason="the library qemu.qmp is not installed")

from qmpquestions import plugged


@pytest.mark.parametrize("seed", range(5000, 5024))
def test_a_hostile_guest_is_one_error(seed: int) -> None:
    """Plugging and unplugging raise OperationError only, of bounded length and without control characters."""
    assert None is plugged(seed)
