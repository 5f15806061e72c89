#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Check that every relative link of the Markdown files leads to a file, and every anchor to a heading.

Ends with 1 and one line per broken link. Links to the web are not followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SKIPPED = {".git", ".lab", ".venv", "_build", ".nox", "node_modules", "dist", "build"}
GENERATED = {"verbs.md"}  # written by docs/conf.py


def pages() -> Iterator[Path]:
    """Yield the Markdown files of the tree."""
    for path in sorted(TOP.rglob("*.md")):
        parts = path.relative_to(TOP).parts
        if not SKIPPED & set(parts) and not parts[0].startswith(".venv-"):
            yield path


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are written in links."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path) -> Iterator[str]:
    """Yield the targets of one page that lead nowhere."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        missing = not path.exists() and path.name not in GENERATED
        if missing or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            yield target


def main() -> int:
    """Print every broken link and return the exit code."""
    found = [f"{page.relative_to(TOP)}: {target}" for page in pages() for target in broken(page)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
