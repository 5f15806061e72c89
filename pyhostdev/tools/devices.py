# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host devices named on the command line, in place of a domain's XML: --device, --keep and --owner."""

from __future__ import annotations

import argparse

from pyhostdev.errors import ConfigError, DeviceMissingError, raise_all
from pyhostdev.tools import arguments
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.selector import Selector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, or --device, --keep and --owner."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="the domain's XML; - for standard input")
    add_devices(
        parser,
        "a function to assign to the guest, in place of FILE; can be repeated",
        "a function to detach but not to assign, in place of FILE; can be repeated",
    )
    parser.add_argument(
        "--owner", type=arguments.checked(_owner), metavar="NAME", help="the owner's name, with --device"
    )


def _owner(text: str) -> str:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.domain_limits import name_errors

    raise_all(list(name_errors(DomainDef(name=text))))
    return text


def add_devices(parser: argparse.ArgumentParser, device_help: str, keep_help: str) -> None:
    """--device and --keep."""
    for name, dest, text in (("--device", "devices", device_help), ("--keep", "keep", keep_help)):
        parser.add_argument(
            name,
            dest=dest,
            nargs="+",
            action="extend",
            default=[],
            type=arguments.checked(arguments.parse_selector),
            metavar="ADDRESS",
            help=text,
        )


def is_named(args: argparse.Namespace) -> bool:
    """
    Tell whether the devices are named on the command line.

    Raises:
        ArgumentTypeError: they are named there and in a file, or nowhere, or without an owner.
    """
    named = bool(args.devices or args.keep)
    if named == (args.file is not None):
        raise argparse.ArgumentTypeError("Expected either FILE, or --device and --owner")
    if named != (args.owner is not None):
        text = "--device and --keep need --owner" if named else "--owner needs --device: FILE has a name"
        raise argparse.ArgumentTypeError(text)
    return named


def named_domain(args: argparse.Namespace, host: Host) -> DomainDef:
    """
    Return a domain with only the named devices, all managed.

    Raises:
        ConfigError: a device is named twice.
        DeviceMissingError, InvalidAddressError: a selector names no function, or several.
    """
    from pyhostdev.conf.domain_conf import DomainDef

    definition = DomainDef(name=args.owner, hostdevs=named_hostdevs(args.devices, host))
    definition.hostdevs += named_hostdevs(args.keep, host, kept=True)
    addresses = [hostdev.pci_address for hostdev in definition.hostdevs]
    twice = next((address for address in addresses if addresses.count(address) > 1), None)
    if twice is not None:
        raise ConfigError(f"Device {twice} is named more than once", address=twice)
    return definition


def named_hostdevs(selectors: list[Selector], host: Host, *, kept: bool = False) -> list[DomainHostdevDef]:
    """
    Return a host device for each selector.

    Raises:
        DeviceMissingError, InvalidAddressError: a selector names no function, or several.
    """
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef

    found = []
    for selector in selectors:
        address = selector.resolve(host.root)
        if host.pci_device(address) is None:
            raise DeviceMissingError(f"Device {address} is not on this host", reason="device-missing", address=address)
        found.append(DomainHostdevDef.for_pci(address, managed=True, unassigned=kept))
    return found
