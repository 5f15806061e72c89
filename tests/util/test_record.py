# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of other versions: older ones are read, unknown fields survive, a newer one is in use and left alone."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from pyhostdev.errors import InternalError
from pyhostdev.util.journal import DETACHED, PREPARED, Journal, Record
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import Binding
from pyhostdev.util.record import VERSION, Asked, GivenNode, decode, encode

ADDRESS = PCIDeviceAddress.parse("0001:09:00.0")
NAME = f"{ADDRESS}.json"
FIRST_RELEASE = Path(__file__).parents[2] / "testdata" / "records-0.1.0"
ORIGINAL = Binding("tg3", None, 42, "14e4:1657:-:-:20000")
NODE = GivenNode("14", 5, 6, 0, 0, 0o600, 107, 36)
WHOLE = Record(ADDRESS, PREPARED, "vm1", True, True, "vfio-pci", ORIGINAL, "boot", ORIGINAL, "name", 3, (NODE,),
               Asked("assigned", True, "vfio-pci"), 1_790_000_000)  # fmt: skip


def file_of(fields: dict[str, Any], version: int = VERSION) -> bytes:
    """Return the bytes of a file with a valid checksum and any contents."""
    body = json.dumps(fields, sort_keys=True)
    return json.dumps({"version": version, "crc32": zlib.crc32(body.encode()), "record": fields}).encode()


def fields_of(record: Record) -> dict[str, Any]:
    """Return a record's fields as they are in its file."""
    fields: dict[str, Any] = json.loads(encode(record))["record"]
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "run" / "pyhostdev"))


def put(journal: Journal, data: bytes, name: str = NAME) -> None:
    """Write a file of the journal as another program might."""
    os.makedirs(journal.state.path, mode=0o700, exist_ok=True)
    Path(journal.state.path, name).write_bytes(data)


@pytest.mark.fault("F24")
def test_records_of_the_first_release_are_read(journal: Journal) -> None:
    """Every later version reads all fields of records that 0.1.0 wrote."""
    for path in FIRST_RELEASE.iterdir():
        put(journal, path.read_bytes(), path.name.replace("-", ":"))
    records, bad = journal.read()
    assert [] == bad
    assert [0, 1, 2, 3] == [address.function for address in records]
    assert [PREPARED, PREPARED, DETACHED, PREPARED] == [record.state for record in records.values()]
    assert [("vm1", True), ("vm1", False), (None, False), ("vm1", True)] == [
        (record.owner, record.managed) for record in records.values()
    ]
    assert {"tg3"} == {record.original.driver for record in records.values()}
    assert [None, "pci-stub", None, None] == [r.listed_as and r.listed_as.driver for r in records.values()]
    assert {((), None)} == {(record.nodes, record.asked) for record in records.values()}


def test_every_field_comes_back() -> None:
    """A record with all fields is equal after a round trip."""
    assert decode(encode(WHOLE), NAME) == WHOLE


@pytest.mark.fault("F24")
def test_unknown_fields_survive_a_rewrite(journal: Journal) -> None:
    """Fields of another program survive our change of the record."""
    fields = fields_of(WHOLE) | {"vf": {"mac": "52:54:00:00:00:01"}, "extra": [1], "unit": "qemu-vm1.scope"}
    fields["original"]["power"] = "D0"
    fields["listed_as"]["power"] = "D3hot"
    put(journal, file_of(fields))
    record = journal.read()[0][ADDRESS]
    journal.write(record._replace(state=DETACHED, owner=None))
    again = json.loads(Path(journal.state.path, NAME).read_bytes())["record"]
    assert again == fields | {"state": DETACHED, "owner": None}


@pytest.mark.fault("F24")
@pytest.mark.parametrize("owner", ["vm1", None, 5])
def test_device_of_a_newer_record_is_in_use(journal: Journal, owner: object) -> None:
    """Unknown version: the device is in use, the error names the remedy, and the file stays unchanged."""
    data = file_of({"owner": owner, "devices": ["another", "form"]}, VERSION + 1)
    put(journal, data)
    records, bad = journal.read()
    assert records[ADDRESS].is_active
    assert isinstance(records[ADDRESS].owner, str)
    assert [(NAME, True)] == [(item.name, item.is_newer) for item in bad]
    assert "newer pyhostdev: release or recover the device with that version" in bad[0].why
    journal.set_aside(bad[0])
    with pytest.raises(InternalError):
        journal.write(records[ADDRESS])
    assert data == Path(journal.state.path, NAME).read_bytes()


WRONG = {
    "owner": 5, "managed": "yes", "moved": 1, "target": None, "state": [], "boot_id": {}, "change": 7, "position": True,
    "original": "tg3", "listed_as": {"driver": "tg3"}, "address": 9, "nodes": [{"name": "14"}], "asked": "yes",
}  # fmt: skip


@pytest.mark.fault("F24")
@pytest.mark.parametrize("key", WRONG)
def test_field_of_another_type_is_reported(journal: Journal, key: str) -> None:
    """A field of a wrong type makes a bad record, even with a valid checksum, and never a later exception."""
    put(journal, file_of(fields_of(WHOLE) | {key: WRONG[key]}))
    records, bad = journal.read()
    assert ({}, [NAME]) == (records, [item.name for item in bad])


@pytest.mark.parametrize("since", [-1, 253402300800, True, 1.5, "2026-11-26"])
def test_since_is_a_moment(since: object) -> None:
    """Seconds outside the calendar make a bad record."""
    with pytest.raises(ValueError, match="'since'"):
        decode(file_of(fields_of(WHOLE) | {"since": since}), NAME)


@pytest.mark.parametrize("name", ["../../etc/passwd", "14/..", "vfio", "devices/vfio", "devices/vfio1/2", "", "１"])
def test_name_of_a_node_leads_nowhere_else(name: str) -> None:
    """A node's name is a group's number or a device below dev/vfio/devices."""
    fields = fields_of(WHOLE)
    fields["nodes"][0]["name"] = name
    with pytest.raises(ValueError, match="name of a node"):
        decode(file_of(fields), NAME)
