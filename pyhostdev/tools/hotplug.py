# SPDX-License-Identifier: LGPL-2.1-or-later
"""What attach-device and detach-device share: arguments, the stored definition, progress and output."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.libvirt_release import LibvirtRelease
from pyhostdev.errors import ConfigError, OperationError
from pyhostdev.tools import arguments, output, releases, streams
from pyhostdev.tools.main import complain, tell_notes
from pyhostdev.tools.releases import ASSIGNED_WARNING

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.qemu.qemu_hotplug import Guest
    from pyhostdev.qemu.qemu_hotplug.runtime import GuestDirectory

    Change = Callable[..., DomainDef]

DEFAULT_TIMEOUT_S = 20.0
WRITE_TIMEOUT_S = 30.0  # of each write to the kernel, however long the guest is waited for


def add_owner_and_file(parser: argparse.ArgumentParser) -> None:
    """OWNER, FILE and --config."""
    parser.add_argument("owner", metavar="OWNER", help="the domain's name")
    parser.add_argument(
        "file", metavar="FILE", help="a <hostdev>, or <devices> with the <hostdev>s of one card; - for standard input"
    )
    parser.add_argument(
        "--config",
        metavar="DOMAIN.xml",
        help="change this definition, whose name must be OWNER; without --live only the definition",
    )


def add_live(parser: argparse.ArgumentParser, waited_for: str) -> None:
    """--live, --timeout and what a change of the host needs."""
    parser.add_argument("--live", action="store_true", help="change the running guest (the default without --config)")
    parser.set_defaults(changes_host=True, write_timeout=WRITE_TIMEOUT_S)
    parser.add_argument("--simulate", action="store_true", help="let a simulated kernel react in the --root directory")
    parser.add_argument(
        "--timeout",
        type=arguments.checked(arguments.seconds),
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help=f"how long to wait {waited_for}, in seconds (default: {DEFAULT_TIMEOUT_S:g})",
    )
    arguments.add_json(parser)


def is_live(args: argparse.Namespace) -> bool:
    """Return True if the running guest must be changed."""
    return bool(args.live or args.config is None)


def hostdevs_of(args: argparse.Namespace) -> list[DomainHostdevDef]:
    """
    Return the devices in FILE.

    Raises:
        ConfigError: FILE cannot be read, or has another element.
    """
    from pyhostdev.qemu.qemu_hotplug.livestate import parse_hostdevs

    return parse_hostdevs(arguments.read_file(args.file), is_live=False)


class StoredDefinition:
    """
    The file of --config: checked first, replaced at the end; what can be refused is refused before a guest is changed.

    Args:
        change: gets the complete definition, the devices, the capabilities, the host and the release.

    Raises:
        ConfigError: the definition is not the owner's, or the change is invalid.
        OperationError: this user cannot replace the file.
        ArgumentTypeError: the file is standard input.
    """

    def __init__(self, args: argparse.Namespace, host: Host, change: Change, subject: Any) -> None:
        from pyhostdev.conf.domain_conf import DomainDef
        from pyhostdev.conf.newer_words import dropped_word_notes
        from pyhostdev.qemu import define

        self.path = args.config
        if self.path == "-":
            raise argparse.ArgumentTypeError("--config needs a file: standard input cannot be replaced")
        dom = DomainDef.parse(arguments.read_file(self.path))
        if dom.name != args.owner:
            raise ConfigError(f"'{self.path}' is the definition of '{dom.name}', not of '{args.owner}'")
        capabilities = releases.capabilities_of(args, dom, host)
        release = releases.release_of(args, host)
        tell_notes(dropped_word_notes(dom, release))
        complete = define(dom, capabilities, host, release=release)
        self.changed = change(complete, subject, capabilities, host, release)
        if any(hostdev.assigned is not None for hostdev in self.changed.hostdevs):
            complain(ASSIGNED_WARNING)
        self._check_place()

    def _check_place(self) -> None:
        """Refuse a file that this user cannot replace: in a directory that is read-only, or of another owner."""
        place = os.path.realpath(self.path)
        status = os.stat(place)
        is_foreign = os.geteuid() not in (0, status.st_uid)
        if is_foreign or not os.access(os.path.dirname(place), os.W_OK | os.X_OK, effective_ids=True):
            why = os.strerror(errno.EPERM if is_foreign else errno.EACCES)
            raise OperationError(f"Cannot replace '{self.path}': {why}")

    def write(self, *, after_live: bool) -> None:
        """
        Replace the file; its mode and owner stay.

        Args:
            after_live: the running guest was changed already.

        Raises:
            OperationError: the file cannot be replaced; it is unchanged.
        """
        place = os.path.realpath(self.path)
        try:
            status = os.stat(place)
            fd, name = tempfile.mkstemp(dir=os.path.dirname(place))
            with _removed_on_error(name), os.fdopen(fd, "w", encoding="utf-8") as new:
                new.write(self.changed.format())
                new.flush()
                os.fsync(fd)
                _give_mode_and_owner(fd, status)
                os.rename(name, place)
        except OSError as err:
            done = ", but the running guest was changed" if after_live else ""
            raise OperationError(
                f"Cannot replace '{self.path}': {err.strerror}{done}", rolled_back=False if after_live else None
            ) from err


def _give_mode_and_owner(fd: int, status: os.stat_result) -> None:
    """Give a new file the mode and owner of the one that it replaces."""
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, status.st_mode & 0o7777)


@contextlib.contextmanager
def _removed_on_error(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


@contextlib.contextmanager
def progress() -> Iterator[Callable[[float], None]]:
    """Yield a function that shows the remaining time of the wait on a terminal."""
    try:
        yield lambda left: streams.show_progress(f"waiting for the guest, {int(left)} s left ")
    finally:
        streams.end_progress()


@contextlib.asynccontextmanager
async def guest_of(
    args: argparse.Namespace,
    manager: HostdevManager,
    directory: GuestDirectory,
    check: Callable[[], None],
    waiting: Callable[[float], None],
) -> Any:
    """Control the running guest, after finishing what an earlier process left."""
    from pyhostdev.qemu.qemu_hotplug.control import controlled

    definition = directory.state.load()
    recorded = releases.Answering(LibvirtRelease.parse(directory.facts.release), ", as which the guest was started")
    found = recorded if args.libvirt is None else releases.Answering(args.libvirt)
    capabilities = releases.chosen_capabilities(definition, manager.host, args.capabilities, found)
    async with controlled(
        manager, directory, capabilities=capabilities, release=found.release, check=check, waiting=waiting
    ) as guest:
        yield guest


def report_finished(found: Any) -> None:
    """Report the changes of an earlier process that were finished."""
    for done in found:
        complain(f"note: unit {done.unit}: {done.message}")


def describe(
    args: argparse.Namespace, outcome: str, unit: str | None, functions: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the JSON object of an attach or a detach."""
    return {
        "version": 1,
        "owner": args.owner,
        "unit": unit,
        "outcome": outcome,
        "config": args.config,
        "functions": functions,
    }


def function_facts(guest: Guest, addresses: set[Any]) -> list[dict[str, Any]]:
    """Return the facts about these functions in the guest, sorted by address."""
    found = [h for h in guest.definition.pci_hostdevs() if h.pci_address in addresses]
    return [
        {
            "address": str(h.pci_address),
            "role": "assigned" if h.is_assigned else "kept",
            "alias": h.info.alias,
            "guest_address": None if h.info.pci is None else str(h.info.pci.pci),
        }
        for h in sorted(found, key=lambda h: h.pci_address)
    ]


def print_result(args: argparse.Namespace, outcome: str, unit: str | None, functions: list[dict[str, Any]]) -> None:
    """Print the result: one JSON object, or one line per function."""
    if args.json:
        output.print_json(describe(args, outcome, unit, functions))
        return
    if functions:
        keys = ("address", "role", "alias", "guest_address")
        output.print_table(("DEVICE", "ROLE", "ALIAS", "GUEST"), [[f[key] for key in keys] for f in functions])
    if args.config and outcome != "pending":
        streams.write(f"{args.config}: changed\n")
