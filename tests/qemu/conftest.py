# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flag that writes golden files anew instead of comparing with them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --regenerate, unless another conftest has it already."""
    with suppress(ValueError):
        parser.addoption("--regenerate", action="store_true", help="write golden files anew")


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """A function that compares a text with a golden file, or with --regenerate writes the file."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--regenerate", default=False):
            path.write_text(text)
        assert path.read_text() == text

    return check
