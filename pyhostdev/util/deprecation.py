# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Old spellings of public names: they still work and warn with the new name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from pyhostdev.util.typed import Any


def deprecated_names(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """
    Return a ``__getattr__`` for a module that supports old names.

    Args:
        names: maps each old name to the new object, which has a ``__name__``.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        found = names[name]
        warn_renamed(name, found.__name__)
        return found

    return find


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller's caller that a name has a new spelling."""
    text = f"'{old}' is now called '{new}', see docs/deprecations.md"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
