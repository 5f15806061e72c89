# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Snapshots of hosts as archives: equal hosts give equal bytes, and an archive is unpacked without trusting it.

An archive is a gzip-compressed tar file whose first member is ``manifest.json``. It may come from anyone: its members
are regular files, directories and links, each below a directory of this archive, and all sizes are bounded.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pyhostdev.errors import ConfigError, HostdevError
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.record import NEWER, SUFFIX, decode, encode
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import read_status
from pyhostdev.util.virjson import parse_json

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.hostsnapshot import HostSnapshot

FORMAT, VERSION = "pyhostdev-snapshot", 1
MANIFEST = "manifest.json"
TOTAL_MAX = 512 << 20  # bytes after decompression; 10,000 functions take 120 MiB
MEMBERS_MAX = 1 << 20
FILE_MAX = 16 << 20
HEADER_MAX = 1 << 16  # bytes read to find the next member: its name, the target of a link, a few pax fields
NAME_MAX = 1024
DEPTH_MAX = 48
_PLAIN = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
_USTAR = b"ustar\x0000"
_TEXTS = ((0, 100), (345, 155), (157, 100))  # of a header: name, what precedes it, target of a link
_HOLDERS = ("proc", "fd")  # the only place of links that start at the root: open files of processes


class Manifest(NamedTuple):
    """The description of a snapshot, from its manifest."""

    pyhostdev: str
    kernel: str | None
    redacted: bool
    unreadable: tuple[str, ...]
    present: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as in the archive."""
        return {"format": FORMAT, "version": VERSION, **self._asdict()}

    @classmethod
    def parse(cls, data: bytes, name: str) -> Manifest:
        """
        Read a manifest.

        Raises:
            ConfigError: it is not a manifest, or has a newer version.
        """
        try:
            found = parse_json(data)
            if found["format"] != FORMAT:
                raise ValueError("format")
            if found["version"] != VERSION:
                raise ConfigError(f"Snapshot '{name}' has version {found['version']!a}, and {VERSION} is known")
            kernel = found["kernel"]
            lists = [tuple(map(str, found[key])) for key in ("unreadable", "present")]
            return cls(
                str(found["pyhostdev"]), None if kernel is None else str(kernel), bool(found["redacted"]), *lists
            )
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"'{name}' is not a snapshot of a host: its manifest is not valid") from None


def pack(snapshot: HostSnapshot, manifest: Manifest) -> bytes:
    """Return a snapshot as an archive; equal snapshots give equal bytes."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        text = json.dumps(manifest.to_json(), indent=2, sort_keys=True) + "\n"
        _put(archive, MANIFEST, text.encode("utf-8", "surrogateescape"))
        made = {""}
        for path, content in snapshot.entries.items():
            _put_parents(archive, path, made)
            if content is not None or path not in made:
                _put(archive, path, content)
                made.add(path)
    return buffer.getvalue()


def _put_parents(archive: tarfile.TarFile, path: str, made: set[str]) -> None:
    parent = os.path.dirname(path)
    if parent not in made:
        _put_parents(archive, parent, made)
        _put(archive, parent, None)
        made.add(parent)


def _put(archive: tarfile.TarFile, path: str, content: bytes | str | None) -> None:
    member = tarfile.TarInfo(path)
    member.mode = 0o755 if content is None else 0o644
    if content is None:
        member.type = tarfile.DIRTYPE
    elif isinstance(content, str):
        member.type, member.linkname = tarfile.SYMTYPE, content
    else:
        member.size = len(content)
    archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)


class _PlainHeader(tarfile.TarInfo):
    """
    A member's header; of plain headers, such as ours, only the needed fields are read.

    Source: POSIX.1-2017, pax, "ustar Interchange Format"
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _PlainHeader:
        """Return the header in a block; tarfile parses any that is not plain."""
        kind, size, checksum = buf[156:157], bytes(buf[124:135]), bytes(buf[148:154])
        is_plain = len(buf) == tarfile.BLOCKSIZE and kind in _PLAIN and buf[257:265] == _USTAR
        if not (is_plain and size.isdigit() and checksum.isdigit() and bytes(buf).isascii()):
            return super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if int(checksum, 8) != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        name, prefix, target = (bytes(buf[at : at + most]).partition(b"\0")[0].decode() for at, most in _TEXTS)
        member = cls(f"{prefix}/{name}" if prefix else name)
        member.type, member.size, member.linkname = bytes(kind), int(size, 8), target
        member.name = member.name.rstrip("/") if kind == tarfile.DIRTYPE else member.name
        return member


class _Bounded(io.RawIOBase):
    """
    A stream that refuses to be read further than a limit: a few bytes can decompress to very many.

    Headers have a limit of their own, because tarfile keeps the names and fields in them in memory.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream = stream
        self.name = name
        self.left = TOTAL_MAX
        self.header_left = HEADER_MAX

    def readable(self) -> bool:
        """Return True."""
        return True

    def allow(self, content: int = 0) -> None:
        """Set how much may be read now: the content of a member, and the headers of the next one."""
        self.header_left = content + HEADER_MAX

    def read(self, size: int = -1) -> bytes:
        """Return bytes of the stream."""
        most = min(self.left, self.header_left) + 1
        data = self.stream.read(min(size, most) if size >= 0 else most)
        self.left -= len(data)
        self.header_left -= len(data)
        if self.left < 0:
            raise ConfigError(f"Snapshot '{self.name}' has more than {TOTAL_MAX} bytes")
        if self.header_left < 0:
            raise ConfigError(f"Snapshot '{self.name}' has a header of more than {HEADER_MAX} bytes")
        return data


