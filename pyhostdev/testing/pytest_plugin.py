# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fake hosts for pytest, in every environment that has pyhostdev installed.

Loaded in each run of pytest there: nothing of ours is imported before a test asks for a host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from pyhostdev.testing.fakehost import FakeHost


class FakeHostFactory(Protocol):
    """Makes a fake host in a directory of its own; call it as often as hosts are needed."""

    def __call__(self, tree: str | os.PathLike[str]) -> FakeHost:
        """Build a host from a shipped host's name, a description's text or the path of a ``.tree`` file."""


@pytest.fixture
def fakehost(tmp_path: Path) -> FakeHostFactory:
    """
    Build fake hosts below the test's temporary directory: ``fakehost("bcm5719")``, or with a description.
    """
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
