# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Redact a snapshot: replace MAC addresses, IP addresses, serial numbers, UUIDs and names.

The same value gets the same replacement everywhere in one snapshot, counted in the order of the paths, so that the
replacement reveals nothing about the value.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pyhostdev.errors import XMLError
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.hostsnapshot import HostSnapshot
from pyhostdev.util.hostusage import DEFAULT_DESTINATION
from pyhostdev.util.record import SUFFIX, decode, encode
from pyhostdev.util.virpcivpd import without_identity
from pyhostdev.util.virxml import dump_element, parse_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.util.hostroot import HostRoot

_MAC = re.compile(r"(?<![0-9A-Fa-f:.])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:.])")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SERIAL = re.compile(r"[0-9a-f]{2}(?:-[0-9a-f]{2}){7}")
_UNCHANGED_MACS = ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff")
_PLACES = re.compile(rb"<address\b[^>]*\bbus=[^>]*/>")
_VIRTUAL_NET = re.compile(r"sys/devices/virtual/net/([^/]+)")
_LOWER = "lower_"  # a link to an interface below another
_HOST_ROUTE = "FFFFFFFF"  # any destination that is not the default one
_NETWORK_PARTS = ("name", "forward", "bridge", "vlan")  # of a network: the elements that decide what its guests get


class _Names:
    """Replacements of one kind, counted."""

    def __init__(self, form: Callable[[int], str]) -> None:
        self.form = form
        self.known: dict[str, str] = {}

    def of(self, value: str) -> str:
        return self.known.setdefault(value, self.form(len(self.known) + 1))


