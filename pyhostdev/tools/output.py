# SPDX-License-Identifier: LGPL-2.1-or-later
"""The output of verbs: JSON for programs, a table or a tree for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from pyhostdev.tools import streams
from pyhostdev.tools.table import fold, format_table
from pyhostdev.util.typed import Any

# Unprintable, yet allowed in XML names and harmless on a terminal: joiners of letters
_JOINERS = "\u200c\u200d"
_PLAIN_TERMINALS = ("dumb", "unknown")
_USUAL_WIDTH = 80


def shell_word(word: str) -> str:
    """Return a word in shell syntax, with unprintable characters as escapes of bash, ksh and zsh."""
    import shlex

    quoted = shlex.quote(word)
    if quoted.isprintable():
        return quoted
    return "$'" + "".join(_shell_character(c) for c in word) + "'"


def _shell_character(c: str) -> str:
    if c in "\\'":
        return f"\\{c}"
    if c.isprintable():
        return c
    return "".join(f"\\{byte:03o}" for byte in c.encode("utf-8", "surrogateescape"))


def printable_xml(text: str) -> str:
    """Return a document with unprintable characters, except line ends and tabs, as character references."""
    return "".join(c if c.isprintable() or c in f"\n\t{_JOINERS}" else f"&#{ord(c)};" for c in text)


def print_json(value: Any) -> None:
    """Print one JSON document; a plain list has one item per line, which is fast for thousands of functions."""
    import json  # a table needs none

    if isinstance(value, list):
        lines = ",\n".join(f"  {json.dumps(item)}" for item in value)
        streams.write(f"[\n{lines}\n]\n" if lines else "[]\n")
    else:
        streams.write(f"{json.dumps(value, indent=2)}\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object | None]]) -> None:
    """Print rows under their columns; None is a dash."""
    print_rows(columns, [["-" if cell is None else streams.printable(str(cell)) for cell in row] for row in rows])


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows without effects on a terminal; on a terminal, at most as wide as it."""
    text = shown = format_table(columns, rows)
    if sys.stdout.isatty():
        bold = os.environ.get("TERM", "dumb") not in _PLAIN_TERMINALS
        shown = format_table(columns, rows, _terminal_width(), bold=bold)
    with streams.writing(text):
        sys.stdout.write(shown)


def _terminal_width() -> int:
    """Return the width set by the user, else the terminal's, else 80."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _USUAL_WIDTH
    except OSError:
        return _USUAL_WIDTH


class Branch:
    """A line of a tree, with the lines below it."""

    def __init__(self, text: str) -> None:
        self.text = streams.printable(text)
        self.below: list[Branch] = []

    def add(self, text: str) -> Branch:
        """Add a line below this one, and return it."""
        self.below.append(Branch(text))
        return self.below[-1]

    def lines(self, width: int | None = None) -> Iterator[str]:
        """Yield the lines of the tree; a text that is wider than ``width`` continues below."""
        yield from fold(self.text, width) if width else (self.text,)
        for branch in self.below:
            first, rest = ("└── ", "    ") if branch is self.below[-1] else ("├── ", "│   ")
            for line in branch.lines(width and max(width - len(first), 1)):
                yield first + line
                first = rest


def print_tree(branch: Branch) -> None:
    """Print a tree; on a terminal, at most as wide as it."""
    text = "".join(f"{line}\n" for line in branch.lines())
    shown = text
    if sys.stdout.isatty():
        shown = "".join(f"{line}\n" for line in branch.lines(_terminal_width()))
    with streams.writing(text):
        sys.stdout.write(shown)


def hexadecimal(value: int | None, digits: int = 4) -> str | None:
    """Return 0x8086 for 0x8086, None for None."""
    return None if value is None else f"0x{value:0{digits}x}"
