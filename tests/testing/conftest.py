# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts with shortcuts for writes and checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench import Bench, Benches

from pyhostdev.testing.fakehost import FakeHost


@pytest.fixture
def bench(fakehost: Callable[[str], FakeHost]) -> Benches:
    """A function that builds a host and returns its bench."""

    def make(tree: str = "bcm5719") -> Bench:
        fake = fakehost(tree)
        return Bench(fake.root, fake.kernel)

    return make


@pytest.fixture
def card(bench: Benches) -> Bench:
    """The seed's host."""
    return bench("bcm5719")
