# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees changed at random, and every reading verb on each; tests/adversary/test_hostile_root.py has a sample."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import KINDS, VERBS, check, check_at_random, make_secret, make_tree, place_in_copy

TREES_EACH = 60


@pytest.mark.parametrize("part", range(10))
def test_changed_at_random(tmp_path: Path, part: int, count_cases: list[int]) -> None:
    """With any kind of file in any place, a verb ends in time with 0 or 1, and shows nothing from outside the root."""
    tree, secret = make_tree(tmp_path / "good"), make_secret(tmp_path / "outside")
    for seed in range(part * 1000, part * 1000 + TREES_EACH):
        count_cases.extend([1] * check_at_random(tree, tmp_path / "changed", secret, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_place(tmp_path: Path, kind: str, count_cases: list[int]) -> None:
    """Each kind of thing in each place that is read, alone."""
    tree, secret = make_tree(tmp_path / "good"), make_secret(tmp_path / "outside")
    for where in tree.read:
        with place_in_copy(tree, where, kind, secret) as top:
            for verb in VERBS:
                check(top, verb, (where, kind))
                count_cases.append(1)
