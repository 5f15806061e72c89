# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev nodedev-reset``: reset one device that no domain uses, without resetting any other device."""

from __future__ import annotations

import argparse

from pyhostdev.tools import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_address(parser)
    arguments.add_accept(parser)
    arguments.add_root(parser)
    arguments.add_changes(parser)


def run(args: argparse.Namespace) -> int:
    """Reset the device."""
    manager = arguments.manager_of(args)
    manager.nodedev_reset(arguments.address_of(args, manager.host), accept=args.accept)
    return 0
