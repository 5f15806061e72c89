# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev status``: which devices are in use, and which are detached without an owner."""

from __future__ import annotations

import argparse
from typing import Any

from pyhostdev.hypervisor.hostdev_status import Status, read_status
from pyhostdev.tools import arguments, output
from pyhostdev.tools.main import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_root(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read the lists and print them."""
    status = read_status(arguments.host_of(args))
    for bad in status.problems:
        complain(f"record '{bad.name}' cannot be used: {bad.why}")
    if args.json:
        output.print_json(describe(status))
    else:
        print_status(status)
    return 0


def describe(status: Status) -> dict[str, Any]:
    """Return the JSON object."""
    return {
        "version": 1,
        "active": [{"address": str(dev.address), "owner": dev.owner} for dev in status.active],
        "inactive": [{"address": str(address)} for address in status.inactive],
    }


def print_status(status: Status) -> None:
    """Print both lists as one table."""
    rows: list[tuple[object | None, ...]] = [(dev.address, "active", dev.owner) for dev in status.active]
    rows += [(address, "inactive", None) for address in status.inactive]
    output.print_table(("DEVICE", "LIST", "OWNER"), rows)
