# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One record of the journal: its fields, and its form on disk.

Form: ``{"version", "crc32", "record"}``; the checksum is over the record's JSON with sorted keys. Records of every
version up to ours are read. Fields that we do not know survive a rewrite, so a field that an older program may pass
over needs no new version. One that must be restored does: an older program then refuses the record, and treats its
device as in use.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pyhostdev.errors import HostdevError
from pyhostdev.util.devnode import DeviceNode
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import Binding

VERSION = 2  # 1: without nodes and asked
SUFFIX = ".json"

PREPARING = "preparing"
PREPARED = "prepared"
RELEASING = "releasing"
DETACHED = "detached"  # with a stub and nobody's: libvirt's inactive list
STATES = (PREPARING, PREPARED, RELEASING, DETACHED)
LAST_MOMENT = 253402300799  # seconds since 1970 UTC, at the end of the year 9999
NEWER = "newer"  # of a record in a version that we do not know; never written

_NODE_NAME = re.compile(r"[0-9]{1,9}|devices/vfio[0-9]{1,9}", re.ASCII)


class GivenNode(NamedTuple):
    """
    A node that was given to a guest's user: its name below ``dev/vfio``, what it was before, and who got it.

    The device's number and the inode tell whether it is still that node.
    """

    name: str
    number: int
    inode: int
    uid: int
    gid: int
    mode: int
    to_uid: int
    to_gid: int

    @property
    def before(self) -> DeviceNode:
        """The node as it was before it was given away."""
        return DeviceNode(self.number, self.inode, self.uid, self.gid, self.mode)

    @property
    def given(self) -> DeviceNode:
        """The node as its user has it."""
        return self.before._replace(uid=self.to_uid, gid=self.to_gid)


class Asked(NamedTuple):
    """What a domain asked for, where the record has something else: role, managed, and the stub."""

    role: str
    managed: bool
    stub: str


class Record(NamedTuple):
    """
    One device that we detached or that a domain uses.

    ``moved`` says that it was we who took it from ``original.driver``; only then is it given back. ``listed_as`` is
    its binding when it was on the inactive list before its owner got it, and where it goes back to. ``change`` is
    shared by the records of one prepare: they stand or fall together; ``position`` is the device's place in the
    domain. ``since`` is when its owner asked for it, or when it came on the inactive list, in seconds since 1970 UTC;
    earlier programs did not write it. ``extra`` has, as JSON, the fields that only another program knows.
    """

    address: PCIDeviceAddress
    state: str
    owner: str | None
    managed: bool
    moved: bool
    target: str
    original: Binding
    boot_id: str | None
    listed_as: Binding | None = None
    change: str = ""
    position: int = 0
    nodes: tuple[GivenNode, ...] = ()
    asked: Asked | None = None
    since: int | None = None
    extra: str = "{}"

    @property
    def is_active(self) -> bool:
        """On libvirt's active list: a domain has it, is getting it, or is giving it back."""
        return self.state != DETACHED

    @property
    def is_kept(self) -> bool:
        """Stays detached when its owner gives it back: it was before, or its owner asked for it unmanaged."""
        return self.listed_as is not None or (not self.managed and self.owner is not None)

    @property
    def is_newer(self) -> bool:
        """Written by a newer pyhostdev: of the device only this is known, and only that program can act on it."""
        return self.state == NEWER

    def detached(self, since: int | None, target: str | None = None) -> Record:
        """Return the record of the device when it is on the inactive list (again), since a moment."""
        changed = self._replace(state=DETACHED, owner=None, listed_as=None, nodes=(), asked=None)
        return changed._replace(target=target or self.target, since=since)


_KNOWN = frozenset(Record._fields) - {"extra"}


def newer_text(address: PCIDeviceAddress) -> str:
    """Return the sentence about a device whose record is of a newer version."""
    return (
        f"The record of device {address} was written by a newer pyhostdev: "
        "release or recover the device with that version"
    )


def encode(record: Record) -> bytes:
    """Return the bytes of a record's file."""
    fields = record._asdict()
    extra = json.loads(fields.pop("extra"))
    fields["address"] = str(record.address)
    fields["original"] = record.original._asdict()
    fields["listed_as"] = record.listed_as and record.listed_as._asdict()
    fields["nodes"] = [node._asdict() for node in record.nodes]
    fields["asked"] = record.asked and record.asked._asdict()
    for name in ("original", "listed_as"):
        if fields[name] is not None:
            fields[name] = {**extra.pop(name, {}), **fields[name]}
    fields = {**extra, **fields}
    body = json.dumps(fields, sort_keys=True)
    text = {"version": VERSION, "crc32": zlib.crc32(body.encode()), "record": fields}
    return (json.dumps(text, sort_keys=True) + "\n").encode()


