# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many conversations with emulators that answer wrongly, each another way."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("qemu.qmp", reason="the library qemu.qmp is not installed")

from qmpquestions import plugged, probed, watched

from pyhostdev.qemu.qemu_capabilities import probing

CASES = 250


@pytest.mark.parametrize("first", range(0, 1500, CASES))
def test_a_hostile_emulator_is_one_error(first: int, count_cases: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe returns what can be used or raises one OperationError, within its deadline."""
    monkeypatch.setattr(probing, "DEADLINE_S", 0.5)
    for seed in range(first, first + CASES):
        begin = time.monotonic()
        assert (seed, None) == (seed, probed(seed))
        assert time.monotonic() - begin < 10, seed
    count_cases.append(CASES)


@pytest.mark.parametrize("first", range(0, 750, CASES))
def test_a_hostile_guest_is_one_error(first: int, count_cases: list[int]) -> None:
    """The monitor of a guest raises OperationError only, of bounded length."""
    for seed in range(first, first + CASES):
        assert (seed, None) == (seed, watched(seed))
    count_cases.append(CASES)


@pytest.mark.parametrize("first", range(0, 750, CASES))
def test_a_hostile_guest_of_hotplug_is_one_error(first: int, count_cases: list[int]) -> None:
    """Plugging and unplugging raise OperationError only, of bounded length and without control characters."""
    for seed in range(first, first + CASES):
        assert (seed, None) == (seed, plugged(seed))
    count_cases.append(CASES)
