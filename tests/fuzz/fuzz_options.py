# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every attribute and text of every definition, with every hostile end; every path of it, relative."""

from __future__ import annotations

from pathlib import Path

import pytest
from injection import argv_of, definitions, hostile, injections
from lxml import etree
from relativepaths import accepted, changed


@pytest.mark.parametrize("path", definitions(), ids=lambda path: path.stem)
def test_no_value_adds_a_key(path: Path, count_cases: list[int]) -> None:
    """For any attribute or text value, QEMU reads the same keys as before."""
    assert [] == list(injections(path))
    if argv_of(path.read_bytes()) is not None:
        count_cases.append(sum(1 for _ in hostile(path)))


@pytest.mark.parametrize("path", definitions(), ids=lambda path: path.stem)
def test_no_relative_path_reaches_a_program(path: Path, count_cases: list[int]) -> None:
    """Start refuses every path that is not absolute."""
    try:
        is_domain = etree.fromstring(path.read_bytes()).tag == "domain"
    except etree.XMLSyntaxError:
        return
    if is_domain and argv_of(path.read_bytes()) is not None:
        texts = list(changed(path))
        assert [] == [what for what, text in texts if accepted(text)]
        count_cases.append(len(texts))
