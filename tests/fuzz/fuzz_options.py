# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every attribute and text of every definition, with every hostile end."""

from __future__ import annotations

from pathlib import Path

import pytest
from injection import argv_of, definitions, hostile, injections


@pytest.mark.parametrize("path", definitions(), ids=lambda path: path.stem)
def test_no_value_adds_a_key(path: Path, count_cases: list[int]) -> None:
    """For any attribute or text value, QEMU reads the same keys as before."""
    assert [] == list(injections(path))
    if argv_of(path.read_bytes()) is not None:
        count_cases.append(sum(1 for _ in hostile(path)))
