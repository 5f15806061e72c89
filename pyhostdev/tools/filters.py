# SPDX-License-Identifier: LGPL-2.1-or-later
"""Filters of ``list`` and ``topology``: which functions of a host are shown."""

from __future__ import annotations

import argparse

from pyhostdev.tools.main import complain
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.journal import Record
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.virpci import PCIDevice

_FILTERS = ("group", "driver", "class_", "vendor", "owner", "assignable")
_CLASS_DIGITS = (2, 4, 6)
_VENDOR_DIGITS = (4,)
_NO_DRIVER = "none"


def add_filters(parser: argparse._ActionsContainer) -> None:
    """Add the filters; a function is shown if it passes all that are given."""
    parser.add_argument("--group", type=int, metavar="N", help="only the members of this IOMMU group")
    parser.add_argument(
        "--driver", metavar="NAME", help="only functions with this driver; 'none' for unbound functions"
    )
    parser.add_argument("--class", dest="class_", type=_class, metavar="CLASS", help="only this class, e.g. 02 or 0108")
    parser.add_argument("--vendor", type=_vendor, metavar="ID", help="only this vendor, e.g. 8086")
    parser.add_argument("--owner", metavar="NAME", help="only devices in use by this domain")
    parser.add_argument("--assignable", action="store_true", help="only functions that can be given to a guest now")


def has_filters(args: argparse.Namespace) -> bool:
    """Tell whether a filter is given."""
    return any(getattr(args, name) not in (None, False) for name in _FILTERS)


def tests(
    args: argparse.Namespace, host: Host, scan: Scan, owners_of_host: Callable[[], dict[str, str]]
) -> Iterator[Callable[[PCIDevice], bool]]:
    """
    Yield what a function has to pass, one test for each given filter.

    Args:
        owners_of_host: returns the owners of the functions in use; called if a filter needs them.
    """
    if args.group is not None:
        yield lambda dev: dev.iommu_group == args.group
    if args.driver is not None:
        yield lambda dev: (dev.driver or _NO_DRIVER) == args.driver
    if args.class_ is not None:
        yield lambda dev: dev.class_ is not None and f"{dev.class_:06x}".startswith(args.class_)
    if args.vendor is not None:
        yield lambda dev: dev.vendor is not None and f"{dev.vendor:04x}" == args.vendor
    if args.owner is not None:
        owners = owners_of_host()
        yield lambda dev: owners.get(str(dev.address)) == args.owner
    if args.assignable:
        found = {dev.address for dev in _free(host, scan, owners_of_host())}
        yield lambda dev: dev.address in found


def _free(host: Host, scan: Scan, owners: dict[str, str]) -> list[PCIDevice]:
    """Return the assignable functions in whose group neither an owner nor libvirt nor a process has a device."""
    from pyhostdev.hypervisor.hostdev_checks import libvirt_owners
    from pyhostdev.util.vfioholders import read_group_holders

    found = scan.assignable()
    groups = {group for dev in found if (group := dev.iommu_group) is not None}
    members = [dev for group in groups for dev in scan.groups[group]]
    taken = {str(finding.address) for finding in libvirt_owners(host.root, [dev.address for dev in members])}
    held: set[int | None] = set(read_group_holders(host.root, groups))
    held |= {dev.iommu_group for dev in members if str(dev.address) in owners or str(dev.address) in taken}
    return [dev for dev in found if dev.iommu_group not in held and str(dev.address) not in owners]


def owners_of(host: Host) -> dict[str, str]:
    """Return the owners of the functions in use; report on stderr if this user may not read the records."""
    records = readable_records(host) or {}
    return {str(address): record.owner for address, record in records.items() if record.owner is not None}


def readable_records(host: Host) -> dict[PCIDeviceAddress, Record] | None:
    """Return the records of a host; None, which is reported on stderr, if this user may not read them."""
    records = host.readable_records()
    if records is None:
        complain("note: this user cannot read the records of devices in use, so owners are unknown")
    return records


def _class(text: str) -> str:
    return _digits(text, _CLASS_DIGITS)


def _vendor(text: str) -> str:
    return _digits(text, _VENDOR_DIGITS)


def _digits(text: str, allowed: tuple[int, ...]) -> str:
    """
    Return the hexadecimal digits of an id, or those that a class begins with.

    Raises:
        ArgumentTypeError: it is not hexadecimal, or has another number of digits.
    """
    digits = text.lower().removeprefix("0x")
    if len(digits) not in allowed or set(digits) - set("0123456789abcdef"):
        numbers = " or ".join(map(str, allowed))
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of {numbers} hexadecimal digits")
    return digits
