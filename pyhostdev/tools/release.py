# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev release``: give a domain's host devices back, without QEMU."""

from __future__ import annotations

import argparse

from pyhostdev.tools import arguments
from pyhostdev.tools.main import DONE, REFUSED, complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("file", nargs="?", metavar="FILE", help="the domain's XML; - for standard input")
    whose.add_argument("--owner", metavar="NAME", help="the domain's name, where its XML is not at hand")
    arguments.add_root(parser)
    arguments.add_changes(parser)


def run(args: argparse.Namespace) -> int:
    """
    Give back what the domain of this name has; the rest of FILE may have changed since, and is not asked.

    A domain without devices is well released, by a hook say; a name that was typed and has none is a mistake.
    """
    owner = arguments.domain_name_of(args) if args.owner is None else args.owner
    if not arguments.manager_of(args).release(owner):
        complain(f"Domain '{owner}' has no devices on this host")
        return DONE if args.owner is None else REFUSED
    return DONE
