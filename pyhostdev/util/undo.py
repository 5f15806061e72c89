# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A base for context managers whose changes are undone together.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class UndoOnExit(ABC):
    """
    A context manager that undoes on exit what ``_begin`` did; if ``_begin`` fails, its finished steps are undone.
    """

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()

    @abstractmethod
    def _begin(self, undo: contextlib.ExitStack) -> None:
        """Make the changes, and register the undo of each."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._begin(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
