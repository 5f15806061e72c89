# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev nodedev-reattach``: bind one detached device back to its driver."""

from __future__ import annotations

import argparse

from pyhostdev.tools import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_address(parser)
    arguments.add_root(parser)
    arguments.add_changes(parser)


def run(args: argparse.Namespace) -> int:
    """Reattach the device."""
    manager = arguments.manager_of(args)
    manager.nodedev_reattach(arguments.address_of(args, manager.host))
    return 0
