# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Write what shells need to complete the words of a command line, from the parsers that the command line itself uses.

shtab knows verbs, options and their choices. What it cannot know is in ``completion/``: functions of each shell that
list addresses, consents, drivers and users.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import shtab

from pyhostdev.hypervisor.hostdev_checks import CONSENT_REASONS
from pyhostdev.tools.contract import VERBS
from pyhostdev.tools.parsers import verb_parser

HERE = Path(__file__).parent
PLACES = {
    "bash": "bash-completion/completions/pyhostdev",
    "zsh": "zsh/site-functions/_pyhostdev",
    "fish": "fish/vendor_completions.d/pyhostdev.fish",
}
LISTS = {
    "accept": "consents",
    "address": "addresses",
    "devices": "addresses",
    "keep": "addresses",
    "capabilities": "capabilities",
    "driver": "bound_by",
    "user": "users",
}
FILES = {
    "domain": shtab.FILE,
    "directory": shtab.DIRECTORY,
    "host": shtab.FILE,
    "after": shtab.FILE,
    "before": shtab.FILE,
    "diff": shtab.FILE,
    "domains": shtab.FILE,
    "file": shtab.FILE,
    "log": shtab.FILE,
    "output": shtab.FILE,
    "root": shtab.FILE,
    "roots": shtab.FILE,
    "state_dir": shtab.DIRECTORY,
}


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser of all verbs, whose arguments say how they are completed."""
    parser = argparse.ArgumentParser(prog="pyhostdev")
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers()
    for verb, summary in VERBS.items():
        one = verb_parser(verb)
        for action in one._actions:
            _say_how(action)
        verbs.add_parser(verb, parents=[one], add_help=False, help=summary)
    return parser


def _say_how(action: argparse.Action) -> None:
    """Tell shtab how to complete a value: the words of a list, or files."""
    if action.dest in LISTS:
        name = f"_pyhostdev_{LISTS[action.dest]}"
        action.complete = {"bash": name, "zsh": name, "fish": f"({name})"}  # type: ignore[attr-defined]
    elif action.dest in FILES:
        action.complete = FILES[action.dest]  # type: ignore[attr-defined]


def script(shell: str) -> str:
    """Return the script of one shell."""
    stored = HERE.parent / "pyhostdev/qemu/qemu_capabilities/stored"
    words = ["probe", *sorted(path.name for path in stored.iterdir())]
    functions = (HERE / f"completion/pyhostdev.{shell}").read_text()
    functions = functions.replace("@REASONS@", " ".join(CONSENT_REASONS)).replace("@CAPABILITIES@", " ".join(words))
    text = shtab.complete(whole_parser(), shell, root_prefix="pyhostdev", preamble=functions)
    if shell == "bash":
        text = text.replace("-F _shtab_pyhostdev pyhostdev", "-F _pyhostdev pyhostdev")
    return text.rstrip("\n") + "\n"


def write(share: Path) -> None:
    """Write the scripts of all shells where the shells look for them below a directory ``share``."""
    for shell, place in PLACES.items():
        target = share / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(script(shell))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
