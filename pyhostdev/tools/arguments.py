# SPDX-License-Identifier: LGPL-2.1-or-later
"""Arguments shared by several verbs, and the objects that they select."""

from __future__ import annotations

import argparse
import os
import sys

from pyhostdev.errors import ConfigError, raise_all
from pyhostdev.hypervisor.host import Host
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from tempfile import TemporaryDirectory

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.util.ownership import Ownership
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.selector import Selector
    from pyhostdev.util.sysfs_writer import SysfsWriter

Value = TypeVar("Value")

FILE_MAX = 1 << 20  # bytes; the parser has the same limit
TIMEOUT_MAX_S = 86400


def checked(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return an argument type that turns a ConfigError of ``parse`` into a usage error with the same message."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    return parsed


def seconds(text: str) -> float:
    """
    Return a timeout.

    Raises:
        ConfigError: the text is not a number of seconds.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= TIMEOUT_MAX_S:
        raise ConfigError(f"Invalid timeout {text!a}: expected a number of seconds from 0 to {TIMEOUT_MAX_S}")
    return number


def parse_selector(text: str) -> Selector:
    """
    Return a selector.

    Raises:
        ConfigError: as ``Selector.parse``.
    """
    from pyhostdev.util.selector import Selector  # a verb may be called with a file

    return Selector.parse(text)


def _consent(text: str) -> str:
    from pyhostdev.hypervisor.hostdev_checks import parse_consent

    parse_consent(text)
    return text


class _Once(argparse.Action):
    """An option that must not be repeated: the last one would win silently."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        given = self.dest + "_given"
        if getattr(namespace, given, False):
            raise argparse.ArgumentError(self, "is given twice; only 'plan' compares several hosts")
        setattr(namespace, given, True)
        setattr(namespace, self.dest, values)


def add_root(parser: argparse.ArgumentParser) -> None:
    """--root and --state-dir."""
    parser.add_argument(
        "--root",
        action=_Once,
        default="/",
        metavar="DIR|FILE",
        help="use a directory, or a snapshot's FILE.tar.gz, in place of /",
    )
    add_state_dir(parser)


def add_roots(parser: argparse.ArgumentParser) -> None:
    """--root, several times, and --state-dir."""
    parser.add_argument(
        "--root",
        dest="roots",
        action="append",
        metavar="DIR|FILE",
        help="use a directory, or a snapshot's FILE.tar.gz, in place of /; repeated: report which can run the domain",
    )
    add_state_dir(parser)


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """--state-dir."""
    parser.add_argument(
        "--state-dir", metavar="DIR", help="directory of the records (default: run/pyhostdev below the root)"
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_file(parser: argparse.ArgumentParser) -> None:
    """FILE, a domain's XML."""
    parser.add_argument("file", metavar="FILE", help="the domain's XML; - for standard input")


def add_address(parser: argparse.ArgumentParser) -> None:
    """ADDRESS of a host function, or another name of it."""
    from pyhostdev.util.selector import FORMS

    parser.add_argument("address", type=checked(parse_selector), metavar="ADDRESS", help=f"e.g. {FORMS}")


def add_policy(parser: argparse.ArgumentParser) -> None:
    """--policy and --accept."""
    from pyhostdev.hypervisor.hostdev_plan import POLICIES

    parser.add_argument(
        "--policy", default="auto", choices=POLICIES, help="which functions must be declared (default: auto)"
    )
    add_accept(parser)


def add_accept(parser: argparse.ArgumentParser) -> None:
    """--accept."""
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        type=checked(_consent),
        metavar="REASON:ADDRESS",
        help="consent to boot-vga, mounted, default-route or vf-network of one device, which may be named as net:eno1, "
        "block:nvme0n1 or pf:eno1/vf3; can be repeated",
    )


def add_changes(parser: argparse.ArgumentParser, timeout: str = "deadline of each write") -> None:
    """Arguments of every changing verb; ``timeout`` describes what --timeout limits."""
    parser.set_defaults(changes_host=True)
    parser.add_argument("--simulate", action="store_true", help="let a simulated kernel react in the --root directory")
    parser.add_argument(
        "--timeout", type=checked(seconds), default=30.0, metavar="S", help=f"{timeout} in seconds (default: 30)"
    )


def add_user(parser: argparse.ArgumentParser, help_text: str) -> None:
    """--user, an Ownership."""
    parser.add_argument("--user", type=checked(_ownership), metavar="USER[:GROUP]", help=help_text)


def _ownership(text: str) -> Ownership:
    from pyhostdev.util.ownership import parse_ownership

    return parse_ownership(text)


def _known_user(text: str) -> str:
    _ownership(text)
    return text


def host_of(args: argparse.Namespace) -> Host:
    """
    Return the host at --root, with a writer if the verb changes the host.

    Raises:
        ConfigError: --root is not a directory.
    """
    root = HostRoot(args.root)
    if os.path.isfile(root.path):
        if getattr(args, "changes_host", False):
            raise ConfigError(
                f"'{args.root}' is a snapshot and cannot be changed: build a host with 'snapshot --tree' and 'fakehost'"
            )
        return snapshot_host(_unpacked(args.root), args.state_dir)
    if not os.path.isdir(root.path):
        raise ConfigError(f"'{args.root}' is not a directory")
    return Host(root, state_dir=args.state_dir, writer=_writer_of(args, root))


def host_at(path: str) -> Host:
    """
    Return a host that is only read: a directory, or a snapshot.

    Raises:
        ConfigError: it is neither.
    """
    return host_of(argparse.Namespace(root=path, state_dir=None))


def snapshot_host(root: HostRoot, state_dir: str | None = None) -> Host:
    """Return the host of an unpacked snapshot; its command lines name the directories on that host."""
    host = Host(root, state_dir=state_dir)
    host.is_snapshot = True
    return host


_unpacked_here: list[TemporaryDirectory[str]] = []


def _unpacked(path: str) -> HostRoot:
    """Unpack a snapshot into a directory that lasts until the verb has ended, and report what it lacks."""
    from tempfile import TemporaryDirectory  # it loads compression libraries; few verbs unpack

    from pyhostdev.tools.main import complain
    from pyhostdev.util.snapshotfile import unpack

    directory = TemporaryDirectory(prefix="pyhostdev-snapshot-")
    _unpacked_here.append(directory)
    root = HostRoot(directory.name)
    manifest = unpack(path, root)
    if manifest.unreadable:
        complain(lacking_note(path, len(manifest.unreadable)))
    return root


def lacking_note(path: str, number: int) -> str:
    """Return the note about a snapshot of a user that could not read everything."""
    return f"note: snapshot '{path}' lacks {files(number)}, which its user could not read"


def files(number: int) -> str:
    """Return a number of files in words."""
    return "1 file" if number == 1 else f"{number} files"


def forget_snapshots() -> None:
    """Remove the directories of unpacked snapshots."""
    while _unpacked_here:
        _unpacked_here.pop().cleanup()


def _writer_of(args: argparse.Namespace, root: HostRoot) -> SysfsWriter | None:
    if not getattr(args, "changes_host", False):
        return None
    if args.simulate:
        from pyhostdev.testing.kernel import SimulatedKernel

        return SimulatedKernel(root)
    from pyhostdev.util.sysfs_writer import ForkedWriter

    inflight_dir = os.path.join(args.state_dir, "in-flight") if args.state_dir else None
    return ForkedWriter(root, timeout_s=getattr(args, "write_timeout", args.timeout), inflight_dir=inflight_dir)


def address_of(args: argparse.Namespace, host: Host) -> PCIDeviceAddress:
    """
    Return the address of the function that the command line names.

    Raises:
        DeviceMissingError, InvalidAddressError, SysfsError: as ``Selector.resolve``.
    """
    selector: Selector = args.address
    return selector.resolve(host.root)


def manager_of(args: argparse.Namespace) -> HostdevManager:
    """Return the manager of the host at --root."""
    from pyhostdev.hypervisor.virhostdev import HostdevManager

    return HostdevManager(host_of(args))


def read_file(path: str) -> bytes:
    """
    Return the bytes of FILE, standard input for "-".

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        if path == "-":
            return sys.stdin.buffer.read(FILE_MAX + 1)
        with open(path, "rb") as stream:
            return stream.read(FILE_MAX + 1)
    except OSError as err:
        raise ConfigError(f"Cannot read '{path}': {err.strerror}") from err


def definition_of(args: argparse.Namespace) -> DomainDef:
    """
    Return the domain in FILE.

    Raises:
        ConfigError: FILE cannot be read, or is not a domain.
    """
    from pyhostdev.conf.domain_conf import DomainDef

    try:
        return DomainDef.parse(read_file(args.file))
    except ConfigError as err:
        if err.readable is not None:
            from pyhostdev.conf.unknown_words import with_unknown_words

            raise_all(with_unknown_words(err))
        raise


def domain_name_of(args: argparse.Namespace) -> str:
    """
    Return the name of the domain in FILE.

    Raises:
        ConfigError: FILE cannot be read, is not a domain, or has no name.
    """
    from pyhostdev.util.xmlstream import read_child_text

    name = read_child_text(read_file(args.file), "domain", "name")
    if not name:
        raise ConfigError(f"'{args.file}' is not a domain with a name")
    return name


def add_qemu_user(parser: argparse.ArgumentParser) -> None:
    """--user of QEMU."""
    from pyhostdev.util.ownership import DEFAULT_USERS

    users = " and ".join(DEFAULT_USERS)
    parser.add_argument(
        "--user",
        type=checked(_known_user),
        metavar="USER[:GROUP]",
        help=f"the user to run QEMU as, when started by root (default: the first of {users} that exists)",
    )


def add_keep_together(parser: argparse.ArgumentParser) -> None:
    """--keep-together."""
    parser.add_argument(
        "--keep-together",
        action="store_true",
        help="put the assigned functions of one host device into one guest slot, instead of one slot each",
    )