def unpack(path: str, root: HostRoot) -> Manifest:
    """
    Unpack an archive into an empty directory that only this user can write to, and return its manifest.

    Raises:
        ConfigError: it cannot be read, is not a snapshot, or has a member that a snapshot cannot have.
    """
    try:
        with open(path, "rb") as stream, gzip.GzipFile(fileobj=stream) as packed:
            bounded = _Bounded(packed, path)  # type: ignore[arg-type]  # a GzipFile reads like a file
            with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_PlainHeader) as archive:
                unpacker = _Unpacker(archive, path, root.path, bounded)
                manifest = unpacker.run()
    except (OSError, EOFError, tarfile.TarError, ValueError, OverflowError, RecursionError, zlib.error) as err:
        raise ConfigError(f"'{path}' is not a snapshot of a host: {err}") from err
    _refresh_records(root, manifest, unpacker.files)
    return manifest


class _Unpacker:
    """Writes members below a directory: never through a link, never twice, never outside."""

    def __init__(self, archive: tarfile.TarFile, name: str, directory: str, stream: _Bounded) -> None:
        self.archive = archive
        self.name = name
        self.directory = directory
        self.stream = stream
        self.directories = {""}
        self.others: set[str] = set()
        self.files: set[str] = set()  # of these no part of the path is a link

    def run(self) -> Manifest:
        """Write all members, the manifest excepted, and return the manifest."""
        first = self.archive.next()
        if first is None or first.name != MANIFEST or not first.isreg():
            self._refuse(MANIFEST, "has to be the first member")
        manifest = Manifest.parse(self._content(first), self.name)
        for number, member in enumerate(iter(self.archive.next, None)):
            if number >= MEMBERS_MAX:
                raise ConfigError(f"Snapshot '{self.name}' has more than {MEMBERS_MAX} members")
            self._write(member)
            self.archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member that it has read
            self.stream.allow()
        return manifest

    def _refuse(self, member: str, why: str) -> NoReturn:
        raise ConfigError(f"Snapshot '{self.name}' is not valid: {member[:128]!a} {why}")

    def _content(self, member: tarfile.TarInfo) -> bytes:
        if member.size > FILE_MAX:
            self._refuse(member.name, f"has more than {FILE_MAX} bytes")
        self.stream.allow(member.size)
        if member.type != tarfile.REGTYPE or member.issparse():
            stream = self.archive.extractfile(member)
            return b"" if stream is None else stream.read(member.size)
        source = self.archive.fileobj
        assert source is not None
        source.seek(member.offset_data)
        data = source.read(member.size)
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def _check_place(self, path: str) -> None:
        parts = path.split("/")
        if len(path) > NAME_MAX or len(parts) > DEPTH_MAX or not path.isprintable():
            self._refuse(path, "has an invalid name")
        if any(part in ("", ".", "..") for part in parts):
            self._refuse(path, "is not a path below the root")
        if os.path.dirname(path) not in self.directories:
            self._refuse(path, "is not in a directory of the snapshot")
        if path in self.directories or path in self.others:
            self._refuse(path, "is there twice")

    def _write(self, member: tarfile.TarInfo) -> None:
        path = member.name
        self._check_place(path)
        if member.issparse():
            self._refuse(path, "is not stored as a whole")
        where = os.path.join(self.directory, path)
        if member.isdir():
            os.mkdir(where, 0o700)
            self.directories.add(path)
            return
        self.others.add(path)
        if member.issym():
            self._check_target(path, member.linkname)
            os.symlink(member.linkname, where)
        elif member.isreg():
            _write_new(where, self._content(member))
            self.files.add(path)
        else:
            self._refuse(path, "is neither a file nor a directory nor a link")

    def _check_target(self, path: str, target: str) -> None:
        """Refuse a link that leads out of the root."""
        if not target or len(target) > NAME_MAX or not target.isprintable():
            self._refuse(path, "is a link with an invalid target")
        if target.startswith("/"):
            parts = path.split("/")
            if (parts[0], parts[-2:][0]) != _HOLDERS or ".." in target.split("/"):
                self._refuse(path, "is a link that leads out of the snapshot")
            return
        depth = path.count("/")
        for part in target.split("/"):
            depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
            if depth < 0:
                self._refuse(path, "is a link that leads out of the snapshot")


def _write_new(path: str, content: bytes) -> None:
    """Write a file that must not exist."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)


def _refresh_records(root: HostRoot, manifest: Manifest, files: set[str]) -> None:
    """
    Let the records of devices that were present name the unpacked directories: an inode number is not portable.

    Args:
        files: the regular files of the archive; nothing else is written to, wherever links and addresses lead.
    """
    for text in manifest.present:
        with contextlib.suppress(ValueError, HostdevError):  # not an address, no record, no device
            _refresh_record(root, PCIDeviceAddress.parse(text), files)


def _refresh_record(root: HostRoot, address: PCIDeviceAddress, files: set[str]) -> None:
    path = os.path.join(root.state_dir, f"{address}{SUFFIX}")
    device = read_status(root, root.pci_device(address))
    if os.path.relpath(path, root.path) not in files or device is None:
        return
    with open(path, "rb") as file:
        record = decode(file.read(), os.path.basename(path))
    if record.state == NEWER:
        return
    original = record.original._replace(incarnation=device.st_ino)
    with open(path, "wb") as file:
        file.write(encode(record._replace(original=original)))
