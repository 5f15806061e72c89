# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A record of the journal: its fields, and its form on disk.

Form: ``{"version", "crc32", "record"}``; the checksum covers the record's JSON with sorted keys. Records of every
version up to the current one are read. Unknown fields survive a rewrite, so a field that an older program may ignore
needs no new version. A field that must be restored needs one: an older program then refuses the record and treats its
device as in use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from pyhostdev.errors import HostdevError
from pyhostdev.util.devnode import DeviceNode
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import Binding
from pyhostdev.util.typed import Any, NamedTuple
from pyhostdev.util.virjson import format_json, parse_json

VERSION = 2  # 1: without nodes and asked
SUFFIX = ".json"

PREPARING = "preparing"
PREPARED = "prepared"
RELEASING = "releasing"
DETACHED = "detached"  # bound to a stub without an owner: libvirt's inactive list
STATES = (PREPARING, PREPARED, RELEASING, DETACHED)
PLUGGING = "plugging"  # QEMU is adding the functions; some may be in it already
PLUGGED = "plugged"
UNPLUGGING = "unplugging"  # the guest was asked and has not released them
STUCK_STAGED = "stuck-staged"  # QEMU has functions that the guest neither sees nor can release
PHASES = (PREPARED, PLUGGING, PLUGGED, UNPLUGGING, STUCK_STAGED)
LAST_MOMENT = 253402300799  # seconds since 1970 UTC, at the end of the year 9999
_NO_EXTRA = "{}"
NEWER = "newer"  # stands for a record in an unknown, newer version; never written

_NODE_NAME = r"[0-9]{1,9}|devices/vfio[0-9]{1,9}"


class GivenNode(NamedTuple):
    """
    A node that was given to a guest's user: its name below ``dev/vfio``, its earlier owner, and the new one.

    The device number and the inode tell whether it is still the same node.
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
        """The node before it was given to the user."""
        return DeviceNode(self.number, self.inode, self.uid, self.gid, self.mode)

    @property
    def given(self) -> DeviceNode:
        """The node after it was given to the user."""
        return self.before._replace(uid=self.to_uid, gid=self.to_gid)


class Asked(NamedTuple):
    """A domain's request, if the record differs from it: role, managed, and the stub."""

    role: str
    managed: bool
    stub: str


class Plug(NamedTuple):
    """
    A device's part in plugging its unit into a running guest, or in unplugging it.

    ``unit`` names the device on the host, ``phase`` is one of ``PHASES``. ``alias`` is the name in QEMU, ``guest`` the
    address there; both are None for a function that the guest does not get.
    """

    unit: str
    phase: str
    alias: str | None
    guest: str | None


class Record(NamedTuple):
    """
    One device that pyhostdev detached or that a domain uses.

    ``moved`` is True if pyhostdev unbound the device from ``original.driver``; only then does it bind the device back.
    ``listed_as`` is the binding of a device that was on the inactive list before its owner got it; the device returns
    to that list. ``change`` is shared by the records of one prepare: they succeed or fail together. ``position`` is
    the device's place in the domain. ``since`` is when its owner asked for it, or when it came on the inactive list,
    in seconds since 1970 UTC; earlier versions did not write it. ``plug`` is None for a device that the guest got at
    its start, if its release was never requested. ``extra`` holds unknown fields as JSON.
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
    plug: Plug | None = None
    extra: str = _NO_EXTRA

    @property
    def is_active(self) -> bool:
        """On libvirt's active list: the device is being prepared, is prepared, or is being released."""
        return self.state != DETACHED

    @property
    def is_kept(self) -> bool:
        """Stays detached on release: it was detached before, or its owner declared it unmanaged."""
        return self.listed_as is not None or (not self.managed and self.owner is not None)

    @property
    def is_newer(self) -> bool:
        """Written by a newer pyhostdev: it is only known that the device is in use; only that version can act on it."""
        return self.state == NEWER

    def detached(self, since: int | None, target: str | None = None) -> Record:
        """Return the record of the device on the inactive list, with the time of the change."""
        changed = self._replace(state=DETACHED, owner=None, listed_as=None, nodes=(), asked=None, plug=None)
        return changed._replace(target=target or self.target, since=since)


_KNOWN = frozenset(Record._fields) - {"extra"}


def newer_text(address: PCIDeviceAddress) -> str:
    """Return the message about a device whose record has a newer version."""
    return (
        f"The record of device {address} was written by a newer pyhostdev: "
        "release or recover the device with that version"
    )


