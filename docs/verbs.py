# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Write the page that describes every verb, from the parsers that the command line itself uses.
"""

from __future__ import annotations

import argparse

from pyhostdev.tools.contract import VERBS
from pyhostdev.tools.parsers import verb_parser


def page() -> str:
    """Return the page as MyST Markdown."""
    return "# Verbs\n\n" + "\n".join(section(verb) for verb in VERBS)


def section(verb: str) -> str:
    """Return one verb's usage and a definition per option."""
    parser = verb_parser(verb)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    options = "".join(entry(action) for action in parser._actions if action.help != argparse.SUPPRESS)
    return f"## {verb}\n\n{VERBS[verb][:1].upper()}{VERBS[verb][1:]}.\n\n```text\n{usage}\n```\n\n{options}"


def entry(action: argparse.Action) -> str:
    """Return one option or argument as a list item."""
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    value = f" `{action.metavar or '|'.join(map(str, action.choices or ()))}`" if takes_value(action) else ""
    return f"- {names}{value}: {(action.help or '').replace('%%', '%')}\n"


def takes_value(action: argparse.Action) -> bool:
    """Tell whether an option is followed by a value."""
    return bool(action.option_strings) and action.nargs != 0
