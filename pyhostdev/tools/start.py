# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev start``: run a domain in the foreground; prepare its host devices, and release them at the end."""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING

from pyhostdev.errors import (
    ConfigError,
    ConfigUnsupportedError,
    DeviceInUseError,
    HostdevError,
    OperationError,
    RefusedError,
)
from pyhostdev.tools import arguments, releases
from pyhostdev.tools.contract import REFUSED
from pyhostdev.tools.main import complain, tell_notes
from pyhostdev.util.ownership import DEFAULT_USERS, chosen_ownership

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
    from pyhostdev.qemu.qemu_process.process import GuestOutcome
    from pyhostdev.util.ownership import Ownership


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_policy(parser)
    arguments.add_keep_together(parser)
    releases.add_release(parser)
    arguments.add_changes(parser)
    arguments.add_qemu_user(parser)
    _add_fd_group(parser)
    parser.add_argument("--log", metavar="FILE", help="append QEMU's output to this file; it rolls over at 2 MiB")


def _add_fd_group(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fd-group",
        action="append",
        default=[],
        type=arguments.checked(_fd_group),
        metavar="NAME=FD",
        help="an open /dev/iommu that pyhostdev inherits, for <iommufd fdgroup='NAME'>; can be repeated",
    )


def _fd_group(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not number.isdecimal():
        raise ConfigError(f"{text!a} is not NAME=FD")
    try:
        os.fstat(int(number))
    except (OSError, OverflowError):
        raise ConfigError(f"Descriptor {number} of {text!a} is not open") from None
    return name, int(number)


def _fd_groups(args: argparse.Namespace) -> dict[str, list[int]]:
    """Return the descriptors of each group, in the order of the options."""
    groups: dict[str, list[int]] = {}
    for name, number in args.fd_group:
        groups.setdefault(name, []).append(number)
    return groups


def run(args: argparse.Namespace) -> int:
    """Plan, prepare, run QEMU to its end, release."""
    import qemu.qmp  # noqa: F401 - if it is missing, report that before anything else

    definition = arguments.definition_of(args)
    manager = arguments.manager_of(args)
    ownership = chosen_ownership(args.user)
    try:
        capabilities = releases.capabilities_of(args, definition, manager.host)
    except (ConfigUnsupportedError, OperationError) as err:
        raise _refusal_without_emulator(args, definition, manager.host, err) from err
    _refuse(args, definition, manager.host, capabilities, ownership)
    if args.simulate:
        raise ConfigUnsupportedError("A guest cannot run on a simulated host: QEMU would access the real one")

    outcome = _run_guest(args, definition, manager, capabilities, ownership)
    if outcome.failed:
        complain(str(outcome))
        return REFUSED
    return 0


def _refusal_without_emulator(
    args: argparse.Namespace, definition: DomainDef, host: Host, err: HostdevError
) -> HostdevError:
    """Return the refusal of a domain whose emulator cannot be asked, with all other obstacles of the domain."""
    from pyhostdev.tools.planning import planned

    def fail() -> QEMUCapabilities:
        raise err

    plan, _ = planned(argparse.Namespace(**vars(args), for_start=True), definition, host, fail)
    return RefusedError((*plan.obstacles, *plan.start_obstacles), plan)


def _run_guest(
    args: argparse.Namespace,
    definition: DomainDef,
    manager: HostdevManager,
    capabilities: QEMUCapabilities,
    ownership: Ownership | None,
) -> GuestOutcome:
    """
    Run the guest to its end; choose again if another guest takes a function of a network's pool first.

    Raises:
        HostdevError: see ``qemu_driver.Guest``.
    """
    from pyhostdev.hypervisor.network_pool import has_lost_functions
    from pyhostdev.hypervisor.vf_network import vf_consents
    from pyhostdev.qemu import qemu_driver

    release = releases.release_of(args, manager.host)
    guest_of = partial(
        qemu_driver.Guest,
        keep_together=args.keep_together,
        capabilities=capabilities,
        release=release,
        ownership=ownership,
        fd_groups=_fd_groups(args),
    )
    while True:
        guest = guest_of(definition, manager.host)
        for note in guest.notes:
            complain(f"note: {note}")
        accept = [*args.accept, *vf_consents(guest.definition)]
        plan = manager.host.plan(guest.definition, args.policy, accept=accept, release=release)
        try:
            return guest.run(manager, plan, log_path=args.log)
        except (RefusedError, DeviceInUseError):
            if not has_lost_functions(guest.definition, manager.host):
                raise


def _warn_of_root(args: argparse.Namespace, ownership: Ownership | None) -> None:
    if ownership is None and args.user is None and os.geteuid() == 0:
        users = " or ".join(DEFAULT_USERS)
        complain(f"warning: QEMU runs as root, because this machine has no user {users}; choose one with --user")


def _refuse(
    args: argparse.Namespace,
    definition: DomainDef,
    host: Host,
    capabilities: QEMUCapabilities,
    ownership: Ownership | None,
) -> None:
    """
    Plan the domain as written, with the line numbers that the user knows, and print the notes.

    Raises:
        RefusedError: holds all obstacles of the devices and of QEMU.
    """
    from pyhostdev.qemu import qemu_driver

    _warn_of_root(args, ownership)
    plan = qemu_driver.plan(
        host,
        definition,
        args.policy,
        accept=args.accept,
        capabilities=capabilities,
        keep_together=args.keep_together,
        ownership=ownership,
        release=releases.release_of(args, host),
        fd_groups=_fd_groups(args),
    )
    if not plan.can_start:
        raise RefusedError((*plan.obstacles, *plan.start_obstacles), plan)
    tell_notes(plan.notes)