class _Redactor:
    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self.macs = _Names(lambda n: ":".join(f"{b:02x}" for b in (0x02, *n.to_bytes(5, "big"))))
        self.serials = _Names(lambda n: n.to_bytes(8, "big").hex("-"))
        self.uuids = _Names(lambda n: f"00000000-0000-4000-8000-{n:012x}")
        self.vpd_fields = _Names(str)
        self.domains = _Names(lambda n: f"domain-{n}")
        self.mounts = _Names(lambda n: f"/mount-{n}")
        self.mappings = _Names(lambda n: f"mapping-{n}")
        self.interfaces = _Names(lambda n: f"virtual{n}")
        self.tables: dict[str, Callable[[str], str]] = {
            self._key(root.mounts): self.mount_table,
            self._key(root.mountinfo): self.mountinfo_table,
            self._key(root.swaps): self.swap_table,
            self._key(root.route): self.route_table,
            self._key(root.ipv6_route): self.ipv6_table,
            self._key(root.ipv6_addresses): self.ipv6_addresses,
        }

    def _key(self, path: str) -> str:
        return os.path.relpath(path, self.root.path)

    def text(self, text: str) -> str:
        """Replace MAC addresses, UUIDs and serial numbers in a text."""
        text = _MAC.sub(lambda m: m[0] if m[0].lower() in _UNCHANGED_MACS else self.macs.of(m[0].lower()), text)
        text = _UUID.sub(lambda m: self.uuids.of(m[0].lower()), text)
        return _SERIAL.sub(lambda m: self.serials.of(m[0]), text)

    def device(self, name: str) -> str:
        """Replace the name of a device node, if a person may have chosen it."""
        directory, base = os.path.split(name)
        is_chosen = directory != self.root.DEV.rstrip("/")
        return os.path.join(directory, self.mappings.of(base)) if is_chosen and directory else name

    def place(self, name: str) -> str:
        return name if name == "/" else self.mounts.of(name)

    def mount_table(self, text: str) -> str:
        rows = (line.split() for line in text.splitlines())
        kept = [row for row in rows if len(row) > 2 and row[0].startswith(self.root.DEV)]
        return "".join(f"{self.device(r[0])} {self.place(r[1])} {r[2]} rw 0 0\n" for r in kept)

    def mountinfo_table(self, text: str) -> str:
        rows = (line.split() for line in text.splitlines())
        kept = (row for row in rows if len(row) > 4)
        return "".join(f"{r[0]} {r[1]} {r[2]} / {self.place(r[4])} rw - - - -\n" for r in kept)

    def swap_table(self, text: str) -> str:
        lines = text.splitlines()
        rows = [line.split(None, 1) for line in lines[1:]]
        return "\n".join([*lines[:1], *(" ".join((self.device(row[0]), *row[1:])) for row in rows if row)]) + "\n"

    def route_table(self, text: str) -> str:
        lines = text.splitlines()
        rows = [row for row in (line.split() for line in lines[1:]) if len(row) > 1]
        return "\n".join([*lines[:1], *map(self._route, rows)]) + "\n"

    def _route(self, row: list[str]) -> str:
        to = DEFAULT_DESTINATION if row[1] == DEFAULT_DESTINATION else _HOST_ROUTE
        return "\t".join((self.interface(row[0]), to, *["0"] * (len(row) - 2)))

    def ipv6_table(self, text: str) -> str:
        zero = DEFAULT_DESTINATION * 4
        kept = (row for row in (line.split() for line in text.splitlines()) if row[:2] == [zero, "00"])
        return "".join(f"{zero} 00 {zero} 00 {zero} 0 0 0 0 {self.interface(row[-1])}\n" for row in kept)

    def ipv6_addresses(self, text: str) -> str:
        rows = (row for row in (line.split() for line in text.splitlines()) if len(row) > 1)
        return "".join(" ".join(("0" * 32, *row[1:-1], self.interface(row[-1]))) + "\n" for row in rows)

    def interface(self, name: str) -> str:
        """Replace the name of an interface without a device, which a person chose; others name their slot."""
        return self.interfaces.known.get(name, name)

    def path(self, path: str) -> str:
        """Replace what identifies a machine in a path, or in the target of a link."""
        parts = self.text(path).split("/")
        return "/".join(self._component(part, above) for above, part in zip(["", *parts], parts, strict=False))

    def _component(self, part: str, above: str) -> str:
        if part.startswith(_LOWER):
            return _LOWER + self.interface(part.removeprefix(_LOWER))
        return self.interface(part) if above in ("net", "..") else part

    def config(self, data: bytes) -> bytes:
        """Replace the serial number in a configuration space."""
        offset = pciconfig.find_extended_capability(data, pciregs.EXT_CAP_ID_DSN)
        serial = pciconfig.serial_number(data, offset) if offset else None
        if not offset or serial is None:
            return data
        number = int.from_bytes(bytes.fromhex(self.serials.of(serial).replace("-", "")), "big")
        return data[: offset + 4] + number.to_bytes(8, "little") + data[offset + 12 :]

    def libvirt(self, name: str, data: bytes) -> tuple[str, bytes]:
        """Replace a domain's status by one that has its host devices only."""
        places = b"".join(b"<hostdev type='pci'><source>%s</source></hostdev>" % place for place in _sources(data))
        text = b"<domstatus><domain><devices>%s</devices></domain></domstatus>" % places
        return f"{self.domains.of(name)}.xml", text

    def network(self, data: bytes) -> bytes:
        """Reduce a network to the facts that decide what guests get, and a port to the function that it gave to one."""
        try:
            root = parse_document(data)
        except XMLError:
            return b"<network/>\n"
        for port in root.iter("networkport"):
            places = "".join(map(dump_element, port.findall("plug[@type='hostdev-pci']/address")))
            return f"<networkport><plug type='hostdev-pci'>{places}</plug></networkport>\n".encode()
        parts = [part for network in root.iter("network") for part in network if part.tag in _NETWORK_PARTS]
        for element in (part for top in parts for part in top.iter("bridge", "interface", "forward", "pf")):
            for key in ("name", "dev"):
                if element.get(key) is not None:
                    element.set(key, self.interface(str(element.get(key))))
        text = self.text("".join(map(dump_element, parts)))
        inner = f"<network>{text}</network>"
        return (f"<networkstatus>{inner}</networkstatus>" if root.tag == "networkstatus" else inner).encode() + b"\n"

    def record(self, name: str, data: bytes) -> bytes:
        """Replace the owner in a record."""
        try:
            record = decode(data, name)
        except ValueError:
            return b"{}\n"
        if record.is_newer:
            return b"{}\n"
        owner = None if record.owner is None else self.domains.of(record.owner)
        boot_id = record.boot_id and self.uuids.of(record.boot_id)
        return encode(record._replace(owner=owner, boot_id=boot_id, extra="{}"))


