#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Show what a change does: this tree against another commit, beside libvirt's recorded answers.

    prototype.py [--base COMMIT] [--html FILE] [--names PATTERN] [FOLDER ...]

Both trees complete, print, plan and start the domains of testdata/oracle and of each FOLDER. The exit status is 0 if
all answers are equal, 6 if some differ, 1 if they could not be compared.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from comparison import Comparison, compare
from corpus import OWN, CorpusError, Folder, read_folder
from page import page_of
from report import text_of
from servers import ask_all
from trees import TOP, Tree, TreeError, base_tree, check

EQUAL, FAILED, DIFFER = 0, 1, 6


def tell(text: str) -> None:
    """Print a line of progress, apart from the result."""
    sys.stderr.write(f"prototype: {text}\n")
    sys.stderr.flush()


def compared(top: Path, revision: str, folders: Sequence[Folder]) -> Comparison:
    """
    Return what differs between a working tree and a commit of it.

    Raises:
        TreeError, CorpusError: they cannot be asked.
    """
    with tempfile.TemporaryDirectory(prefix="prototype") as directory:
        this, base = Tree("this tree", top), base_tree(top, revision, Path(directory))
        check(this)
        before, now = ask_all([base, this], folders, tell)
    followed = {folder.path: folder for folder in folders if folder.recorded}
    judged = (
        question
        for question in now
        if question.case.folder in followed
        and followed[question.case.folder].recorded == question.release
        and followed[question.case.folder].is_judged(question.case)
    )
    return compare(base.name, before, now, judged)


def main(argv: Sequence[str] | None = None, top: Path = TOP) -> int:
    """Compare, print the result, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="main", help="a commit of this repository")
    parser.add_argument("--html", type=Path, help="write the result as one page, too")
    parser.add_argument(
        "--names", type=re.compile, default=re.compile("."), help="a regular expression: only domains whose names match"
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="more domains: NAME.xml")
    options = parser.parse_args(argv)
    try:
        folders = [read_folder(path, options.names) for path in (OWN, *options.folders)]
        found = compared(top, options.base, folders)
    except (TreeError, CorpusError, OSError, subprocess.SubprocessError) as err:
        tell(str(err))
        return FAILED
    sys.stdout.write(text_of(found))
    if options.html is not None:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(page_of(found), encoding="utf-8")
        tell(f"the page is {options.html}")
    return DIFFER if found.groups else EQUAL


if __name__ == "__main__":
    sys.exit(main())
