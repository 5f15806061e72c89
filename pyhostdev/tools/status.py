# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev status``: which devices are in use, and which are detached without an owner."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from pyhostdev.hypervisor.guest_facts import unknown_guest_text, unreadable_guests
from pyhostdev.hypervisor.hostdev_status import RecordedDevice, read_recorded_devices
from pyhostdev.tools import arguments, output
from pyhostdev.tools.main import complain
from pyhostdev.util.typed import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_root(parser)
    arguments.add_json(parser)
    parser.add_argument("--owner", metavar="NAME", help="only devices in use by this domain")


def run(args: argparse.Namespace) -> int:
    """Read the lists and print them."""
    host = arguments.host_of(args)
    devices, problems = read_recorded_devices(host.root, host.state())
    for bad in problems:
        complain(f"record '{bad.name}' cannot be used: {bad.why}")
    for bad in unreadable_guests(host.state()):
        complain(unknown_guest_text(bad))
    if args.owner is not None:
        devices = [dev for dev in devices if dev.owner == args.owner]
    if args.json:
        output.print_json(describe(devices))
    else:
        print_status(devices)
    return 0


def describe(devices: Sequence[RecordedDevice]) -> dict[str, Any]:
    """Return the JSON object."""
    return {
        "version": 1,
        "active": [{**_facts(dev), "owner": dev.owner} for dev in devices if dev.is_active],
        "inactive": [_facts(dev) for dev in devices if not dev.is_active],
    }


def _facts(dev: RecordedDevice) -> dict[str, str | None]:
    """Return the JSON object of a device on either list."""
    return {
        "address": str(dev.address),
        "role": dev.role,
        "driver": dev.driver,
        "original_driver": dev.original_driver,
        "since": _moment(dev.since),
        "unit": dev.unit,
        "phase": dev.phase,
    }


def _moment(since: int | None) -> str | None:
    """Return a time in the form of RFC 3339, in UTC."""
    return None if since is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))


def print_status(devices: Sequence[RecordedDevice]) -> None:
    """Print the lists as one table: the devices in use, then those detached without an owner."""
    rows = [
        (
            dev.address,
            "active" if dev.is_active else "inactive",
            dev.owner,
            dev.role,
            dev.driver,
            dev.original_driver,
            dev.phase,
            _moment(dev.since),
        )
        for dev in sorted(devices, key=lambda dev: not dev.is_active)
    ]
    output.print_table(("DEVICE", "LIST", "OWNER", "ROLE", "DRIVER", "ORIGINAL", "PHASE", "SINCE"), rows)
