# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev addresses``: the guest address of each device, why, and what moves."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pyhostdev.tools import arguments, output, releases
from pyhostdev.tools.contract import DIFFER, DONE
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.guest_addresses import AddressChange, GuestAddress
    from pyhostdev.hypervisor.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_keep_together(parser)
    releases.add_release(parser)
    arguments.add_json(parser)
    parser.add_argument("--diff", metavar="OTHER", help="show what moves if this file replaces the domain")
    releases.add_against(parser)


def run(args: argparse.Namespace) -> int:
    """Print the addresses, or what moves; return 6 if a device moves."""
    from pyhostdev.conf.guest_addresses import compare_addresses, has_moved

    if args.file == args.diff == "-":
        raise argparse.ArgumentTypeError("FILE and --diff cannot both be standard input")
    host = arguments.host_of(args)
    here = releases.answering(args, host)
    reported: set[str] = set()
    domain = _defined(args, host, args.file, here, args.capabilities, reported)
    if args.diff is None and args.against_libvirt is None:
        _print(args, here, domain, None)
        return DONE
    there = releases.Answering(args.against_libvirt) if args.against_libvirt else here
    other = args.file if args.diff is None else args.diff
    # another release has another QEMU than this host
    choice = args.capabilities or (there.release.qemu if there.release != here.release else None)
    changes = compare_addresses(domain, _defined(args, host, other, there, choice, reported))
    _print(args, here, domain, Comparison(other, str(there.release), changes))
    return DIFFER if has_moved(changes) else DONE


class Comparison(NamedTuple):
    """The changes of addresses from one domain to the one in another file, or of another release."""

    file: str
    libvirt: str
    changes: list[AddressChange]

    def to_json(self) -> dict[str, Any]:
        """Return the member ``against`` of the document."""
        changes = [_change_to_json(change) for change in self.changes]
        return {"file": self.file, "libvirt": self.libvirt, "changes": changes}


def _print(args: argparse.Namespace, here: releases.Answering, domain: DomainDef, against: Comparison | None) -> None:
    """Print the addresses of a domain, or what changes in the other one; both as JSON."""
    found = domain.addresses()
    if args.json:
        head = {"version": 1, "libvirt": str(here.release), "addresses": [*map(_address_to_json, found)]}
        output.print_json({**head, "against": None if against is None else against.to_json()})
    elif against is None:
        output.print_table(("DEVICE", "ADDRESS", "WHY"), map(_row, found))
    else:
        output.print_table(("CHANGE", "DEVICE", "BEFORE", "AFTER"), map(_change_row, against.changes))


def _defined(
    args: argparse.Namespace, host: Host, path: str, found: releases.Answering, choice: str | None, reported: set[str]
) -> DomainDef:
    """Return the domain in a file, with its defaults and addresses as a release of libvirt fills them in."""
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.domain_validate import word_errors
    from pyhostdev.errors import raise_all
    from pyhostdev.qemu import qemu_driver

    definition = DomainDef.parse(arguments.read_file(path))
    raise_all(list(word_errors(definition)))
    capabilities = releases.chosen_capabilities(definition, host, choice, found, reported)
    return qemu_driver.define(
        definition, host, keep_together=args.keep_together, capabilities=capabilities, release=found.release
    )


def _place(found: GuestAddress | None) -> str | None:
    if found is None:
        return None
    return found.address if found.type == "pci" else f"{found.type} {found.address}".rstrip()


def _row(found: GuestAddress) -> tuple[object | None, ...]:
    return found.device, _place(found), found.why if found.declared else f"{found.why}, device added"


def _change_row(change: AddressChange) -> tuple[object | None, ...]:
    return change.change, change.device, _place(change.old), _place(change.new)


def _address_to_json(found: GuestAddress) -> dict[str, Any]:
    return found._asdict()


def _change_to_json(change: AddressChange) -> dict[str, Any]:
    return {
        "change": change.change,
        "old": None if change.old is None else _address_to_json(change.old),
        "new": None if change.new is None else _address_to_json(change.new),
    }