def _sources(data: bytes) -> list[bytes]:
    """Return the addresses of host devices in a domain's status: those within a source."""
    found = []
    for part in re.findall(rb"<source\b[^>]*>.*?</source>", data, re.DOTALL):
        found += _PLACES.findall(part)
    return found


def _redacted_entry(redactor: _Redactor, path: str, content: bytes | str | None) -> tuple[str, bytes | str | None]:
    """Return path and contents of a link, a directory or a file."""
    if isinstance(content, str):
        return redactor.path(_renamed(redactor, path)), redactor.path(_target(redactor, path, content))
    if content is None:
        return redactor.path(path), None
    name, data = _redacted_file(redactor, path, content)
    return redactor.path(name), data


def redacted(snapshot: HostSnapshot, root: HostRoot) -> HostSnapshot:
    """Return a snapshot without values that identify the machine, its owner or its guests."""
    redactor = _Redactor(root)
    for path in snapshot.entries:
        found = _VIRTUAL_NET.match(path)
        if found is not None and found[1] != "lo":
            redactor.interfaces.of(found[1])
    entries = dict(_redacted_entry(redactor, path, content) for path, content in snapshot.entries.items())
    libvirt = redactor._key(root.libvirt_status)
    unreadable = [redactor.path(path) for path in snapshot.unreadable if not path.startswith(f"{libvirt}/")]
    return HostSnapshot(dict(sorted(entries.items())), unreadable, snapshot.present)


def _redacted_file(redactor: _Redactor, path: str, content: bytes) -> tuple[str, bytes]:
    """Return the path and the content of a file."""
    root, (directory, base) = redactor.root, os.path.split(path)
    if directory == redactor._key(root.libvirt_status):
        name, content = redactor.libvirt(base.removesuffix(".xml"), content)
        return f"{directory}/{name}", content
    if directory == redactor._key(root.state_dir) and base.endswith(SUFFIX):
        return path, redactor.record(base, content)
    if path.startswith((redactor._key(root.libvirt_networks), redactor._key(root.libvirt_network_states))):
        return path, redactor.network(content)
    return path, _file(redactor, path, base, content)


def _renamed(redactor: _Redactor, path: str) -> str:
    """Return the path of a link: one below ``dev`` can have a name that a person chose."""
    shown = f"/{path}"
    return redactor.device(shown).lstrip("/") if shown.startswith(redactor.root.DEV) else path


def _target(redactor: _Redactor, path: str, target: str) -> str:
    top, base = os.path.split(target)
    is_named = f"/{path}".startswith(redactor.root.DEV) and base in redactor.mappings.known
    return os.path.join(top, redactor.mappings.of(base)) if is_named else target


def _file(redactor: _Redactor, path: str, base: str, content: bytes) -> bytes:
    if base == "config":
        return redactor.config(content)
    if base == "vpd":
        return without_identity(content, redactor.vpd_fields.of)
    if base == "comm":
        return b"process\n"
    if base == "stat":
        pid, _, rest = content.partition(b" (")
        return pid + b" (process)" + rest.rpartition(b")")[2]
    if base.startswith("modules."):
        return content
    text = content.decode("utf-8", "surrogateescape")
    change = redactor.tables.get(path, redactor.text)
    return redactor.text(change(text)).encode("utf-8", "surrogateescape")
