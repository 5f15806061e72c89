# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev fakehost``: build a host in a directory, for --root and --simulate."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError, SysfsError
from pyhostdev.tools import streams
from pyhostdev.tools.arguments import checked
from pyhostdev.tools.contract import DONE

if TYPE_CHECKING:
    from pyhostdev.testing.hostspec import HostSpec

GENERATED = re.compile(r"generate:([0-9]{1,5})", re.ASCII)
FUNCTIONS_MAX = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    from pyhostdev.testing.fakehost import named_hosts

    parser.add_argument(
        "host",
        type=checked(_name),
        metavar="NAME|FILE.tree|generate:N",
        help=f"a description, a synthetic host of N functions, or one of {', '.join(named_hosts())}",
    )
    parser.add_argument("directory", metavar="DIR", help="a directory that does not exist or is empty")


def _name(text: str) -> str:
    """
    Return the name of a host or of a file.

    Raises:
        ConfigError: it is neither, or a synthetic host has too many functions.
    """
    from pyhostdev.testing.fakehost import named_hosts

    generated = GENERATED.fullmatch(text)
    if generated is not None and not 1 <= int(generated[1]) <= FUNCTIONS_MAX:
        raise ConfigError(f"A synthetic host must have 1 to {FUNCTIONS_MAX} functions")
    if generated is None and text not in named_hosts() and not text.endswith(".tree"):
        names = ", ".join(named_hosts())
        raise ConfigError(f"Unknown host '{text}': expected a .tree file, generate:N or one of {names}")
    return text


def run(args: argparse.Namespace) -> int:
    """Build the host and print how to use it."""
    from pyhostdev.testing.fakehost import FakeHost

    spec = _spec_of(args.host)
    try:
        os.makedirs(args.directory, exist_ok=True)
        if os.listdir(args.directory):
            raise ConfigError(f"Directory '{args.directory}' is not empty")
        FakeHost(spec, args.directory)
    except OSError as err:
        raise SysfsError(err.errno or 0, args.directory, "build a host") from err
    streams.write(f"{len(spec.functions)} functions; pyhostdev list --root {args.directory}\n")
    return DONE


def _spec_of(text: str) -> HostSpec:
    """
    Return the description that a person names.

    Raises:
        ConfigError: the file cannot be read, or is not valid.
    """
    from pyhostdev.testing.fakehost import HOSTS, named_hosts
    from pyhostdev.testing.treefile import read_host

    generated = GENERATED.fullmatch(text)
    if generated is not None:
        from pyhostdev.testing.generator import synthetic_host

        return synthetic_host(int(generated[1]))
    if text in named_hosts():
        return read_host(os.path.join(HOSTS, f"{text}.tree"))
    return _read(text)


def _read(path: str) -> HostSpec:
    from pyhostdev.testing.treefile import read_host

    try:
        return read_host(path)
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not UTF-8"
        raise ConfigError(f"Cannot read '{path}': {why}") from err
