# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parsers of the command line and of each verb."""

from __future__ import annotations

import argparse
from importlib import import_module

from pyhostdev.tools import streams
from pyhostdev.tools.contract import USAGE, VERBS
from pyhostdev.util.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NoReturn

HELP_WIDTH = 100


class _Formatter(argparse.HelpFormatter):
    """Help of a fixed width: asking the terminal for its width, per argument, loads compression libraries first."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=HELP_WIDTH)


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error if its help cannot be printed, and whose messages cannot control a terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(streams.printable(message))

    def print_help(self, file: Any = None) -> None:
        if file is None:
            streams.write(self.format_help())
        else:
            super().print_help(file)


class _TopParser(_Parser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"pyhostdev: {streams.printable(message)}\n")


def top_parser() -> argparse.ArgumentParser:
    """Return the parser of the words before a verb."""
    lines = "\n".join(f"  {verb:18}{summary}" for verb, summary in VERBS.items())
    parser = _TopParser(
        prog="pyhostdev",
        description="Give PCI host devices to virtual machines.",
        epilog=f"verbs:\n{lines}\n\nRun pyhostdev VERB --help for more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="pyhostdev [--version] VERB ...",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("verb", nargs="?", choices=VERBS, metavar="VERB", help=argparse.SUPPRESS)
    return parser


def module_of(verb: str) -> Any:
    """Return the module that runs a verb."""
    return import_module(f"pyhostdev.tools.{verb.replace('-', '_')}")


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Return the parser of one verb's arguments."""
    parser = _Parser(prog=f"pyhostdev {verb}", description=VERBS[verb], formatter_class=_Formatter)
    module_of(verb).add_arguments(parser)
    return parser
