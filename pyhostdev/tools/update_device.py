# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev update-device``: replace a device of a definition by a new version."""

from __future__ import annotations

import argparse

from pyhostdev.errors import ConfigUnsupportedError
from pyhostdev.tools import arguments, hotplug, releases, streams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("owner", metavar="OWNER", help="the domain's name")
    parser.add_argument("file", metavar="FILE", help="the new version of the device; - for standard input")
    parser.add_argument(
        "--config", metavar="DOMAIN.xml", help="the definition to change, whose name must be OWNER; required"
    )
    arguments.add_root(parser)
    releases.add_release(parser)


def run(args: argparse.Namespace) -> int:
    """Change the definition; a running guest's device cannot be updated."""
    from pyhostdev.qemu import update_device

    if args.config is None:
        raise ConfigUnsupportedError("A device of a running guest cannot be updated: name a definition with --config")
    stored = hotplug.StoredDefinition(args, arguments.host_of(args), update_device, arguments.read_file(args.file))
    stored.write(after_live=False)
    streams.write(f"{args.config}: changed\n")
    return 0
