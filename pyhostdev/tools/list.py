# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev list``: all PCI functions of a host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from pyhostdev.tools import arguments, filters, output, releases, streams
from pyhostdev.util import scanrefresh
from pyhostdev.util.pciregs import CLASS_BRIDGE_PCI
from pyhostdev.util.scancolumns import ScanColumns
from pyhostdev.util.typed import TYPE_CHECKING, TypeVar
from pyhostdev.util.vfiodriver import DriverChoice, VFIODrivers

if TYPE_CHECKING:
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.pcisnapshot import ScanRecord

Text = TypeVar("Text")
Value = TypeVar("Value")

COLUMNS = ("ADDRESS", "ID", "CLASS", "GROUP", "DRIVER", "MULTIFUNCTION", "PF", "VFIO")
_YES_NO = {True: "yes", False: "no", None: "unknown"}
_LINES = 256  # of JSON that are made and written at once
_JSON_WORDS = {None: "null", True: "true", False: "false"}


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


class _Facts:
    """The printed facts of all functions, as columns."""

    def __init__(self, args: argparse.Namespace, host: Host) -> None:
        self.root = host.root
        self.drivers = VFIODrivers(host.root, variants=releases.release_of(args, host).has("vfio-variants"))
        self._snapshot = scanrefresh.scan(host.root)
        self._scan: Scan | None = None
        self.columns = ScanColumns(self._snapshot)
        self._vendors = self.drivers.vendors_with_variants()
        self.multifunction: Sequence[bool | None] = self._verified() if args.verify else self.columns.shares_slot

    @property
    def scan(self) -> Scan:
        """The functions as objects, which few calls need."""
        if self._scan is None:
            from pyhostdev.util.hostscan import Scan

            self._scan = Scan(self.root, self._snapshot)
        return self._scan

    def _verified(self) -> list[bool | None]:
        """Ask the devices whether functions belong to a device with several."""
        return [self.scan.is_multifunction(dev) for dev in self.scan]

    def kinds(self, text: Callable[[ScanRecord, DriverChoice | None], Text]) -> list[Text]:
        """Return a column of what only depends on a function's kind, made once for each kind."""
        alike = self._snapshot.first_alike()
        texts = {at: text(self._snapshot[at], self._choice(at)) for at in set(alike)}
        return list(map(texts.__getitem__, alike))

    def _choice(self, at: int) -> DriverChoice | None:
        """Return the VFIO driver for a function, None for a bridge; only vendors with a variant are examined."""
        record = self._snapshot[at]
        if record.class_ is not None and record.class_ >> 8 == CLASS_BRIDGE_PCI:
            return None
        if None in self._vendors or record.vendor in self._vendors:
            return self.drivers.choose(self.scan[at])
        return self.drivers.common()


def _run_selected(args: argparse.Namespace, host: Host) -> int:
    """Print the functions that pass the filters, with the chosen columns."""
    from pyhostdev.tools import list_selected

    facts = _Facts(args, host)
    listing = list_selected.Listing(host, facts.scan, facts.drivers, facts.multifunction.__getitem__)
    positions = listing.selected(args)
    columns = args.columns or (list_selected.NAMES if args.names else list_selected.DEFAULT)
    if args.json:
        lines = [line for part in _json_lines(facts) for line in part]
        more = [_with_more(lines[at], listing.more_json(at, columns)) for at in positions]
        _write_json([more] if more else [])
        return 0
    output.print_table([name.upper() for name in columns], listing.rows(positions, columns))
    return 0


def run(args: argparse.Namespace) -> int:
    """Scan the host and print the functions."""
    host = arguments.host_of(args)
    if filters.has_filters(args) or args.names or args.columns is not None:
        return _run_selected(args, host)
    if args.json:
        _write_json(_json_lines(_Facts(args, host)))
    else:
        output.print_rows(COLUMNS, list(_rows(_Facts(args, host))))
    return 0


def _write_json(parts: Iterable[list[str]]) -> None:
    """Print an array from its lines, a part at a time: megabytes of text would be copied several times."""
    before = "[\n"
    with streams.writing():
        for lines in parts:
            sys.stdout.write(before + ",\n".join(lines))
            before = ",\n"
        sys.stdout.write("[]\n" if before == "[\n" else "\n]\n")


def _with_more(line: str, facts: dict[str, object]) -> str:
    """Return a function's line of JSON with more keys."""
    import json

    return f"{line[:-1]}, {json.dumps(facts)[1:]}" if facts else line


def _texts(values: Sequence[Value], text: Callable[[Value], str]) -> Iterator[str]:
    """Return a column as texts, each made once: thousands of functions have few different values."""
    texts = {value: text(value) for value in set(values)}
    return map(texts.__getitem__, values)


def _json_lines(facts: _Facts) -> Iterator[list[str]]:
    """Yield one line of JSON a function, as ``json.dumps`` would write it, some at once."""
    columns = facts.columns
    groups, physfns, several = columns.iommu_group, _texts(columns.physfn, _json), _texts(facts.multifunction, _json)
    rows = zip(columns.address, facts.kinds(_json_kind), groups, several, physfns, strict=True)
    while lines := [
        f'  {{"address": "{address}", {device}, "iommu_group": {"null" if group is None else group}, '
        f'"multifunction": {multifunction}, "physfn": {physfn}, {driver}}}'
        for address, (device, driver), group, multifunction, physfn in islice(rows, _LINES)
    ]:
        yield lines


def _json_kind(record: ScanRecord, choice: DriverChoice | None) -> tuple[str, str]:
    """Return the keys before the group and those after the PF."""
    before = {
        "vendor_id": output.hexadecimal(record.vendor),
        "device_id": output.hexadecimal(record.device),
        "class": output.hexadecimal(record.class_, 6),
        "driver": record.driver,
    }
    driver, why = (None, None) if choice is None else (choice.driver, choice.why or None)
    return _json_keys(before), _json_keys({"vfio_driver": driver, "vfio_driver_why": why})


def _json_keys(known: dict[str, str | None]) -> str:
    return ", ".join([f'"{key}": {_json(value)}' for key, value in known.items()])


def _json(value: str | bool | None) -> str:
    """Return a value as JSON; nearly all are plain words, for which the library need not be loaded."""
    if not isinstance(value, str):
        return _JSON_WORDS[value]
    if value.isascii() and value.isprintable() and not {'"', "\\"} & set(value):
        return f'"{value}"'
    import json

    return json.dumps(value)


def _rows(facts: _Facts) -> Iterator[tuple[str, ...]]:
    columns = facts.columns
    groups, physfns = _texts(columns.iommu_group, _cell), _texts(columns.physfn, _cell)
    several = map(_YES_NO.__getitem__, facts.multifunction)
    rows = zip(columns.address, facts.kinds(_cells), groups, several, physfns, strict=True)
    for address, (id_, class_, driver, vfio), group, multifunction, physfn in rows:
        yield address, id_, class_, group, driver, multifunction, physfn, vfio


def _cells(record: ScanRecord, choice: DriverChoice | None) -> tuple[str, str, str, str]:
    """Return the cells that depend on a function's kind: ID, CLASS, DRIVER and VFIO."""
    ids = ":".join("?" if number is None else f"{number:04x}" for number in (record.vendor, record.device))
    class_ = None if record.class_ is None else f"{record.class_:06x}"
    return ids, _cell(class_), _cell(record.driver), _cell(choice and choice.driver)


def _cell(value: object | None) -> str:
    return "-" if value is None else streams.printable(str(value))
