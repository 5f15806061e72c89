# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The command line: finds the verb, runs it, and turns its errors into one sentence and an exit code.

Exit codes: 0 done; 1 refused, the host is unchanged; 2 usage; 3 failed and completely rolled back, or done but the
result could not be printed; 4 not restored.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from pyhostdev.errors import HostdevError, RefusedError
from pyhostdev.tools import streams
from pyhostdev.tools.output import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyhostdev.util.finding import Finding

HELP_WIDTH = 100
EXTRAS = {"qemu": "start", "rich": "tools"}  # library to the extra that installs it
DONE, REFUSED, USAGE, ROLLED_BACK, NOT_RESTORED = 0, 1, 2, 3, 4

VERBS = {
    "list": "list the PCI functions of a host",
    "show": "show all known facts about one function",
    "plan": "show what happens to each function of each touched group, and why",
    "validate": "check a domain's XML against the schema and the rules, with line numbers",
    "argv": "print the QEMU command line of a domain",
    "xml": "print a domain with its defaults and guest addresses",
    "prepare": "detach a domain's host devices",
    "release": "release a domain's host devices, and reattach the managed ones",
    "start": "run a domain in the foreground; prepare its host devices, and release them at the end",
    "status": "show which devices are in use, and which are detached without an owner",
    "recover": "finish or undo what a crash interrupted",
    "nodedev-detach": "detach one device without assigning it to a guest",
    "nodedev-reattach": "bind one detached device back to its driver",
    "nodedev-reset": "reset one device that no domain uses, without resetting any other device",
    "demo": "run the whole scenario on a simulated host",
}


class _Formatter(argparse.HelpFormatter):
    """Help of a fixed width: asking the terminal for its width, per argument, loads compression libraries first."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=HELP_WIDTH)


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error if its help cannot be printed."""

    def print_help(self, file: Any = None) -> None:
        if file is None:
            streams.write(self.format_help())
        else:
            super().print_help(file)


class _TopParser(_Parser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"pyhostdev: {message}\n")


def _top_parser() -> argparse.ArgumentParser:
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


def _module(verb: str) -> Any:
    return import_module(f"pyhostdev.tools.{verb.replace('-', '_')}")


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Return the parser of one verb's arguments."""
    parser = _Parser(prog=f"pyhostdev {verb}", description=VERBS[verb], formatter_class=_Formatter)
    _module(verb).add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Run one verb and return the exit code.

    Raises:
        SystemExit: the arguments are invalid, or help was requested and printed.
    """
    streams.open_closed()
    return _run(sys.argv[1:] if argv is None else argv)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] not in VERBS:
        return _without_verb(words)
    parser = verb_parser(words[0])
    args = parser.parse_args(words[1:])
    if getattr(args, "changes_host", False) and args.root != "/" and not args.simulate:
        parser.error("a changing verb under --root needs --simulate")
    return int(_module(words[0]).run(args))


def _without_verb(words: list[str]) -> int:
    parser = _top_parser()
    args = parser.parse_args(words)
    if args.version:
        from importlib.metadata import version

        streams.write(f"pyhostdev {version('pyhostdev')}\n")
        return DONE
    streams.tell(parser.format_help().rstrip())
    return USAGE


def _run(words: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding may be limited
    try:
        with streams.writing():
            return _dispatch(words)
    except RefusedError as err:
        for finding in err.findings:
            complain(finding.sentence)
        return REFUSED
    except HostdevError as err:
        return _failed(err)
    except KeyboardInterrupt as err:
        return _interrupted(err)
    except ModuleNotFoundError as err:
        return _lacking(err)
    except streams.OutputError as err:
        complain(str(err))
        return err.code or ROLLED_BACK
    except BrokenPipeError:
        return DONE


def _interrupted(err: KeyboardInterrupt) -> NoReturn:
    """Report how a change interrupted by SIGINT ended, then die by that signal as callers expect."""
    if isinstance(err.__context__, HostdevError):
        complain(err.__context__.with_reason)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    raise err


def _lacking(err: ModuleNotFoundError) -> int:
    """Report the extra that provides a missing library; any other missing library is a bug and is raised."""
    extra = EXTRAS.get((err.name or "").partition(".")[0])
    if extra is None:
        raise err
    complain(f"This needs the extra '{extra}', which is not installed: pip install 'pyhostdev[{extra}]'")
    return REFUSED


def _failed(err: HostdevError) -> int:
    for part in (err, *getattr(err, "others", ())):
        line = getattr(part, "line", None)
        where = f"line {line}: " if line else ""
        complain(f"{where}{part.with_reason}")
    return {None: REFUSED, True: ROLLED_BACK, False: NOT_RESTORED}[err.rolled_back]


def tell_notes(findings: Iterable[Finding]) -> None:
    """Print findings of severity note on stderr, each with its line and its reason."""
    for finding in dict.fromkeys(findings):
        complain(f"note: {finding.sentence}")


def complain(sentence: str) -> None:
    """Print one sentence on stderr, with unprintable characters escaped."""
    streams.tell(f"pyhostdev: {printable(sentence)}")
