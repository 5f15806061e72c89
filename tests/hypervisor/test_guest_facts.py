# SPDX-License-Identifier: LGPL-2.1-or-later
"""The file with the facts about a running guest, and the messages about a file that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyhostdev.errors import RefusedError
from pyhostdev.hypervisor.guest_facts import GuestFacts, unreadable_guests
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.virhostdev import HostdevManager
from pyhostdev.qemu.qemu_hotplug.control import running_guest
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

FACTS = GuestFacts("vm1", 1, "12.8", (107, 36))
NEWER = FACTS.to_bytes().replace(b'"version": 1', b'"version": 2')


def guest(fake: FakeHost, data: bytes | None, name: str = "domain-7-vm1") -> Path:
    """Make a runtime directory; without data it has no file yet."""
    directory = Path(fake.root.state_dir, "lib/qemu", name)
    directory.mkdir(parents=True, mode=0o755)
    if data is not None:
        (directory / "guest.json").write_bytes(data)
    return directory


def test_facts_are_read_as_they_were_written() -> None:
    """What one process writes, another reads."""
    assert FACTS == GuestFacts.from_bytes(FACTS.to_bytes())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (NEWER, "it was written by another version"),
        (b'{"version": 2}', "it was written by another version"),
        (b'{"version": 1, "name": "vm1"}', "a field is missing or malformed"),
        (b"\xff\x1b[31m", "can't decode"),
        (b"[1]", "a field is missing or malformed"),
        (FACTS.to_bytes().replace(b'"pid": 1', b'"pid": "' + b"9\\n" * 4000 + b'"'), "invalid literal"),
        (b" " * (1 << 22), "it has more than"),
    ],
)
def test_a_guest_that_cannot_be_read_is_named(
    data: bytes, why: str, bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """status, recover and a hot-plug say it in one line each, bounded and escaped."""
    guest(bcm5719, data)
    ((name, found, _),) = unreadable_guests(Host(bcm5719.root).state())
    assert ("domain-7-vm1", True) == (name, why in found)
    assert 0 == main(["status", "--root", bcm5719.root.path])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pyhostdev: The guest in 'domain-7-vm1' is unknown, because its guest.json cannot be used: ")
    assert len(line) < 400
    assert line.isprintable()
    assert 0 == main(["recover", "--simulate", "--root", bcm5719.root.path])
    assert "The guest in 'domain-7-vm1' is unknown" in capsys.readouterr().out
    with pytest.raises(RefusedError) as raised:
        running_guest(HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel)), "vm1", needs_owner=True)
    assert ["guest-absent"] * 2 == [finding.reason for finding in raised.value.findings]


def test_a_guest_that_starts_is_no_problem(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Its directory is there before its file; other directories are not guests."""
    guest(bcm5719, None)
    guest(bcm5719, FACTS.to_bytes(), "domain-8-vm2")
    guest(bcm5719, NEWER, "master-key")
    assert [] == unreadable_guests(Host(bcm5719.root).state())
    assert 0 == main(["status", "--root", bcm5719.root.path])
    assert "" == capsys.readouterr().err


@pytest.mark.parametrize("name", ["lib", "lib/qemu", "lib/qemu/domain-7-vm1", "lib/qemu/domain-7-vm1/guest.json"])
def test_a_link_in_its_place_is_not_followed(
    name: str, bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """status names the place, reads nothing behind it and goes on."""
    guest(bcm5719, FACTS.to_bytes())
    place = Path(bcm5719.root.state_dir, name)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert 0 == main(["status", "--root", bcm5719.root.path])
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be used" in line
    assert os.path.islink(place)
