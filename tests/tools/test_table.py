# SPDX-License-Identifier: LGPL-2.1-or-later
"""The writer of tables: columns, the width of a terminal, and what is never broken."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.table import GAP, display_width, format_table

COLUMNS = ("ADDRESS", "DRIVER", "WHY")
ROWS = [
    ("0000:01:00.0", "tg3", "the driver does not let go of the device"),
    ("00010000:0a:1f.7", "a_driver_of_a_very_long_name", "-"),
]
CELLS = st.text(st.characters(categories=("L", "N", "P")) | st.just(" "), min_size=1, max_size=20)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """Two blanks between columns, none at the end of a line."""
    assert (
        "ADDRESS           DRIVER                        WHY\n"
        "0000:01:00.0      tg3                           the driver does not let go of the device\n"
        "00010000:0a:1f.7  a_driver_of_a_very_long_name  -\n"
    ) == format_table(COLUMNS, ROWS)


def test_a_table_without_rows_is_its_header() -> None:
    """An empty host does not look like an error."""
    assert "DEVICE  LIST\n" == format_table(("DEVICE", "LIST"), [])


def test_narrow_terminal_breaks_between_words() -> None:
    """Words stay whole as long as they fit."""
    assert (
        "ADDRESS           DRIVER                        WHY\n"
        "0000:01:00.0      tg3                           the driver\n"
        "                                                does not let\n"
        "                                                go of the\n"
        "                                                device\n"
        "00010000:0a:1f.7  a_driver_of_a_very_long_name  -\n"
    ) == format_table(COLUMNS, ROWS, 60)


@pytest.mark.parametrize("width", [1, 20, 30, 40, 50, 80])
def test_addresses_are_never_cut(width: int) -> None:
    """Addresses are never cut, even if they are wider than the terminal; the other columns shrink."""
    lines = format_table(COLUMNS, ROWS, width).splitlines()
    assert [1, 1] == [sum(address in line for line in lines) for address, *_ in ROWS]
    least = len("00010000:0a:1f.7") + 2 * (len(GAP) + 4)
    assert max(map(len, lines)) <= max(width, least)


def test_wide_letters_count_twice() -> None:
    """The name of a domain can be in any script; columns stay straight."""
    rows = [("a", "仮想機械", "active"), ("b", "e\u0301", "active")]
    lines = format_table(("DEVICE", "OWNER", "LIST"), rows).splitlines()
    assert 1 == len({display_width(line.partition("active")[0]) for line in lines[1:]})


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5), st.integers(1, 70))
def test_a_narrow_table_says_the_same(rows: list[tuple[str, str, str]], width: int) -> None:
    """Whatever the width: the same letters in the same column, in order."""
    wide, narrow = (format_table(COLUMNS, rows, limit) for limit in (None, width))
    assert sorted(re.sub(r"\s", "", wide)) == sorted(re.sub(r"\s", "", narrow))


@pytest.mark.parametrize(("term", "bold"), [("xterm", True), ("dumb", False)])
def test_a_terminal_gets_its_width_and_a_bold_header(bcm5719: FakeHost, term: str, bold: bool) -> None:
    """The width is the terminal's; a dumb one gets no escapes."""
    command = [sys.executable, "-m", "pyhostdev", "list", "--root", bcm5719.root.path]
    lines = on_terminal(command, {"TERM": term, "COLUMNS": "60"})
    assert bold == lines[0].startswith("\x1b[1mADDRESS")
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in lines]
    assert max(map(len, plain)) <= 60
    assert any(line.startswith("0001:09:00.3  14e4:1657") for line in plain)


def on_terminal(command: list[str], environment: dict[str, str]) -> list[str]:
    """Return the lines that a program writes to a terminal."""
    ours, its = pty.openpty()
    with subprocess.Popen(command, stdout=its, env={**os.environ, **environment}) as child:
        os.close(its)
        text = b"".join(iter(lambda: read_terminal(ours), b""))
        assert 0 == child.wait(60)
    os.close(ours)
    return text.decode().split("\r\n")


def read_terminal(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # the other end is closed
        return b""
