# SPDX-License-Identifier: LGPL-2.1-or-later
"""Archives of hosts: equal hosts give equal bytes, and no archive writes outside its directory or without bounds."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from pyhostdev.errors import ConfigError
from pyhostdev.testing.fakehost import FakeHost, named_hosts, snapshot_tree
from pyhostdev.util import snapshotfile
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostsnapshot import take_snapshot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.record import STATES, SUFFIX, Binding, Record, encode
from pyhostdev.util.snapshotfile import MANIFEST, Manifest, pack, unpack

GOOD = Manifest("1", "6.1", False, (), ())


def member(name: str, content: bytes | str | None = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member: a file, a link if the content is text, a directory for None."""
    info = tarfile.TarInfo(name)
    data = content if isinstance(content, bytes) else b""
    info.size = len(data)
    if content is None:
        info.type = tarfile.DIRTYPE
    if isinstance(content, str):
        info.type, info.linkname = tarfile.SYMTYPE, content
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes], manifest: object = None) -> str:
    """Write an archive and return its path."""
    text = json.dumps(GOOD.to_json() if manifest is None else manifest).encode()
    with tarfile.open(path, "w:gz") as file:
        for info, data in (member(MANIFEST, text), *members):
            file.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """An empty directory to unpack into, among files that must not change."""
    (tmp_path / "beside").write_text("mine")
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


@pytest.mark.parametrize("name", named_hosts())
def test_what_was_taken_is_unpacked(name: str, tmp_path: Path) -> None:
    """Two archives are equal; the unpacked directory has all entries and gives the same snapshot."""
    fake = FakeHost.named(name, tmp_path / "host")
    before = fake.snapshot()
    taken = take_snapshot(fake.root)
    data = pack(taken, GOOD)
    assert data == pack(take_snapshot(fake.root), GOOD)
    assert before == fake.snapshot()
    (tmp_path / "s.tar.gz").write_bytes(data)
    (tmp_path / "again").mkdir()
    root = HostRoot(tmp_path / "again")
    assert GOOD == unpack(str(tmp_path / "s.tar.gz"), root)
    found = snapshot_tree(root.path)
    assert {path: found[path] for path in taken.entries} == taken.entries
    assert taken.entries == take_snapshot(root).entries


