# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files below a --root directory whose content is hostile: links in a circle, deep JSON, endless sections."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import hostile
import pytest

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.pciids import PCIIds

CARD = [f"0001:09:00.{function}" for function in range(4)]
FIRMWARE: dict[str, Any] = {
    "interface-types": ["uefi"],
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/code.fd", "format": "raw"},
        "nvram-template": {"filename": "/vars.fd", "format": "raw"},
    },
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    "features": [],
}
GUEST = """<domain type='kvm'><name>vm</name><memory unit='MiB'>512</memory><os firmware='efi'>
<type arch='x86_64' machine='q35'>hvm</type></os></domain>"""


@pytest.fixture(autouse=True)
def more_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs that follow links between functions, or choose firmware."""
    (tmp_path / "guest.xml").write_text(GUEST)
    verbs = {
        "topology": ("topology",),
        "graph": ("topology", "--dot"),
        "pins": ("xml", hostile.SEED, "--pin-devices"),
        "argv": ("argv", str(tmp_path / "guest.xml")),
    }
    monkeypatch.setattr(hostile, "VERBS", {**hostile.VERBS, **verbs})


def device(fake: FakeHost, address: str) -> Path:
    return Path(os.path.realpath(fake.root.pci_device(address)))


@pytest.mark.parametrize("verb", ["topology", "graph", "pins", "plan", "show-xml"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_functions_that_are_vfs_of_each_other(bcm5719: FakeHost, length: int, verb: str) -> None:
    """A circle of PFs ends: each function is shown once."""
    for address, pf in zip(CARD[:length], [*CARD[1:length], CARD[0]], strict=True):
        (device(bcm5719, address) / "physfn").symlink_to(f"../{pf}")
    answer = hostile.ask(Path(bcm5719.root.path), verb)
    assert [] == hostile.faults_of(answer), answer.text[-2000:]
    assert verb != "topology" or all(1 == answer.text.count(f"{address}  ") for address in CARD)


def test_chain_of_functions(bcm5719: FakeHost) -> None:
    """A tree that is deeper than in any host starts again at its top; every function is in it."""
    top, addresses = device(bcm5719, CARD[0]).parent, [f"{n:05x}:00:00.0" for n in range(0x10000, 0x10000 + 1500)]
    for address, pf in itertools.pairwise([*addresses, CARD[0]]):
        (top / address).mkdir()
        (top / address / "physfn").symlink_to(f"../{pf}")
        Path(bcm5719.root.pci_device(address)).symlink_to(top / address)
    Path(bcm5719.root.pci_device(addresses[0])).resolve()
    answer = hostile.ask(Path(bcm5719.root.path), "topology")
    assert [] == hostile.faults_of(answer), answer.text[-2000:]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 60_000,
        b'{"mapping":' * 5_000,
        b'{"mapping":' + b"9" * 60_000 + b"}",
        b'{"mapping":NaN}',
        b"null",
        b'"text"',
        b"\xff",
        json.dumps({**FIRMWARE, "targets": [{"architecture": "x86_64", "machines": [5]}]}).encode(),
        json.dumps({**FIRMWARE, "targets": [{"architecture": "x86_64", "machines": "*"}]}).encode(),
        json.dumps({**FIRMWARE, "targets": 5}).encode(),
        json.dumps({**FIRMWARE, "features": [[]]}).encode(),
        json.dumps({**FIRMWARE, "mapping": {**FIRMWARE["mapping"], "mode": []}}).encode(),
        json.dumps({**FIRMWARE, "mapping": {**FIRMWARE["mapping"], "mode": "other"}}).encode(),
        json.dumps({**FIRMWARE, "mapping": {"device": "memory", "filename": None}}).encode(),
        json.dumps({**FIRMWARE, "mapping": {"device": "memory", "filename": "/a\ud800"}}).encode(),
        json.dumps({**FIRMWARE, "mapping": {"device": "memory", "filename": "/a\0\x1b[31m"}}).encode(),
        json.dumps(FIRMWARE).encode().ljust(70_000),
    ],
    ids=range(17),
)
def test_descriptor_that_is_not_one(bcm5719: FakeHost, content: bytes) -> None:
    """A firmware descriptor with other content is refused in one sentence that names the file."""
    directory = Path(bcm5719.root.firmware_descriptors[0])
    directory.mkdir(parents=True)
    (directory / "10-hostile.json").write_bytes(content)
    (directory / "50-good.json").write_text(json.dumps(FIRMWARE))
    answer = hostile.ask(Path(bcm5719.root.path), "argv")
    assert [] == hostile.faults_of(answer), answer.text[-2000:]
    assert (1, True) == (answer.code, "10-hostile.json" in answer.text), answer.text


def test_more_descriptors_than_any_host_has(bcm5719: FakeHost) -> None:
    """They are refused before any of them is read."""
    directory = Path(bcm5719.root.firmware_descriptors[0])
    directory.mkdir(parents=True)
    for number in range(300):
        (directory / f"{number}.json").write_text(json.dumps(FIRMWARE))
    answer = hostile.ask(Path(bcm5719.root.path), "argv")
    assert (1, []) == (answer.code, hostile.faults_of(answer))


@pytest.mark.parametrize(
    "text",
    [
        b"14e4  Name\n" + b"\n" * (4 << 20),
        b"14e4  Name\n" + b"\t\n" * (2 << 20),
        b"14e4  " + b"Name" * (1 << 20),
        b"14e4  Name\n\t1657  " + "\u202e\x1b\u009b".encode() * (1 << 20),
    ],
    ids=["lines", "devices", "one line", "controls"],
)
def test_list_of_names_with_an_endless_section(text: bytes) -> None:
    """What is looked at about one vendor has a limit, and so has a name."""
    names = PCIIds(text)
    assert len(names.name(0x14E4, 0x1657)) < 300
    assert names.name(0x14E4, 0x1657).isprintable()
    assert "8086 1657" == names.name(0x8086, 0x1657)
