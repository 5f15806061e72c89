# SPDX-License-Identifier: LGPL-2.1-or-later
"""The English of the project: phrases that a reader has to decode are rejected in all texts of the clean folders."""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
CLEAN = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "csrc",
    "docs",
    "examples",
    "pyhostdev",
    "tests",
)
SKIPPED = ("verbs.md", "test_style.py")  # generated; quotes the phrases
BANNED = re.compile(
    r"(?<!there )\b(?:is|are|was|were|be) (?:no(?! longer| more| less)|(?-i:none))\b"  # write "X is not a Y"
    r"|\bwho (?:has|have|had|wants?|is|are|holds?|asks?|takes?|took|gives?|gets?|may)\b"  # name the actor
    r"|\b(?:some|no|any|every)body\b|\bwho(?:m|ever)\b|\bof ours\b|\b(?:theirs|aloud)\b"
    r"|\b(?:is|are|was|were|be) told\b"  # write "is reported", "gets", or "are distinguished" for told apart
    r"|\bin the way\b"  # name the obstacle
    r"|\btaken for\b"  # write "counts as" or "is mistaken for"
    r"|\bsingly\b"  # write "one by one"
    r"|\b(?:says|knows?) nothing\b"  # write what is missing: "without a message", "does not know X"
    r"|\ball the same\b|\bwhatever comes\b|\bto no end\b",  # write "still", "for any result", "without effect"
    re.IGNORECASE,
)
CODE = re.compile(r"`[^`]*`")  # names, such as the user `nobody`
C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def python_texts(source: str) -> Iterator[str]:
    """Yield the docstrings, comments and messages of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file that a person reads."""
    source = path.read_text(encoding="utf-8")
    if BANNED.search(_joined(source)) is None:  # most files need no parser
        return
    if path.suffix == ".py":
        yield from python_texts(source)
    elif path.suffix in (".c", ".h"):
        yield from C_COMMENT.findall(source)
    else:
        yield FENCE.sub("", source)


def _joined(text: str) -> str:
    """Return a text as one line, without the marks of comments."""
    return re.sub(r"[\s*#]+", " ", text)


def banned_phrases(text: str) -> list[str]:
    """Return the rejected phrases of a text, in order."""
    return [match[0] for match in BANNED.finditer(_joined(CODE.sub("", text)))]


def files(name: str) -> list[Path]:
    """Return the files of a clean folder that hold texts."""
    top = TOP / name
    found = sorted(top.rglob("*")) if top.is_dir() else [top]
    kept = [path for path in found if path.name not in SKIPPED and "_build" not in path.parts]
    return [path for path in kept if path.suffix in (".py", ".c", ".h", ".md")]


@pytest.mark.parametrize("name", CLEAN)
def test_clean_folders_stay_clean(name: str) -> None:
    """A folder that was once rewritten keeps none of the rejected phrases."""
    found = {path: [phrase for text in texts(path) for phrase in banned_phrases(text)] for path in files(name)}
    assert {} == {str(path.relative_to(TOP)): phrases for path, phrases in found.items() if phrases}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'x' is no policy", ["is no"]),
        ("What has none\n    is none of these", ["is none"]),
        ("Somebody who has it open", ["Somebody", "who has"]),
        ("whoever it is, and theirs", ["whoever", "theirs"]),
        ("The user is told what is in the way", ["is told", "in the way"]),
        ("read singly, it says nothing all the same", ["singly", "says nothing", "all the same"]),
        ("whatever comes is taken for an answer, to no end", ["whatever comes", "taken for", "to no end"]),
        ("there is no driver, and it is no longer bound", []),
        ("run as the user `nobody`, whose group is None", []),
    ],
)
def test_phrases(text: str, expected: list[str]) -> None:
    """Idioms are found across line ends; the plain forms that resemble them are not."""
    assert expected == banned_phrases(text)


SECTION = re.compile(r" *(?:(?:Args|Returns|Yields|Raises|Units|Host):|(?:Mirrors|Source): .*)")


def joined_sections(source: str) -> list[str]:
    """Return the headings of docstring sections that no empty line precedes."""
    lines = source.split("\n")
    pairs = itertools.pairwise(lines)
    return [line for above, line in pairs if SECTION.fullmatch(line) and above.strip() not in ("", '"""')]


def test_sections_of_docstrings() -> None:
    """A section such as Raises is a paragraph of its own; otherwise it is a part of the one above."""
    found = {path.name: joined_sections(path.read_text()) for path in sorted((TOP / "pyhostdev").rglob("*.py"))}
    assert {} == {name: lines for name, lines in found.items() if lines}


def test_joined_sections() -> None:
    """A heading below a text is found, indented or not; the first line and a paragraph are not."""
    source = '"""\nSource: x\n\nArgs:\n    a: b\n    Raises:\nMirrors: y\n"""'
    assert ["    Raises:", "Mirrors: y"] == joined_sections(source)
