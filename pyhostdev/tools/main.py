# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The command line: finds the verb, runs it, and turns its errors into one sentence and an exit code.

A module that only some calls need is imported by those calls: the argument parser costs more than the version.
"""

from __future__ import annotations

import gc
import io
import os
import sys

from pyhostdev import __version__
from pyhostdev.errors import HostdevError, PendingError, RefusedError
from pyhostdev.tools import streams
from pyhostdev.tools.contract import DONE, NOT_RESTORED, PENDING, REFUSED, ROLLED_BACK, USAGE, VERBS

TYPE_CHECKING = False  # typing costs a third of the start
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import NoReturn

    from pyhostdev.util.finding import Finding

COLLECT_AFTER = 50_000  # objects; modules and classes are most of what a verb makes, and they stay
EXTRAS = {"qemu": "start"}  # library to the extra that installs it


def main(argv: list[str] | None = None) -> int:
    """
    Run one verb and return the exit code.

    Args:
        argv: the verb and its arguments. None: those of this process, which ends after the verb: garbage is collected
            rarely, and the kernel frees the rest at the end.

    Raises:
        SystemExit: the arguments are invalid, or help was requested and printed.
    """
    streams.open_closed()
    if argv is not None:
        return _run(argv)
    gc.set_threshold(COLLECT_AFTER)
    try:
        return _run(sys.argv[1:])
    finally:
        gc.freeze()  # or Python searches all modules and classes for garbage before it ends


def _dispatch(words: list[str]) -> int:
    if words == ["--version"]:
        return _print_version()
    from pyhostdev.tools import parsers

    if not words or words[0] not in VERBS:
        return _without_verb(parsers.top_parser(), words)
    parser = parsers.verb_parser(words[0])
    import argparse

    args = parser.parse_args(words[1:])
    if getattr(args, "changes_host", False) and args.root != "/" and not args.simulate:
        parser.error("a changing verb under --root needs --simulate")
    try:
        return int(parsers.module_of(words[0]).run(args))
    except argparse.ArgumentTypeError as err:  # options that do not go together
        parser.error(str(err))
    finally:
        _clean_up()


def _clean_up() -> None:
    """Remove what a verb has unpacked."""
    arguments = sys.modules.get("pyhostdev.tools.arguments")
    if arguments is not None:
        arguments.forget_snapshots()


def _print_version() -> int:
    streams.write(f"pyhostdev {__version__}\n")
    return DONE


def _without_verb(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Print the version or the usage; an unknown verb ends the program."""
    if parser.parse_args(words).version:
        return _print_version()
    streams.print_error(parser.format_help().rstrip())
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
    import signal

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
    errors = [(getattr(part, "line", None) or 0, part) for part in (err, *getattr(err, "others", ()))]
    for line, part in sorted(errors, key=lambda error: error[0]):
        where = f"line {line}: " if line else ""
        complain(f"{where}{part.with_reason}")
    if isinstance(err, PendingError):
        return PENDING
    return {None: REFUSED, True: ROLLED_BACK, False: NOT_RESTORED}[err.rolled_back]


def tell_notes(findings: Iterable[Finding]) -> None:
    """Print findings of severity note on stderr, each with its line and its reason."""
    for finding in dict.fromkeys(findings):
        complain(f"note: {finding.sentence}")


def complain(sentence: str) -> None:
    """Print one sentence on stderr, with unprintable characters escaped."""
    streams.print_error(f"pyhostdev: {streams.printable(sentence)}")