HOSTILE = {
    "above": [member("../x", b"1")],
    "above below": [member("a", None), member("a/../../x", b"1")],
    "absolute": [member("/tmp/x", b"1")],
    "dot": [member("./x", b"1")],
    "empty": [member("", b"1")],
    "no parent": [member("a/x", b"1")],
    "twice": [member("a", b"1"), member("a", b"2")],
    "directory twice": [member("a", None), member("a", None)],
    "link out": [member("a", "../beside")],
    "absolute link": [member("a", "/etc")],
    "link out and in": [member("a", None), member("a/b", "../../room/x")],
    "through a link": [member("a", None), member("l", "a"), member("l/x", b"1")],
    "holder's link out": [member("proc", None), member("proc/fd", None), member("proc/fd/1", "/dev/../../beside")],
    "hard link": [member("a", b"1"), member("b", b"", type=tarfile.LNKTYPE, linkname="../beside")],
    "device": [member("a", b"", type=tarfile.CHRTYPE)],
    "fifo": [member("a", b"", type=tarfile.FIFOTYPE)],
    "escape": [member("a\x1b[2J", b"1")],
    "long": [member("a" * 2000, b"1")],
    "deep": [member("/".join(["a"] * number), None) for number in range(1, 60)],
    "empty link": [member("a", "")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_are_refused(name: str, room: Path) -> None:
    """The refusal is one sentence, and nothing outside the directory was made or changed."""
    path = archive(room.parent / "s.tar.gz", *HOSTILE[name])
    with pytest.raises(ConfigError, match="is not"):
        unpack(path, HostRoot(room))
    assert {"beside", "room", "s.tar.gz"} == set(os.listdir(room.parent))
    assert "mine" == (room.parent / "beside").read_text()


def test_links_within_are_kept(room: Path) -> None:
    """Links of sysfs lead up and down, and an open file of a process starts at the root."""
    parts = [member(p, None) for p in ("a", "a/b", "proc", "proc/7", "proc/7/fd")]
    links = [member("a/b/l", "../../proc/7"), member("proc/7/fd/3", "/dev/vfio/14")]
    unpack(archive(room.parent / "s.tar.gz", *parts, *links), HostRoot(room))
    assert ("../../proc/7", "/dev/vfio/14") == (os.readlink(room / "a/b/l"), os.readlink(room / "proc/7/fd/3"))


@pytest.mark.parametrize(
    ("limit", "value", "members"),
    [
        ("TOTAL_MAX", 1 << 20, [member(f"f{number}", bytes(1 << 18)) for number in range(5)]),
        ("FILE_MAX", 1 << 16, [member("f", bytes(1 << 17))]),
        ("MEMBERS_MAX", 3, [member(f"f{number}") for number in range(5)]),
    ],
)
def test_sizes_are_bounded(
    limit: str, value: int, members: list[tuple[tarfile.TarInfo, bytes]], room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decompression bombs, large files and many members are refused."""
    monkeypatch.setattr(snapshotfile, limit, value)
    with pytest.raises(ConfigError, match=f"more than {value}"):
        unpack(archive(room.parent / "s.tar.gz", *members), HostRoot(room))
    assert sum(path.stat().st_size for path in room.iterdir()) <= value


@pytest.mark.parametrize(
    "data", [b"", b"no archive", gzip.compress(b"no archive", mtime=0), gzip.compress(bytes(1024), mtime=0)]
)
def test_other_files_are_refused(data: bytes, room: Path) -> None:
    """A file that is not gzip, not tar, or has no manifest is refused."""
    (room.parent / "s").write_bytes(data)
    with pytest.raises(ConfigError, match="not a snapshot|not valid"):
        unpack(str(room.parent / "s"), HostRoot(room))


@pytest.mark.parametrize("cut", [10, 100, 400])
def test_a_cut_archive_is_refused(cut: int, room: Path) -> None:
    """A truncated archive is refused."""
    path = archive(room.parent / "s", member("f", os.urandom(1000)))
    Path(path).write_bytes(Path(path).read_bytes()[:cut])
    with pytest.raises(ConfigError):
        unpack(path, HostRoot(room))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({**GOOD.to_json(), "version": 2}, "has version 2"),
        ({**GOOD.to_json(), "format": "x"}, "manifest is not valid"),
        ({**GOOD.to_json(), "unreadable": 1}, "manifest is not valid"),
        ([], "manifest is not valid"),
    ],
)
def test_wrong_manifests_are_refused(manifest: object, words: str, room: Path) -> None:
    """A newer version has another message than a file that is not a snapshot."""
    with pytest.raises(ConfigError, match=words):
        unpack(archive(room.parent / "s", manifest=manifest), HostRoot(room))


def record_of(address: PCIDeviceAddress) -> bytes:
    """Return a valid record of a device, as a host keeps it."""
    binding = Binding("vfio-pci", None, 7, "0x10de:0x1eb8")
    return encode(Record(address, STATES[0], "vm", True, True, "vfio-pci", binding, None))


@pytest.mark.parametrize("how", ["link", "address", "relative address"])
def test_records_outside_are_not_changed(how: str, room: Path) -> None:
    """An archive that lists a device as present cannot change another host's records, by a link or a path."""
    address = PCIDeviceAddress.parse("0000:01:00.0")
    live = room.parent / "live"
    live.mkdir()
    victim = live / f"{address}{SUFFIX}"
    victim.write_bytes(record_of(address))
    root = HostRoot(room)
    device, state = (os.path.relpath(path, room) for path in (root.pci_device(address), root.state_dir))
    above = [member(part, None) for part in parents(device)]
    present = {"link": str(address), "address": f"{live}/{address}", "relative address": f"../../../live/{address}"}[
        how
    ]
    if how == "link":
        above += [member(part, None) for part in (*parents(state), "proc", "proc/1", "proc/1/fd")]
        above += [member("proc/1/fd/3", str(live)), member(state, "../proc/1/fd/3")]
    else:
        above += [member(part, None) for part in parents(f"{state}/x")]
    manifest = GOOD._replace(present=(present,)).to_json()
    before = victim.read_bytes()
    unpack(archive(room.parent / "s.tar.gz", *above, member(device, None), manifest=manifest), root)
    assert before == victim.read_bytes()


def parents(path: str) -> list[str]:
    """Return the directories above a path, the topmost first."""
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts))]


def raw_header(kind: bytes, data: bytes, name: str = "x") -> bytes:
    """Return a header of any type with its data, padded."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


HEADERS = {
    "a long name": raw_header(tarfile.GNUTYPE_LONGNAME, b"a" * (4 << 20)),
    "pax fields": raw_header(tarfile.XHDTYPE, b"4194304 a=" + b"b" * ((4 << 20) - 10)),
    "global pax fields": raw_header(tarfile.XGLTYPE, b"4194304 a=" + b"b" * ((4 << 20) - 10)),
    "a chain of headers": raw_header(tarfile.XHDTYPE, b"6 a=b\n") * 900,
    "a sparse file": raw_header(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + raw_header(b"0", b"9999999\n" + b"0\n" * (2 << 20)),
    "an old sparse file": raw_header(tarfile.GNUTYPE_SPARSE, b"1" * 512),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_bounded(name: str, room: Path) -> None:
    """Header names and fields without bounds are refused with one sentence."""
    text = json.dumps(GOOD.to_json()).encode()
    data = raw_header(b"0", text, MANIFEST) + HEADERS[name] + raw_header(b"0", b"", "end") + bytes(1024)
    (room.parent / "s").write_bytes(gzip.compress(data))
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError):
            unpack(str(room.parent / "s"), HostRoot(room))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert [] == os.listdir(room)
