# SPDX-License-Identifier: LGPL-2.1-or-later
"""How verbs print: JSON for programs, a table or a tree for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.tree import Tree


def print_json(value: Any) -> None:
    """Print one JSON document; a plain list has one item a line, which thousands of functions need to be quick."""
    if isinstance(value, list):
        lines = ",\n".join(f"  {json.dumps(item)}" for item in value)
        print(f"[\n{lines}\n]" if lines else "[]")
    else:
        print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object | None]]) -> None:
    """Print rows under their columns; None is a dash."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    print_rich(table)


def print_rich(thing: Any) -> None:
    """Print something of rich; a pipe gets plain text that is never cut to a width."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not sys.stdout.isatty():
        console.width = 1000
    console.print(thing)


def tree(title: str) -> Tree:
    """Return the root of a tree to hang text on."""
    from rich.text import Text
    from rich.tree import Tree

    return Tree(Text(title))


def hexadecimal(value: int | None, digits: int = 4) -> str | None:
    """Return 0x8086 for 0x8086, None for None."""
    return None if value is None else f"0x{value:0{digits}x}"
