# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev list`` with filters, names and chosen columns; the plain list does not load this."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError
from pyhostdev.tools import filters
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostusage import HostUsage, names_by_function
from pyhostdev.util.pciids import PCIIds
from pyhostdev.util.vfiodriver import VFIODrivers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.virpci import PCIDevice

DEFAULT = ("address", "id", "class", "group", "driver", "multifunction", "pf", "vfio")
NAMES = ("address", "name", "class", "group", "driver", "netdevs", "blocks", "mounts", "owner")
COLUMNS = (*DEFAULT, "name", "netdevs", "blocks", "mounts", "owner", "numa")
JSON_KEYS = {key: key for key in ("name", "netdevs", "blocks", "mounts", "owner")} | {"numa": "numa_node"}


def parse_columns(text: str) -> tuple[str, ...]:
    """
    Return the columns of a text like ``address,driver``.

    Raises:
        ConfigError: one is unknown.
    """
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"Unknown column '{unknown[0]}': expected some of {', '.join(COLUMNS)}")
    return names


class Listing:
    """The functions that pass the filters, and their columns."""

    def __init__(
        self, host: Host, scan: Scan, drivers: VFIODrivers, multifunction: Callable[[int], bool | None]
    ) -> None:
        self.host = host
        self.scan = scan
        self.multifunction = multifunction
        self._tables: dict[str, dict[str, list[str]]] = {}
        self._owners: dict[str, str] | None = None
        self._ids: PCIIds | None = None
        self._mount_points: dict[str, list[str]] | None = None
        self._drivers = drivers

    def selected(self, args: argparse.Namespace) -> list[int]:
        """Return the positions of the functions that pass all filters."""
        tests = list(filters.tests(args, self.host, self.scan, lambda: self.owners))
        return [at for at, dev in enumerate(self.scan) if all(test(dev) for test in tests)]

    def rows(self, positions: list[int], columns: tuple[str, ...]) -> Iterator[tuple[object | None, ...]]:
        """Yield the rows of a table."""
        facts = [getattr(self, f"_{name}") for name in columns]
        for at in positions:
            dev = self.scan[at]
            yield tuple(_cell(self._multifunction(at) if f == self._multifunction else f(dev)) for f in facts)

    def more_json(self, at: int, columns: tuple[str, ...]) -> dict[str, object]:
        """Return what the chosen columns add to a function's usual keys."""
        dev = self.scan[at]
        return {JSON_KEYS[name]: getattr(self, f"_{name}")(dev) for name in columns if name in JSON_KEYS}

    def _address(self, dev: PCIDevice) -> object:
        return dev.address

    def _id(self, dev: PCIDevice) -> object:
        return ":".join("?" if number is None else f"{number:04x}" for number in (dev.vendor, dev.device))

    def _class(self, dev: PCIDevice) -> object | None:
        return None if dev.class_ is None else f"{dev.class_:06x}"

    def _group(self, dev: PCIDevice) -> object | None:
        return dev.iommu_group

    def _driver(self, dev: PCIDevice) -> object | None:
        return dev.driver

    def _multifunction(self, at: int) -> object:
        return {True: "yes", False: "no", None: "unknown"}[self.multifunction(at)]

    def _pf(self, dev: PCIDevice) -> object | None:
        return dev.physfn

    def _vfio(self, dev: PCIDevice) -> object | None:
        return None if dev.is_bridge else self._drivers.choose(dev).driver

    def _numa(self, dev: PCIDevice) -> object | None:
        return dev.numa_node

    def _name(self, dev: PCIDevice) -> object:
        if self._ids is None:
            self._ids = PCIIds.read(self.host.root, HostRoot("/"))
        return self._ids.name(dev.vendor, dev.device)

    def _netdevs(self, dev: PCIDevice) -> list[str]:
        return self._below("net", self.host.root.class_net, dev)

    def _blocks(self, dev: PCIDevice) -> list[str]:
        return self._below("block", self.host.root.class_block, dev)

    def _mounts(self, dev: PCIDevice) -> list[str]:
        if self._mount_points is None:
            self._mount_points = HostUsage(self.host.root).mounts()
        return self._mount_points.get(str(dev.address), [])

    def _owner(self, dev: PCIDevice) -> object | None:
        return self.owners.get(str(dev.address))

    def _below(self, kind: str, directory: str, dev: PCIDevice) -> list[str]:
        if kind not in self._tables:
            self._tables[kind] = names_by_function(self.host.root, directory)
        return self._tables[kind].get(str(dev.address), [])

    @property
    def owners(self) -> dict[str, str]:
        """The owners of the functions in use, as far as this user may read the records."""
        if self._owners is None:
            self._owners = filters.owners_of(self.host)
        return self._owners


def _cell(fact: object | None) -> object | None:
    """Return the text of a fact with several names."""
    if not isinstance(fact, list):
        return fact
    return ("; " if any(" " in name for name in fact) else " ").join(fact) or None
