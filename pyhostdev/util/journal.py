# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who wants which device, and what to restore: one small file a device, written before the kernel is touched.

The directory lies under /run and dies with the boot, as the kernel's bindings do. It is opened once and everything
in it is reached through that descriptor, never through a link; a file is replaced as a whole or not at all. A
record that cannot be trusted is set aside under another name and reported, and nobody acts on it.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pyhostdev.errors import HostdevError, OperationError, SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import Binding

VERSION = 1
SUFFIX = ".json"
ASIDE = ".bad"
RECORD_MAX = 16384  # bytes; a record has a few hundred

PREPARING = "preparing"
PREPARED = "prepared"
RELEASING = "releasing"
DETACHED = "detached"  # with a stub and nobody's: libvirt's inactive list
STATES = (PREPARING, PREPARED, RELEASING, DETACHED)


class Record(NamedTuple):
    """
    One device that we detached or that a domain uses.

    ``moved`` says that it was we who took it from ``original.driver``; only then is it given back.
    """

    address: PCIDeviceAddress
    state: str
    owner: str | None
    managed: bool
    moved: bool
    target: str
    original: Binding
    boot_id: str | None

    @property
    def is_active(self) -> bool:
        """On libvirt's active list: a domain has it, is getting it, or is giving it back."""
        return self.state != DETACHED


class BadRecord(NamedTuple):
    """A file of the journal that nobody can act on, and why."""

    name: str
    why: str


def read_boot_id(root: HostRoot) -> str | None:
    """Return the running kernel's boot id, None where the host has no such file."""
    try:
        with open(root.boot_id, encoding="ascii") as stream:
            return stream.read(64).strip()
    except FileNotFoundError:
        return None


def _encode(record: Record) -> bytes:
    fields = record._asdict()
    fields["address"] = str(record.address)
    fields["original"] = record.original._asdict()
    body = json.dumps(fields, sort_keys=True)
    text = {"version": VERSION, "crc32": zlib.crc32(body.encode()), "record": fields}
    return (json.dumps(text, sort_keys=True) + "\n").encode()


def _decode(data: bytes, name: str) -> Record:
    """Return the record in a file's bytes; ValueError says why it is none."""
    try:
        text = json.loads(data)
        version, fields = text["version"], text["record"]
        if version != VERSION:
            raise ValueError(f"version {version!r} is not {VERSION}")
        if zlib.crc32(json.dumps(fields, sort_keys=True).encode()) != text["crc32"]:
            raise ValueError("its checksum is wrong")
        fields["address"] = PCIDeviceAddress.parse(fields["address"])
        fields["original"] = Binding(**fields["original"])
        record = Record(**fields)
    except (KeyError, TypeError, AttributeError, RecursionError, HostdevError) as err:
        raise ValueError(f"it is no record ({err})") from None
    if record.state not in STATES or f"{record.address}{SUFFIX}" != name:
        raise ValueError("its state or its name is wrong")
    return record


class Journal:
    """
    The records below one state directory.

    Reading creates nothing; the first write makes the directory, mode 0700.
    """

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self._fd: int | None = None

    def close(self) -> None:
        """Close the directory; the next call opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self, *, create: bool) -> int | None:
        if self._fd is not None:
            return self._fd
        if create:
            os.makedirs(os.path.dirname(self.state_dir), exist_ok=True)
            with _tolerated(FileExistsError):
                os.mkdir(self.state_dir, 0o700)
        try:
            fd = os.open(
                self.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except FileNotFoundError:
            return None
        except OSError as err:
            raise SysfsError(err.errno or 0, self.state_dir, "open the state directory") from err
        self._fd = self._checked(fd)
        return self._fd

    def _checked(self, fd: int) -> int:
        """Refuse a directory that others could have written into."""
        facts = os.fstat(fd)
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
            os.close(fd)
            raise OperationError(
                f"State directory '{self.state_dir}' can be written by others", rolled_back=True
            )
        return fd

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the state directory for one change; a second process waits here."""
        fd = self._open(create=True)
        assert fd is not None
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def read(self) -> tuple[dict[PCIDeviceAddress, Record], list[BadRecord]]:
        """
        Return all records by address, in order, and the files that are none.

        Raises:
            SysfsError: the state directory is there and cannot be read.
        """
        fd = self._open(create=False)
        records: dict[PCIDeviceAddress, Record] = {}
        bad: list[BadRecord] = []
        for name in sorted(os.listdir(fd)) if fd is not None else ():
            if name.endswith((SUFFIX, ASIDE)):
                try:
                    record = self._read_one(name)
                    records[record.address] = record
                except ValueError as err:
                    bad.append(BadRecord(name, str(err)))
        return dict(sorted(records.items())), bad

    def _read_one(self, name: str) -> Record:
        if name.endswith(ASIDE):
            raise ValueError("it was set aside earlier")
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as err:
            raise ValueError(f"it cannot be opened ({err.strerror})") from None
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
                raise ValueError("it is no ordinary file")
            if facts.st_uid not in (0, os.geteuid()):
                raise ValueError("it belongs to somebody else")
            return _decode(os.read(fd, RECORD_MAX), name)
        finally:
            os.close(fd)

    def write(self, record: Record) -> None:
        """
        Put a record on disk, durably, in the place of an earlier one.

        Raises:
            SysfsError: the directory or the disk refuses; the earlier record stands.
        """
        try:
            self._replace(f"{record.address}{SUFFIX}", _encode(record))
        except OSError as err:
            if isinstance(err, HostdevError):
                raise
            raise SysfsError(
                err.errno or 0, self.state_dir, f"record device {record.address}"
            ) from err

    def _replace(self, name: str, data: bytes) -> None:
        top = self._open(create=True)
        assert top is not None
        temporary = f".{name}.{os.urandom(8).hex()}"
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=top
        )
        try:
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(28, "short write")
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=top, dst_dir_fd=top)
        except BaseException:
            with _tolerated(FileNotFoundError):
                os.unlink(temporary, dir_fd=top)
            raise
        os.fsync(top)

    def remove(self, address: PCIDeviceAddress) -> None:
        """Forget a device; nothing happens when there is no record of it."""
        top = self._open(create=False)
        if top is not None:
            with _tolerated(FileNotFoundError):
                os.unlink(f"{address}{SUFFIX}", dir_fd=top)
            os.fsync(top)

    def set_aside(self, bad: BadRecord) -> None:
        """Rename a file that is no record, so that it stays for a look and stands in nobody's way."""
        top = self._open(create=False)
        if top is not None and not bad.name.endswith(ASIDE):
            os.rename(bad.name, f"{bad.name}{ASIDE}", src_dir_fd=top, dst_dir_fd=top)


@contextmanager
def _tolerated(error: type[OSError]) -> Iterator[None]:
    try:
        yield
    except error:
        return
