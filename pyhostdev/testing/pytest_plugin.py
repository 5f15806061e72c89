# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fake hosts for pytest, in every environment with pyhostdev installed.

The plugin is loaded in each run of pytest there: pyhostdev is only imported when a test requests a host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from pyhostdev.testing.fakehost import FakeHost


class FakeHostFactory(Protocol):
    """Builds fake hosts, each in its own directory; call it once per host."""

    def __call__(self, tree: str | os.PathLike[str]) -> FakeHost:
        """Build a host from the name of a shipped host, the text of a description, or the path of a ``.tree`` file."""


@pytest.fixture
def fakehost(tmp_path: Path) -> FakeHostFactory:
    """Build fake hosts below the test's temporary directory: ``fakehost("bcm5719")``, or with a description."""
    made: list[FakeHost] = []

    def make(tree: str | os.PathLike[str]) -> FakeHost:
        from pyhostdev.testing.fakehost import FakeHost, named_hosts

        directory = tmp_path / f"host{len(made)}"
        directory.mkdir()
        if isinstance(tree, str) and tree in named_hosts():
            made.append(FakeHost.named(tree, directory))
        else:
            made.append(FakeHost.from_tree(tree, directory))
        return made[-1]

    return make
