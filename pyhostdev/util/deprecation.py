# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Old spellings of public names: they still work, and say what they are called now.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def deprecated_names(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """
    Return a module's ``__getattr__`` that knows old names.

    Args:
        names: old name to what it is called now, an object with a ``__name__``.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        found = names[name]
        text = f"'{name}' is called '{found.__name__}' now, see docs/deprecations.md"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return found

    return find
