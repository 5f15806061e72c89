# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The state of a running guest: its live definition, the units being plugged, its original memory limit, and spent ids.

``MemoryState`` is for a program that stores its guest's definition itself; processes share a ``DirectoryState``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Protocol

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.hostdev_conf import DomainHostdevDef, misplaced_assigned
from pyhostdev.errors import ConfigUnsupportedError, OperationError, raise_all
from pyhostdev.qemu.qemu_alias import assign_aliases
from pyhostdev.util.memlock import MemoryLimit
from pyhostdev.util.virjson import parse_json
from pyhostdev.util.virxml import parse_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyhostdev.util.statedir import StateDir
    from pyhostdev.util.virxml import Element

LIVE_XML = "live.xml"
MEMLOCK = "memlock.json"
SPENT_IDS = "spent-ids.json"
XML_MAX = 1 << 20
_UNIT_FILE = r"unit-([0-9a-f:.]{10,20})\.xml"


class LiveState(Protocol):
    """Stores the state of one running guest."""

    def load(self) -> DomainDef:
        """Return the live definition: complete, with aliases."""

    def save(self, dom: DomainDef) -> None:
        """Replace the live definition."""

    def put_unit(self, unit: str, hostdevs: Sequence[DomainHostdevDef]) -> None:
        """Remember the devices of a unit that is about to be plugged."""

    def read_unit(self, unit: str) -> list[DomainHostdevDef] | None:
        """Return these devices, None if there are none."""

    def drop_unit(self, unit: str) -> None:
        """Forget them."""

    def unit_names(self) -> list[str]:
        """Return the units that are about to be plugged."""

    @property
    def stored_memlock(self) -> MemoryLimit | None:
        """QEMU's limit of locked memory before the first device that needs another limit."""

    def store_memlock(self, limit: MemoryLimit | None) -> None:
        """Store that limit; None removes it."""

    @property
    def spent_ids(self) -> frozenset[str]:
        """The ids of devices that QEMU got with a node and may have refused: it does not accept them again."""

    def store_spent_ids(self, ids: Iterable[str]) -> None:
        """Replace these ids."""


class MemoryState:
    """Keeps the state in this process."""

    def __init__(self, dom: DomainDef) -> None:
        self._dom = dom
        self._units: dict[str, list[DomainHostdevDef]] = {}
        self._memlock: MemoryLimit | None = None
        self.spent_ids: frozenset[str] = frozenset()

    def load(self) -> DomainDef:
        """Return a copy of the live definition."""
        return self._dom.copy()

    def save(self, dom: DomainDef) -> None:
        """Replace the live definition."""
        self._dom = dom.copy()

    def put_unit(self, unit: str, hostdevs: Sequence[DomainHostdevDef]) -> None:
        """Remember the devices of a unit that is about to be plugged."""
        self._units[unit] = list(hostdevs)

    def read_unit(self, unit: str) -> list[DomainHostdevDef] | None:
        """Return these devices, None if there are none."""
        return self._units.get(unit)

    def drop_unit(self, unit: str) -> None:
        """Forget them."""
        self._units.pop(unit, None)

    def unit_names(self) -> list[str]:
        """Return the units that are about to be plugged."""
        return sorted(self._units)

    @property
    def stored_memlock(self) -> MemoryLimit | None:
        """QEMU's limit of locked memory before the first device that needs another limit."""
        return self._memlock

    def store_memlock(self, limit: MemoryLimit | None) -> None:
        """Store that limit; None removes it."""
        self._memlock = limit

    def store_spent_ids(self, ids: Iterable[str]) -> None:
        """Replace the ids that QEMU no longer accepts."""
        self.spent_ids = frozenset(ids)


