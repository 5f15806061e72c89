# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal: only complete records, no path through links, no action on an untrusted record."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pyhostdev.errors import OperationError, SysfsError
from pyhostdev.util.journal import PREPARED, Journal, Record
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import Binding

ADDRESS = PCIDeviceAddress.parse("0001:09:00.0")


def record(**changes: object) -> Record:
    original = Binding(driver="tg3", override=None, incarnation=42, fingerprint="14e4:1657:-:-:20000")
    whole = Record(ADDRESS, PREPARED, "vm1", True, True, "vfio-pci", original, "boot")
    return whole._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "run" / "pyhostdev"))


def test_what_is_written_is_read_by_another_process(journal: Journal) -> None:
    """A second journal on the same directory has the same record."""
    journal.write(record())
    assert ({ADDRESS: record()}, []) == Journal(journal.state.path).read()


def test_reading_creates_nothing(journal: Journal) -> None:
    """An unwritten journal is empty and leaves no directory."""
    assert journal.read() == ({}, [])
    assert not os.path.exists(journal.state.path)


def test_bytes_of_a_driver_name_survive(journal: Journal) -> None:
    """An override that is not UTF-8 survives a round trip."""
    odd = record(original=record().original._replace(override="a\udcffb"))
    journal.write(odd)
    assert odd == journal.read()[0][ADDRESS]


@pytest.mark.parametrize("cut", range(0, 260, 13))
def test_torn_record_is_reported_and_not_used(journal: Journal, cut: int) -> None:
    """A record cut anywhere is invalid, and others stay readable."""
    other = record(address=ADDRESS.with_function(1))
    journal.write(record())
    journal.write(other)
    path = Path(journal.state.path, f"{ADDRESS}.json")
    path.write_bytes(path.read_bytes()[:cut])
    records, bad = journal.read()
    assert {other.address: other} == records
    assert [f"{ADDRESS}.json"] == [item.name for item in bad]


@pytest.mark.parametrize(
    "change", [{"version": 0}, {"version": "2"}, {"crc32": 0}, {"record": {}}, {"record": None}, []]
)
def test_foreign_record_is_reported(journal: Journal, change: object) -> None:
    """Another version, a wrong checksum or another form is set aside."""
    journal.write(record())
    path = Path(journal.state.path, f"{ADDRESS}.json")
    value = json.loads(path.read_text())
    value = {**value, **change} if isinstance(change, dict) else change
    path.write_text(json.dumps(value))
    records, bad = journal.read()
    assert (len(records), len(bad)) == (0, 1)


def test_set_aside_keeps_the_file(journal: Journal) -> None:
    """A bad record is renamed and still reported; a new one can be written."""
    journal.write(record())
    Path(journal.state.path, f"{ADDRESS}.json").write_text("{")
    journal.set_aside(journal.read()[1][0])
    journal.write(record())
    records, bad = journal.read()
    assert {ADDRESS: record()} == records
    assert [f"{ADDRESS}.json.bad"] == [item.name for item in bad]


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory"])
def test_planted_entry_is_not_followed(journal: Journal, tmp_path: Path, kind: str) -> None:
    """A link, a pipe or a directory in place of a record is refused without a wait."""
    journal.write(record())
    path = Path(journal.state.path, f"{ADDRESS}.json")
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if kind == "symlink":
        path.symlink_to(elsewhere)
    elif kind == "hardlink":
        path.hardlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    records, bad = journal.read()
    assert (len(records), len(bad)) == (0, 1)


def test_state_directory_must_be_ours(journal: Journal) -> None:
    """A directory that others can write into is refused."""
    os.makedirs(journal.state.path)
    os.chmod(journal.state.path, 0o777)
    with pytest.raises(OperationError, match="others"):
        journal.read()


def test_state_directory_may_not_be_a_link(journal: Journal, tmp_path: Path) -> None:
    """A link in the state directory's place is refused."""
    (tmp_path / "run").mkdir()
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", journal.state.path)
    with pytest.raises(OperationError, match="is a link") as refusal:
        journal.read()
    assert "state-directory" == refusal.value.reason


def test_failed_write_leaves_the_earlier_record(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an error, the earlier record remains, and no temporary file is left."""
    journal.write(record())

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SysfsError) as error:
        journal.write(record(owner="vm2"))
    assert error.value.errno == 28
    assert journal.read()[0][ADDRESS].owner == "vm1"
    assert [f"{ADDRESS}.json"] == os.listdir(journal.state.path)


def test_journals_leave_no_descriptor(journal: Journal) -> None:
    """Repeated plans do not leave directories open."""
    journal.write(record())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        Journal(journal.state.path).read()
    assert before >= len(os.listdir("/proc/self/fd"))
