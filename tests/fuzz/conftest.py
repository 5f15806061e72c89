# SPDX-License-Identifier: LGPL-2.1-or-later
"""The final report of long runs: the number of cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

_COUNTS: dict[str, int] = {}


@pytest.fixture
def count_cases(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """A list to which a test appends one item per case; the sums are printed at the end."""
    cases: list[int] = []
    yield cases
    name = request.node.originalname
    _COUNTS[name] = _COUNTS.get(name, 0) + sum(cases)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sums."""
    for name, count in _COUNTS.items():
        terminalreporter.write_line(f"{name}: {count} cases")
