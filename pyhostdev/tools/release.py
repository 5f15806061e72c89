# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev release``: release a domain's host devices, without QEMU."""

from __future__ import annotations

import argparse

from pyhostdev.errors import ConfigError
from pyhostdev.tools import arguments, devices
from pyhostdev.tools.contract import DONE, REFUSED
from pyhostdev.tools.main import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    owner = parser.add_mutually_exclusive_group(required=True)
    owner.add_argument("file", nargs="?", metavar="FILE", help="the domain's XML; - for standard input")
    owner.add_argument("--owner", metavar="NAME", help="the domain's name, if its XML is not at hand")
    devices.add_devices(
        parser,
        "release this device of --owner only; can be repeated",
        "the same as --device, so that the words of prepare can be repeated",
    )
    arguments.add_root(parser)
    arguments.add_changes(parser)


def run(args: argparse.Namespace) -> int:
    """
    Release the devices of the domain with this name; the rest of FILE may have changed since, and is not used.

    With FILE, a domain without devices is a success, as a hook needs. With --owner it is an error: a wrong name.
    """
    if args.devices or args.keep:
        return _release_some(args)
    owner = arguments.domain_name_of(args) if args.owner is None else args.owner
    if not arguments.manager_of(args).release(owner):
        complain(f"Domain '{owner}' has no devices on this host")
        return DONE if args.owner is None else REFUSED
    return DONE


def _release_some(args: argparse.Namespace) -> int:
    """Release the named devices of an owner; a device that it does not have is an error."""
    if args.owner is None:
        raise argparse.ArgumentTypeError("--device and --keep need --owner")
    manager = arguments.manager_of(args)
    hostdevs = devices.named_hostdevs([*args.devices, *args.keep], manager.host)
    owners = {device.address: device.owner for device in manager.status().active}
    for hostdev in hostdevs:
        if owners.get(hostdev.pci_address) != args.owner:
            text = f"Device {hostdev.pci_address} is not in use by domain '{args.owner}'"
            raise ConfigError(text, address=hostdev.pci_address)
    manager.reattach_pci_devices("pyhostdev", args.owner, hostdevs)
    return DONE
