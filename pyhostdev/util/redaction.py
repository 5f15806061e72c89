# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Redact a snapshot: replace MAC addresses, serial numbers, UUIDs and names.

The same value gets the same replacement everywhere in one snapshot, counted in the order of the paths, so that the
replacement reveals nothing about the value.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.hostsnapshot import HostSnapshot
from pyhostdev.util.hostusage import DEFAULT_DESTINATION
from pyhostdev.util.record import SUFFIX, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.util.hostroot import HostRoot

_MAC = re.compile(r"(?<![0-9A-Fa-f:.])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:.])")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SERIAL = re.compile(r"[0-9a-f]{2}(?:-[0-9a-f]{2}){7}")
_UNCHANGED_MACS = ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff")
_PLACES = re.compile(rb"<address\b[^>]*\bbus=[^>]*/>")


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
        self.domains = _Names(lambda n: f"domain-{n}")
        self.mounts = _Names(lambda n: f"/mount-{n}")
        self.mappings = _Names(lambda n: f"mapping-{n}")
        self.tables: dict[str, Callable[[str], str]] = {
            self._key(root.mounts): self.mount_table,
            self._key(root.mountinfo): self.mountinfo_table,
            self._key(root.swaps): self.swap_table,
            self._key(root.route): self.route_table,
            self._key(root.ipv6_route): self.ipv6_table,
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
        kept = [row for row in (line.split() for line in lines[1:]) if row[1:2] == [DEFAULT_DESTINATION]]
        return "\n".join([*lines[:1], *("\t".join((*row[:2], *["0"] * (len(row) - 2))) for row in kept)]) + "\n"

    def ipv6_table(self, text: str) -> str:
        zero = DEFAULT_DESTINATION * 4
        kept = (row for row in (line.split() for line in text.splitlines()) if row[:2] == [zero, "00"])
        return "".join(f"{zero} 00 {zero} 00 {zero} 0 0 0 0 {row[-1]}\n" for row in kept)

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


def redacted(snapshot: HostSnapshot, root: HostRoot) -> HostSnapshot:
    """Return a snapshot without values that identify the machine, its owner or its guests."""
    redactor = _Redactor(root)
    libvirt, state = redactor._key(root.libvirt_status), redactor._key(root.state_dir)
    entries: dict[str, bytes | str | None] = {}
    for path, content in snapshot.entries.items():
        directory, base = os.path.split(path)
        if isinstance(content, str):
            entries[_renamed(redactor, path)] = _target(redactor, path, content)
        elif content is None:
            entries[path] = None
        elif directory == libvirt:
            name, content = redactor.libvirt(base.removesuffix(".xml"), content)
            entries[f"{directory}/{name}"] = content
        elif directory == state and base.endswith(SUFFIX):
            entries[path] = redactor.record(base, content)
        else:
            entries[path] = _file(redactor, path, base, content)
    unreadable = [path for path in snapshot.unreadable if not path.startswith(f"{libvirt}/")]
    return HostSnapshot(dict(sorted(entries.items())), unreadable, snapshot.present)


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