def encode(record: Record) -> bytes:
    """Return the bytes of a record's file."""
    fields = record._asdict()
    extra = fields.pop("extra")
    extra = {} if extra == _NO_EXTRA else parse_json(extra)
    fields["address"] = str(record.address)
    fields["original"] = record.original._asdict()
    fields["listed_as"] = record.listed_as and record.listed_as._asdict()
    fields["nodes"] = [node._asdict() for node in record.nodes]
    fields["asked"] = record.asked and record.asked._asdict()
    fields["plug"] = record.plug and record.plug._asdict()
    for name in ("original", "listed_as"):
        if fields[name] is not None:
            fields[name] = {**extra.pop(name, {}), **fields[name]}
    fields = {**extra, **fields}
    text = format_json(fields)
    return f'{{"crc32": {_checksum(text)}, "record": {text}, "version": {VERSION}}}\n'.encode()


def _checksum(text: str) -> int:
    import zlib  # a host without records needs none

    return zlib.crc32(text.encode())


def decode(data: bytes, name: str) -> Record:
    """Return the record in a file's bytes; raise ValueError with the reason if they are not a valid record."""
    try:
        text = parse_json(data)
        version, fields = text["version"], text["record"]
        if type(version) is not int or version < 1:
            raise ValueError(f"version {version!r} is unknown")
        if version > VERSION:
            return _newer(fields, name)
        if _checksum(format_json(fields)) != text["crc32"]:
            raise ValueError("its checksum is wrong")
        record = _record(fields)
    except (KeyError, TypeError, AttributeError, HostdevError) as err:
        raise ValueError(f"it is not a record ({err})") from None
    if record.state not in STATES or f"{record.address}{SUFFIX}" != name:
        raise ValueError("its state or its name is wrong")
    return record


def _newer(fields: Any, name: str) -> Record:
    """Return a placeholder for a record in a newer version: its device is in use, by its owner if that is known."""
    owner = fields.get("owner") if isinstance(fields, dict) else None
    if not isinstance(owner, str) or not _is_plain(owner):
        owner = "unknown (its record was written by a newer pyhostdev)"
    address = PCIDeviceAddress.parse(name.removesuffix(SUFFIX))
    if f"{address}{SUFFIX}" != name:
        raise ValueError("its name is wrong")
    return Record(address, NEWER, owner, False, False, "", _newer_original(fields), None)


def _newer_original(fields: Any) -> Binding:
    """Return the original binding of a device from a newer record, if its form is known."""
    try:
        return _binding(fields["original"])
    except (KeyError, TypeError, ValueError):
        return Binding(None, None, 0, "")


def _record(fields: Mapping[str, Any]) -> Record:
    """
    Return the record with these fields, after checking the type of each.

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
        plug=None if fields.get("plug") is None else _plug(fields["plug"]),
        extra=format_json(extra),
    )


def _plug(fields: Mapping[str, Any]) -> Plug:
    plug = Plug(
        _text(fields, "unit"),
        _text(fields, "phase"),
        _optional(fields, "alias", _text),
        _optional(fields, "guest", _text),
    )
    if plug.phase not in PHASES:
        raise ValueError(f"its phase '{plug.phase}' is unknown")
    return plug


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
        if re.fullmatch(_NODE_NAME, name) is None:
            raise ValueError(f"'{name}' is not the name of a node")
        yield GivenNode(name, *(_number(item, key) for key in GivenNode._fields[1:]))


def _typed(fields: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = fields[key] if default is None else fields.get(key, default)
    if type(value) is not kind:
        raise ValueError(f"its '{key}' is not of the type {kind.__name__}")
    return value


def _text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    text = str(_typed(fields, key, str, default))
    if not _is_plain(text):
        raise ValueError(f"its '{key}' has a character that no name has")
    return text


def _is_plain(text: str) -> bool:
    """Tell whether a text can be a part of a path; a lone surrogate of JSON has no bytes."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    return bool(_typed(fields, key, bool, None))


def _number(fields: Mapping[str, Any], key: str, default: int | None = None) -> int:
    return int(_typed(fields, key, int, default))


def _moment(fields: Mapping[str, Any], key: str) -> int:
    seconds = _number(fields, key)
    if not 0 <= seconds <= LAST_MOMENT:
        raise ValueError(f"its '{key}' is not a time")
    return seconds


def _optional(fields: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any], str], str]) -> str | None:
    return None if fields[key] is None else read(fields, key)
