# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev list``: all PCI functions of a host."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence

from pyhostdev.tools import arguments, filters, output, releases, streams
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.pciregs import CLASS_BRIDGE_PCI
from pyhostdev.util.typed import TYPE_CHECKING, TypeVar
from pyhostdev.util.vfiodriver import DriverChoice, VFIODrivers

if TYPE_CHECKING:
    from pyhostdev.hypervisor.host import Host

K = TypeVar("K")

COLUMNS = ("ADDRESS", "ID", "CLASS", "GROUP", "DRIVER", "MULTIFUNCTION", "PF", "VFIO")
_YES_NO = {True: "yes", False: "no", None: "unknown"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_root(parser)
    arguments.add_json(parser)
    releases.add_libvirt(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read from configuration space whether a function is multifunction; it wakes sleeping devices",
    )
    _add_filters(parser)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters and columns")
    filters.add_filters(group)
    group.add_argument("--names", action="store_true", help="name devices, interfaces, disks, mounts and owners")
    group.add_argument(
        "--columns", type=_columns, metavar="NAME,...", help="print these columns; JSON gets their keys, too"
    )


def _columns(text: str) -> tuple[str, ...]:
    from pyhostdev.tools.list_selected import parse_columns

    return arguments.checked(parse_columns)(text)


def _run_selected(args: argparse.Namespace, host: Host) -> int:
    """Print the functions that pass the filters, with the chosen columns."""
    from pyhostdev.tools import list_selected

    drivers = _drivers(args, host)
    scan = host.scan()
    multifunction = _multifunction(scan, verify=args.verify)
    listing = list_selected.Listing(host, scan, drivers, multifunction.__getitem__)
    positions = listing.selected(args)
    columns = args.columns or (list_selected.NAMES if args.names else list_selected.DEFAULT)
    if args.json:
        lines = list(_json_lines(scan, drivers, multifunction))
        _write_json([_with_more(lines[at], listing.more_json(at, columns)) for at in positions])
        return 0
    output.print_table([name.upper() for name in columns], listing.rows(positions, columns))
    return 0


def run(args: argparse.Namespace) -> int:
    """Scan the host and print the functions."""
    host = arguments.host_of(args)
    if filters.has_filters(args) or args.names or args.columns is not None:
        return _run_selected(args, host)
    drivers = _drivers(args, host)
    scan = host.scan()
    multifunction = _multifunction(scan, verify=args.verify)
    if args.json:
        _write_json(_json_lines(scan, drivers, multifunction))
    else:
        output.print_rows(COLUMNS, list(_rows(scan, drivers, multifunction)))
    return 0


def _write_json(lines: Iterable[str]) -> None:
    text = ",\n".join(lines)
    streams.write(f"[\n{text}\n]\n" if text else "[]\n")


def _with_more(line: str, facts: dict[str, object]) -> str:
    """Return a function's line of JSON with more keys."""
    return f"{line[:-1]}, {_json(facts)[1:]}" if facts else line


def _drivers(args: argparse.Namespace, host: Host) -> VFIODrivers:
    return VFIODrivers(host.root, variants=releases.release_of(args, host).has("vfio-variants"))


def _multifunction(scan: Scan, *, verify: bool) -> Sequence[bool | None]:
    """Return whether functions belong to a device with several; asked of the devices only to verify it."""
    return [scan.is_multifunction(dev) for dev in scan] if verify else scan.columns().shares_slot


def _texts(values: list[K], text: Callable[[K], str]) -> Iterator[str]:
    """Return a column as texts, each made once: thousands of functions have few different values."""
    texts = {value: text(value) for value in set(values)}
    return map(texts.__getitem__, values)


def _json_lines(scan: Scan, drivers: VFIODrivers, multifunction: Sequence[bool | None]) -> Iterator[str]:
    """Return one line of JSON a function, as ``json.dumps`` would write it."""
    columns = scan.columns()
    identities = list(zip(columns.vendor, columns.device, columns.class_, strict=True))
    return map(
        '  {"address": "%s", %s, "driver": %s, "iommu_group": %s, "multifunction": %s, "physfn": %s, %s}'.__mod__,
        zip(
            columns.address,
            _texts(identities, _json_identity),
            _texts(columns.driver, _json),
            ["null" if group is None else group for group in columns.iommu_group],  # nearly each VF has its own
            _texts(list(multifunction), _json),
            _texts(columns.physfn, _json),
            _texts(_choices(scan, drivers), _json_choice),
            strict=True,
        ),
    )


def _json(value: object) -> str:
    import json  # a table needs none

    return json.dumps(value)


def _json_identity(identity: tuple[int | None, int | None, int | None]) -> str:
    vendor, device, class_ = identity
    known = {
        "vendor_id": output.hexadecimal(vendor),
        "device_id": output.hexadecimal(device),
        "class": output.hexadecimal(class_, 6),
    }
    return _json(known)[1:-1]


def _json_choice(choice: DriverChoice | None) -> str:
    driver, why = (None, None) if choice is None else (choice.driver, choice.why or None)
    return _json({"vfio_driver": driver, "vfio_driver_why": why})[1:-1]


def _rows(scan: Scan, drivers: VFIODrivers, multifunction: Sequence[bool | None]) -> Iterator[tuple[str, ...]]:
    columns = scan.columns()
    return zip(
        columns.address,
        _texts(list(zip(columns.vendor, columns.device, strict=True)), _identity_cell),
        _texts(columns.class_, lambda class_: "-" if class_ is None else f"{class_:06x}"),
        _texts(columns.iommu_group, _cell),
        _texts(columns.driver, _cell),
        _texts(list(multifunction), _YES_NO.__getitem__),
        _texts(columns.physfn, _cell),
        _texts([choice and choice.driver for choice in _choices(scan, drivers)], _cell),
        strict=True,
    )


def _choices(scan: Scan, drivers: VFIODrivers) -> list[DriverChoice | None]:
    """
    Return the VFIO driver for each function, None for a bridge; only functions of vendors with a variant are examined.
    """
    columns = scan.columns()
    common = drivers.common()
    vendors = drivers.vendors_with_variants()
    every = None in vendors
    return [
        None
        if class_ is not None and class_ >> 8 == CLASS_BRIDGE_PCI
        else drivers.choose(scan[at])
        if every or vendor in vendors
        else common
        for at, (vendor, class_) in enumerate(zip(columns.vendor, columns.class_, strict=True))
    ]


def _identity_cell(identity: tuple[int | None, int | None]) -> str:
    return ":".join("?" if number is None else f"{number:04x}" for number in identity)


def _cell(value: object | None) -> str:
    return "-" if value is None else streams.printable(str(value))
