# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev recover``: finish or undo what a crash interrupted."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from pyhostdev.tools import arguments, output, streams
from pyhostdev.tools.contract import DONE, NOT_RESTORED
from pyhostdev.tools.main import complain

if TYPE_CHECKING:
    from pyhostdev.hypervisor.hostdev_result import RecoveryResult as Recovered
    from pyhostdev.hypervisor.virhostdev import HostdevManager


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_root(parser)
    arguments.add_changes(parser, "how long to wait for a write in flight, and the deadline of each new write,")
    arguments.add_json(parser)
    parser.add_argument("--all", action="store_true", help="also release prepared devices whose group is not held open")


def run(args: argparse.Namespace) -> int:
    """Recover and report the outcome of each record; return 4 if a device is not restored."""
    manager = arguments.manager_of(args)
    found = _finish_guests(manager, args.timeout)
    found += manager.recover(include_prepared=args.all, timeout_s=args.timeout)
    code = DONE if all(item.is_done for item in found) else NOT_RESTORED
    try:
        _print(found, as_json=args.json)
    except streams.OutputError as err:  # the recovery is done, and running it again would not show its outcome
        for line in err.text.splitlines():
            complain(line)
        err.code = code
        raise
    return code


def _finish_guests(manager: HostdevManager, timeout_s: float) -> list[Recovered]:
    """Finish pending changes of guests, before the records are recovered one by one."""
    if not os.path.isdir(os.path.join(manager.host.state_dir, "lib", "qemu")):
        return []  # the usual case, without the import of the QEMU driver
    from pyhostdev.qemu.qemu_hotplug.recovery import finish_all
    from pyhostdev.util.transaction import deferred_signals

    with deferred_signals() as check:
        return finish_all(manager, timeout_s=timeout_s, check=check)


def _print(found: list[Recovered], *, as_json: bool) -> None:
    if as_json:
        output.print_json({"version": 1, "records": [item._asdict() for item in found]})
    else:
        rows = [(item.what, item.owner, item.outcome, item.message) for item in found]
        output.print_table(("DEVICE", "OWNER", "OUTCOME", "WHY"), rows)
