# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev snapshot``: save a host as a file that can be used as --root, or as a description."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from pyhostdev import __version__
from pyhostdev.errors import SysfsError
from pyhostdev.tools import arguments, streams
from pyhostdev.tools.main import complain

if TYPE_CHECKING:
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.hostsnapshot import HostSnapshot
    from pyhostdev.util.snapshotfile import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("output", metavar="OUTPUT", help="the file to write; - for standard output")
    arguments.add_root(parser)
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace MAC and IP addresses, serial numbers, UUIDs and names of guests, mounts and virtual interfaces, "
        "each consistently",
    )
    parser.add_argument("--tree", action="store_true", help="write a .tree description, from which a host can be built")


def run(args: argparse.Namespace) -> int:
    """Read the host and write the file; report on stderr what this user could not read."""
    host = arguments.host_of(args)
    if args.tree:
        from pyhostdev.testing.treecapture import describe_host

        data = describe_host(host.root, redact=args.redact).encode("utf-8", "surrogateescape")
    else:
        data = _archive(args, host)
    _write(args.output, data)
    return 0


def _archive(args: argparse.Namespace, host: Host) -> bytes:
    from pyhostdev.util.hostsnapshot import take_snapshot
    from pyhostdev.util.redaction import redacted
    from pyhostdev.util.snapshotfile import pack

    snapshot = take_snapshot(host.root, host.state() if args.state_dir else None)
    if args.redact:
        snapshot = redacted(snapshot, host.root)
    if snapshot.unreadable:
        files = arguments.files(len(snapshot.unreadable))
        complain(f"note: this user cannot read {files}; the manifest names what is missing")
    return pack(snapshot, _manifest(snapshot, host.root, redacted=args.redact))


def _manifest(snapshot: HostSnapshot, root: HostRoot, *, redacted: bool) -> Manifest:
    from pyhostdev.util.snapshotfile import Manifest

    kernel = snapshot.entries.get(os.path.relpath(root.kernel_release, root.path))
    return Manifest(
        pyhostdev=__version__,
        kernel=kernel.decode().strip() if isinstance(kernel, bytes) else None,
        redacted=redacted,
        unreadable=tuple(snapshot.unreadable),
        present=tuple(snapshot.present),
    )


def _write(path: str, data: bytes) -> None:
    """
    Write the file: complete, or not at all.

    Raises:
        SysfsError: it cannot be written.
    """
    if path == "-":
        streams.write_bytes(data)
        return
    try:
        _replace(path, data)
    except OSError as err:
        raise SysfsError(err.errno or 0, path, "write a snapshot") from err


def _replace(path: str, data: bytes) -> None:
    """Write a file beside the path, readable for this user only, and move it there."""
    partial = f"{path}.{os.getpid()}.partial"
    # it contains serial numbers that only root may read
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except OSError:
        os.unlink(partial)
        raise
