# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Tables as text: one pass measures the columns, a second pass writes them.

The formatting is done here, because a table library costs more than the rest of a verb.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

GAP = "  "
NARROWEST = 4  # letters of a column whose words are broken

Row = Sequence[str]


def format_table(columns: Row, rows: Sequence[Row], width: int | None = None, *, bold: bool = False) -> str:
    """
    Return rows under their columns, each as wide as its widest cell.

    Args:
        rows: texts without line ends.
        width: the terminal's width; cells of a wider table continue below, if possible broken between words. A word
            with a colon, such as an address, is never broken. None for no limit.
        bold: print the header in bold.
    """
    lines = [columns, *rows]
    is_ascii = "".join(map("".join, lines)).isascii()
    measure = len if is_ascii else display_width
    widths = [max(map(measure, column)) for column in zip(*lines, strict=True)]
    room = sum(widths) if width is None else width - len(GAP) * (len(widths) - 1)
    if is_ascii and sum(widths) <= room:
        written = _aligned(lines, widths)
    else:
        widths = _narrowed(lines, widths, room)
        written = [_folded(line, widths) for line in lines]
    if bold:
        written[0] = f"\x1b[1m{written[0]}\x1b[0m"
    return "\n".join([*written, ""])


def _aligned(lines: Sequence[Row], widths: Sequence[int]) -> list[str]:
    """Return rows of ASCII, whose columns are as wide as they need."""
    template = GAP.join([*(f"%-{width}s" for width in widths[:-1]), "%s"])
    return [(template % tuple(line)).rstrip() for line in lines]


def display_width(text: str) -> int:
    """Return the number of terminal columns of a text: two for a wide letter, none for a combining accent."""
    return len(text) if text.isascii() else sum(map(_letter_width, text))


def _letter_width(letter: str) -> int:
    import unicodedata

    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _narrowed(lines: Sequence[Row], widths: list[int], room: int) -> list[int]:
    """Return widths that fit into the room as far as possible; words are broken only as a last resort."""
    columns = list(zip(*lines, strict=True))
    for least in (_longest_word, _longest_unbroken):
        widths = _shrunk(widths, [least(column) for column in columns], room)
    return widths


def _shrunk(widths: list[int], floors: list[int], room: int) -> list[int]:
    """Shrink the widest column that can shrink, until all fit or none can."""
    widths = list(widths)
    while sum(widths) > room:
        shrinkable = [n for n, (width, floor) in enumerate(zip(widths, floors, strict=True)) if width > floor]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda n: widths[n])] -= 1
    return widths


def _longest_word(column: Row) -> int:
    return max((display_width(word) for cell in column for word in cell.split()), default=0)


def _longest_unbroken(column: Row) -> int:
    return max([NARROWEST, *(display_width(word) for cell in column for word in cell.split() if ":" in word)])


def _folded(line: Row, widths: list[int]) -> str:
    """Return one row as several lines, where its cells are wider than their columns."""
    cells = [list(fold(cell, width)) for cell, width in zip(line, widths, strict=True)]
    height = max(map(len, cells))
    parts = ([cell[n] if n < len(cell) else "" for cell in cells] for n in range(height))
    return "\n".join(GAP.join(map(_padded, part, widths)).rstrip() for part in parts)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def fold(cell: str, width: int) -> Iterator[str]:
    """Yield a text in parts of this width, if possible broken between words; a text that fits keeps all its blanks."""
    if display_width(cell) <= width:
        yield cell
        return
    line = ""
    for word in [part for whole in cell.split(" ") for part in _broken(whole, width)]:
        if line and display_width(line) + 1 + display_width(word) > width:
            yield line.rstrip()
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line.rstrip()


def _broken(word: str, width: int) -> Iterator[str]:
    """Yield a word in parts that fit, at least one letter each; a word with a colon is one part."""
    if ":" in word:
        yield word
        return
    part = ""
    for letter in word:
        if part and display_width(part + letter) > width:
            yield part
            part = ""
        part += letter
    yield part
