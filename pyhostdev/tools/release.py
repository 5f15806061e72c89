# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev release``: give a domain's host devices back, without QEMU."""

from __future__ import annotations

import argparse

from pyhostdev.tools import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_changes(parser)


def run(args: argparse.Namespace) -> int:
    """Give back what the domain of this name has; the rest of FILE may have changed since, and is not asked."""
    arguments.manager_of(args).release(arguments.domain_name_of(args))
    return 0
