# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev hook``: act as a hook of libvirt, or install that hook."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shlex
import sys
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError, SysfsError
from pyhostdev.tools import arguments, releases
from pyhostdev.tools.contract import DONE
from pyhostdev.tools.main import complain, tell_notes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.journal import Record
    from pyhostdev.util.pciaddress import PCIDeviceAddress

NAME = "50-pyhostdev"
_MARK = "# Written by 'pyhostdev hook --install'; 'pyhostdev hook --uninstall' removes it"
_SCRIPT = """#!/bin/sh
{mark}
case "$2 $3" in
"prepare begin" | "release end") ;;
*) exit 0 ;;
esac
exec {command} -- "$@"
"""
_SIZE_MAX = 1 << 16  # bytes of a hook that is compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="GUEST OPERATION MOMENT EXTRA",
        help="as libvirt calls its hook 'qemu', with the domain's XML on standard input",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--install", action="store_true", help="install the hook, with the other options given here")
    action.add_argument("--uninstall", action="store_true", help="remove the hook that --install has written")
    arguments.add_root(parser)
    arguments.add_policy(parser)
    arguments.add_changes(parser)
    releases.add_libvirt(parser)


def run(args: argparse.Namespace) -> int:
    """Install or remove the hook, or act before the start and after the end of a guest."""
    if args.install or args.uninstall:
        if args.words:
            raise argparse.ArgumentTypeError("--install and --uninstall take no guest")
        return _install(args) if args.install else _uninstall(args)
    if len(args.words) < 3:
        raise argparse.ArgumentTypeError("Expected GUEST OPERATION MOMENT EXTRA, --install or --uninstall")
    guest, operation, moment = args.words[:3]
    if (operation, moment) == ("prepare", "begin"):
        return _begin(args, guest)
    if (operation, moment) == ("release", "end"):
        from pyhostdev.hypervisor.libvirt_hook import release_end

        release_end(arguments.manager_of(args), guest)
    return DONE


def _begin(args: argparse.Namespace, guest: str) -> int:
    """Plan and prepare; standard output stays empty, because libvirt hands it to the next hook."""
    from pyhostdev.hypervisor.libvirt_hook import prepare_begin

    definition = _definition_with_devices()
    manager = arguments.manager_of(args)
    if definition is not None or _owns_devices(manager.host.readable_records(), guest):
        release = releases.release_of(args, manager.host)
        wanted = definition or _empty(guest)
        plan = prepare_begin(manager, wanted, guest, policy=args.policy, accept=args.accept, release=release)
        tell_notes(plan.notes)
    return DONE


def _definition_with_devices() -> DomainDef | None:
    """
    Return the domain on standard input; None if it has no host device, so that the hook has nothing to do.

    Raises:
        ConfigError: it is not XML, or it has host devices and is not valid.
    """
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.util.virxml import parse_document

    data = arguments.read_file("-")
    document = parse_document(data)
    places = (document.find(where) for where in ("devices/hostdev", "devices/interface[@type='hostdev']"))
    return DomainDef.parse(data) if any(place is not None for place in places) else None


def _owns_devices(records: Mapping[PCIDeviceAddress, Record] | None, guest: str) -> bool:
    """Tell whether an earlier start of the guest, with another definition, has left devices."""
    return any(record.owner == guest for record in (records or {}).values())


def _empty(guest: str) -> DomainDef:
    from pyhostdev.conf.domain_conf import DomainDef

    return DomainDef(name=guest)


def script(args: argparse.Namespace) -> str:
    """Return the text of the hook: calls without work end in the shell, so they cannot disturb a running guest."""
    words = [sys.executable, "-I", "-m", "pyhostdev", "hook", "--policy", args.policy]
    words += [word for consent in args.accept for word in ("--accept", consent)]
    words += ["--timeout", f"{args.timeout:g}"]
    if args.libvirt is not None:
        words += ["--libvirt", str(args.libvirt)]
    if args.state_dir:
        words += ["--state-dir", os.path.abspath(args.state_dir)]
    if args.simulate:
        words += ["--root", os.path.abspath(args.root), "--simulate"]
    return _SCRIPT.format(mark=_MARK, command=shlex.join(words))


def _create(root: HostRoot) -> int:
    """Create the hook's file, which must not exist, and return its descriptor."""
    with _directory(root, mode=0o755) as directory:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(NAME, flags, 0o755, dir_fd=directory)


def _install(args: argparse.Namespace) -> int:
    """Write the hook; a file that is there stays, and is an error unless it is the same."""
    root = arguments.host_of(args).root
    path, text = root.libvirt_hook(NAME), script(args)
    try:
        fd = _create(root)
    except FileExistsError:
        if _read(root, path) != text:
            raise _exists(path, "stays as it is: remove it, or call --uninstall first") from None
        return DONE
    except OSError as err:
        raise SysfsError(err.errno or 0, path, "install the hook") from err
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        os.fchmod(fd, 0o755)
        stream.write(text)
    complain(f"note: '{path}' is installed: restart libvirt's daemon if this is its first hook")
    return DONE


def _uninstall(args: argparse.Namespace) -> int:
    """Remove the hook; a file that --install has not written stays, and is an error."""
    root = arguments.host_of(args).root
    path = root.libvirt_hook(NAME)
    text = _read(root, path)
    if text is None:
        complain(f"note: '{path}' is not installed")
        return DONE
    if _MARK not in text.splitlines()[:2]:
        raise _exists(path, "was not written by pyhostdev, and stays as it is")
    try:
        with _directory(root) as directory:
            os.unlink(NAME, dir_fd=directory)
    except OSError as err:
        raise SysfsError(err.errno or 0, path, "remove the hook") from err
    return DONE


@contextlib.contextmanager
def _directory(root: HostRoot, mode: int | None = None) -> Iterator[int]:
    """
    Open the hooks' directory, whose programs libvirt runs as root, and provide its descriptor.

    Raises:
        OperationError: another user could exchange it, or a link leads out of a directory in the place of /.
        OSError: the system refuses.
    """
    from pyhostdev.util.securedir import open_directory

    path = os.path.dirname(root.libvirt_hook(NAME))
    fd = open_directory(path, below=None if root.is_live else root.path, mode=mode)
    if fd is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(root: HostRoot, path: str) -> str | None:
    from pyhostdev.util.virfile import read_bytes

    data = read_bytes(root, path, _SIZE_MAX)
    return None if data is None else data.decode(errors="replace")


def _exists(path: str, what: str) -> ConfigError:
    return ConfigError(f"The file '{path}' {what}", reason="hook-exists")
