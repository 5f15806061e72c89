# SPDX-License-Identifier: LGPL-2.1-or-later
"""The output of verbs: JSON for programs, a table or a tree for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO

from pyhostdev.tools import streams
from pyhostdev.tools.table import format_table
from pyhostdev.util.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.tree import Tree


# Unprintable, yet allowed in XML names and harmless on a terminal: joiners of letters
_JOINERS = "\u200c\u200d"
_PLAIN_TERMINALS = ("dumb", "unknown")
_USUAL_WIDTH = 80


def printable(text: str) -> str:
    """
    Return a text as one line that has no effect on a terminal.

    Control characters of both sets, line ends, marks that change the direction of writing, and undecodable bytes are
    escaped: drivers, processes, domains and files can have any name.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
    print_rows(columns, [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows])


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
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _USUAL_WIDTH
    except OSError:
        return _USUAL_WIDTH


class Branch:
    """A line of a tree, with the lines below it."""

    def __init__(self, text: str) -> None:
        self.text = printable(text)
        self.below: list[Branch] = []

    def add(self, text: str) -> Branch:
        """Add a line below this one, and return it."""
        self.below.append(Branch(text))
        return self.below[-1]

    def lines(self, depth: int = 0) -> Iterator[str]:
        """Yield the tree as indented text."""
        yield f"{'  ' * depth}{self.text}\n"
        for branch in self.below:
            yield from branch.lines(depth + 1)


def print_tree(branch: Branch) -> None:
    """Print a tree; as indented text if rich is not installed."""
    text = "".join(branch.lines())
    if _has_rich():
        _print_rich(_rich_tree(branch), text)
    else:
        streams.write(text)


def _rich_tree(branch: Branch) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(branch.text))
    tree.children = [_rich_tree(below) for below in branch.below]
    return tree


def _has_rich() -> bool:
    try:
        import rich.tree  # noqa: F401 - only a test here; used elsewhere
    except ImportError:
        return False
    return True


def _print_rich(thing: Any, text: str) -> None:
    """Print a rich object whose plain form is ``text``; a pipe gets plain text that is never cut to a width."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    rendered = StringIO()
    console = Console(file=rendered, force_terminal=is_terminal, highlight=False, soft_wrap=not is_terminal)
    if is_terminal:
        console.size = Console().size
    else:
        console.width = 1000
    console.print(thing)
    with streams.writing(text):  # not with rich, which ends the process if a pipe is closed
        sys.stdout.write(rendered.getvalue())


def hexadecimal(value: int | None, digits: int = 4) -> str | None:
    """Return 0x8086 for 0x8086, None for None."""
    return None if value is None else f"0x{value:0{digits}x}"
