# SPDX-License-Identifier: LGPL-2.1-or-later
"""Thousands of changed definitions, and every element of the corpus as often as a document can hold it."""

from __future__ import annotations

import pytest
from hostile_xml import corpus, failures, kinds, repeated, too_costly

DOCUMENTS = 1000  # one test reads
ROUNDS = 20


@pytest.mark.parametrize("part", range(ROUNDS))
def test_no_definition_does_harm(part: int, count_cases: list[int]) -> None:
    """A definition is read or refused, within bounds of time and memory."""
    assert [] == list(failures(range(part * DOCUMENTS, (part + 1) * DOCUMENTS), corpus()))
    count_cases.append(DOCUMENTS)


@pytest.mark.parametrize("kind", kinds(), ids="/".join)
def test_no_element_is_too_many(kind: tuple[str, ...], count_cases: list[int]) -> None:
    """Whatever a document of nearly a megabyte consists of, it takes seconds and not minutes."""
    assert [] == too_costly(repeated(kind))
    count_cases.append(1)