class DirectoryState:
    """
    Keeps the state in the guest's runtime directory; each file is complete or absent.

    Every method raises SysfsError if the directory cannot be accessed, and OperationError if a file is malformed.
    """

    def __init__(self, directory: StateDir) -> None:
        self.directory = directory

    def load(self) -> DomainDef:
        """Return the live definition."""
        return parse_live(self._read(LIVE_XML))

    def save(self, dom: DomainDef) -> None:
        """Replace the live definition."""
        self.directory.replace(LIVE_XML, dom.format().encode())

    def put_unit(self, unit: str, hostdevs: Sequence[DomainHostdevDef]) -> None:
        """Remember the devices of a unit that is about to be plugged."""
        self.directory.replace(_unit_file(unit), format_hostdevs(hostdevs).encode())

    def read_unit(self, unit: str) -> list[DomainHostdevDef] | None:
        """Return these devices, None if there are none."""
        if _unit_file(unit) not in self.directory.names():
            return None
        return parse_hostdevs(self._read(_unit_file(unit)))

    def drop_unit(self, unit: str) -> None:
        """Forget them."""
        self.directory.remove(_unit_file(unit))

    def unit_names(self) -> list[str]:
        """Return the units that are about to be plugged."""
        found = (re.fullmatch(_UNIT_FILE, name) for name in self.directory.names())
        return [match[1] for match in found if match]

    @property
    def stored_memlock(self) -> MemoryLimit | None:
        """QEMU's limit of locked memory before the first device that needs another limit."""
        if MEMLOCK not in self.directory.names():
            return None
        try:
            soft, hard = parse_json(self._read(MEMLOCK))
            return MemoryLimit(int(soft), int(hard))
        except (ValueError, TypeError) as err:
            raise OperationError(f"The file '{MEMLOCK}' of the guest is malformed") from err

    def store_memlock(self, limit: MemoryLimit | None) -> None:
        """Store that limit; None removes it."""
        if limit is None:
            self.directory.remove(MEMLOCK)
        else:
            self.directory.replace(MEMLOCK, json.dumps(list(limit)).encode())

    @property
    def spent_ids(self) -> frozenset[str]:
        """The ids that QEMU no longer accepts."""
        if SPENT_IDS not in self.directory.names():
            return frozenset()
        try:
            return frozenset(map(str, parse_json(self._read(SPENT_IDS))))
        except (ValueError, TypeError) as err:
            raise OperationError(f"The file '{SPENT_IDS}' of the guest is malformed") from err

    def store_spent_ids(self, ids: Iterable[str]) -> None:
        """Replace these ids."""
        self.directory.replace(SPENT_IDS, json.dumps(sorted(ids)).encode())

    def _read(self, name: str) -> bytes:
        try:
            data = self.directory.read(name, limit=XML_MAX)
        except ValueError as err:
            raise OperationError(f"The file '{name}' of the guest cannot be used: {err}") from err
        if data is None:
            raise OperationError(f"The guest has no file '{name}'")
        return data


def _unit_file(unit: str) -> str:
    return f"unit-{unit}.xml"


def live_definition(dom: DomainDef) -> DomainDef:
    """
    Return the live definition of a domain: every device has its alias, every PCI host device its backend.

    Args:
        dom: complete, as ``define`` returns it.
    """
    live = dom.copy()
    assign_aliases(live)
    for hostdev in live.pci_hostdevs():
        hostdev.driver_name = hostdev.driver_name or "vfio"
    return live


def parse_live(xml: bytes | str) -> DomainDef:
    """
    Parse a live definition; host devices and interfaces keep their aliases.

    Raises:
        ConfigError: the XML is not a valid domain.
    """
    dom = DomainDef.parse(xml)
    devices = parse_document(xml).find("devices")
    for tag, found in (("hostdev", dom.hostdevs), ("interface", dom.interfaces)):
        elements = [] if devices is None else devices.findall(tag)
        _take_aliases(found, elements)
    assign_aliases(dom)  # the other aliases follow from the definition
    return dom


def _take_aliases(devices: Iterable[Any], elements: Iterable[Any]) -> None:
    """Take the aliases from the XML: the parser drops generated ones, but a running domain needs them."""
    for device, element in zip(devices, elements, strict=True):
        alias = element.find("alias")
        if alias is not None and alias.get("name"):
            device.info.alias = str(alias.get("name"))


def _hostdev_elements(root: Element) -> list[Element]:
    elements = [root] if root.tag != "devices" else [child for child in root if isinstance(child.tag, str)]
    other_tag = next((str(e.tag) for e in elements if e.tag != "hostdev"), None)
    if other_tag is not None or not elements:
        what = "An empty <devices>" if other_tag is None else f"A <{other_tag}>"
        raise ConfigUnsupportedError(f"{what} cannot be plugged: expected a <hostdev>, or <devices> with only hostdevs")
    return elements


def parse_hostdevs(xml: bytes | str, *, is_live: bool = True) -> list[DomainHostdevDef]:
    """
    Parse one ``<hostdev>``, or ``<devices>`` that contain only hostdevs.

    Args:
        is_live: True keeps all aliases, which are those in QEMU.

    Raises:
        XMLError: the XML is not well-formed, or invalid.
        ConfigError: there is another element.
    """
    root = parse_document(xml)
    elements = _hostdev_elements(root)
    raise_all(misplaced_assigned(root))
    hostdevs = [DomainHostdevDef.from_element(element) for element in elements]
    if is_live:
        _take_aliases(hostdevs, elements)
    return hostdevs


def format_hostdevs(hostdevs: Iterable[DomainHostdevDef]) -> str:
    """Format host devices as ``<devices>``."""
    return "\n".join(["<devices>", *(hostdev.format() for hostdev in hostdevs), "</devices>", ""])