def decode(data: bytes, name: str) -> Record:
    """Return the record in a file's bytes; ValueError says why there is none."""
    try:
        text = json.loads(data)
        version, fields = text["version"], text["record"]
        if type(version) is not int or version < 1:
            raise ValueError(f"version {version!r} is unknown")
        if version > VERSION:
            return _newer(fields, name)
        if zlib.crc32(json.dumps(fields, sort_keys=True).encode()) != text["crc32"]:
            raise ValueError("its checksum is wrong")
        record = _record(fields)
    except (KeyError, TypeError, AttributeError, RecursionError, HostdevError) as err:
        raise ValueError(f"it is not a record ({err})") from None
    if record.state not in STATES or f"{record.address}{SUFFIX}" != name:
        raise ValueError("its state or its name is wrong")
    return record


def _newer(fields: Any, name: str) -> Record:
    """Return what stands for a record in a version that we do not know: its device is in use, by its owner if told."""
    owner = fields.get("owner") if isinstance(fields, dict) else None
    if not isinstance(owner, str):
        owner = "unknown (its record was written by a newer pyhostdev)"
    address = PCIDeviceAddress.parse(name.removesuffix(SUFFIX))
    if f"{address}{SUFFIX}" != name:
        raise ValueError("its name is wrong")
    return Record(address, NEWER, owner, False, False, "", _newer_original(fields), None)


def _newer_original(fields: Any) -> Binding:
    """Return where a device of a newer record came from, where that is told as we know it."""
    try:
        return _binding(fields["original"])
    except (KeyError, TypeError, ValueError):
        return Binding(None, None, 0, "")


def _record(fields: Mapping[str, Any]) -> Record:
    """
    Return the record with these fields, each of the type that it must have.

    Raises:
        ValueError, KeyError, InvalidAddressError: a field is missing or has another type.
    """
    listed, asked = fields.get("listed_as"), fields.get("asked")
    extra: dict[str, Any] = {key: value for key, value in fields.items() if key not in _KNOWN}
    for key in ("original", "listed_as"):
        unknown = {k: v for k, v in (fields.get(key) or {}).items() if k not in Binding._fields}
        if unknown:
            extra[key] = unknown
    return Record(
        address=PCIDeviceAddress.parse(_text(fields, "address")),
        state=_text(fields, "state"),
        owner=_optional(fields, "owner", _text),
        managed=_flag(fields, "managed"),
        moved=_flag(fields, "moved"),
        target=_text(fields, "target"),
        original=_binding(fields["original"]),
        boot_id=_optional(fields, "boot_id", _text),
        listed_as=None if listed is None else _binding(listed),
        change=_text(fields, "change", ""),
        position=_number(fields, "position", 0),
        nodes=tuple(_nodes(fields.get("nodes", ()))),
        asked=None if asked is None else Asked(_text(asked, "role"), _flag(asked, "managed"), _text(asked, "stub")),
        since=None if fields.get("since") is None else _moment(fields, "since"),
        extra=json.dumps(extra, sort_keys=True),
    )


def _binding(fields: Mapping[str, Any]) -> Binding:
    return Binding(
        driver=_optional(fields, "driver", _text),
        override=_optional(fields, "override", _text),
        incarnation=_number(fields, "incarnation"),
        fingerprint=_text(fields, "fingerprint"),
    )


def _nodes(items: Iterable[Mapping[str, Any]]) -> Iterable[GivenNode]:
    for item in items:
        name = _text(item, "name")
        if _NODE_NAME.fullmatch(name) is None:
            raise ValueError(f"'{name}' is not the name of a node")
        yield GivenNode(name, *(_number(item, key) for key in GivenNode._fields[1:]))


def _typed(fields: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = fields[key] if default is None else fields.get(key, default)
    if type(value) is not kind:
        raise ValueError(f"its '{key}' is not of the type {kind.__name__}")
    return value


def _text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    return str(_typed(fields, key, str, default))


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    return bool(_typed(fields, key, bool, None))


def _number(fields: Mapping[str, Any], key: str, default: int | None = None) -> int:
    return int(_typed(fields, key, int, default))


def _moment(fields: Mapping[str, Any], key: str) -> int:
    seconds = _number(fields, key)
    if not 0 <= seconds <= LAST_MOMENT:
        raise ValueError(f"its '{key}' is not a moment")
    return seconds


def _optional(fields: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any], str], str]) -> str | None:
    return None if fields[key] is None else read(fields, key)
