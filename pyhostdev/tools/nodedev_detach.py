# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev nodedev-detach``: detach one device without assigning it to a guest."""

from __future__ import annotations

import argparse

from pyhostdev.tools import arguments, releases
from pyhostdev.util.hostroot import check_driver_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_address(parser)
    parser.add_argument(
        "--driver",
        type=arguments.checked(check_driver_name),
        help="the driver to bind it to, or its module (default: the best match of the host's VFIO drivers)",
    )
    arguments.add_accept(parser)
    arguments.add_root(parser)
    arguments.add_changes(parser)
    releases.add_libvirt(parser)


def run(args: argparse.Namespace) -> int:
    """Detach the device."""
    manager = arguments.manager_of(args)
    release = releases.release_of(args, manager.host) if args.driver else releases.report_release(args, manager.host)
    address = arguments.address_of(args, manager.host)
    manager.nodedev_detach(address, args.driver, accept=args.accept, release=release)
    return 0
