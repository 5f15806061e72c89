# SPDX-License-Identifier: LGPL-2.1-or-later
"""Filters, columns and names of ``list``, and selectors in every verb that takes an address."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import Host
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.procfiles import holding_process
from pyhostdev.tools.main import main

PF, DISK, VF = "0000:03:00.0", "0000:02:00.0", "0000:03:10.2"


@pytest.fixture
def sriov(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """A host with interfaces, a disk and VFs, one of which is in use."""
    return fakehost("sriov")


def rows(capsys: pytest.CaptureFixture[str], fake: FakeHost, *words: str) -> list[list[str]]:
    """Return the cells of the lines that list prints."""
    capsys.readouterr()
    assert 0 == main(["list", "--root", fake.root.path, *words])
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


@pytest.mark.parametrize(
    ("words", "addresses"),
    [
        (["--group", "4"], [PF]),
        (["--driver", "nvme"], [DISK]),
        (["--driver", "none"], ["0000:00:00.0"]),
        (["--class", "0108"], [DISK]),
        (["--class", "0x02", "--driver", "ixgbe"], [PF]),
        (["--vendor", "144d"], [DISK]),
        (["--assignable"], [DISK, "0000:03:10.0", VF, "0000:03:10.4", "0000:03:10.6"]),
        (["--owner", "vm1"], []),
    ],
    ids=str,
)
def test_filters(words: list[str], addresses: list[str], sriov: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """All given filters have to fit; --json filters, too."""
    found = rows(capsys, sriov, *words)
    if words != ["--assignable"]:
        assert addresses == [row[0] for row in found]
    assert 0 == main(["list", "--root", sriov.root.path, "--json", *words])
    assert [row[0] for row in found] == [item["address"] for item in json.loads(capsys.readouterr().out)]


def test_what_a_guest_has_is_not_assignable(sriov: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """A device with an owner, one of a libvirt domain, and one in a group that a process has open are left out."""
    root, vfs = sriov.root, [f"0000:03:10.{number}" for number in (0, 2, 4, 6)]
    assert vfs == [row[0] for row in rows(capsys, sriov, "--assignable")]
    assert 0 == main(["prepare", "--device", VF, "--owner", "vm1", "--root", root.path, "--simulate"])
    status = Path(root.libvirt_status, "web.xml")
    status.parent.mkdir(parents=True)
    source = "<source><address domain='0' bus='3' slot='0x10' function='4'/></source>"
    device = f"<hostdev mode='subsystem' type='pci'>{source}</hostdev>"
    status.write_text(f"<domstatus state='running'><domain><devices>{device}</devices></domain></domstatus>")
    assert [vfs[0], vfs[3]] == [row[0] for row in rows(capsys, sriov, "--assignable")]
    assert 0 == main(["nodedev-detach", vfs[3], "--root", root.path, "--simulate"])
    with holding_process(root, root.vfio_group(8)):
        assert [vfs[0]] == [row[0] for row in rows(capsys, sriov, "--assignable")]
    assert [vfs[0], vfs[3]] == [row[0] for row in rows(capsys, sriov, "--assignable")]


def test_filters_and_columns_keep_the_default_columns(sriov: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """A filtered list has the lines of the plain one."""
    everything = {row[0]: row for row in rows(capsys, sriov)}
    assert everything[PF] == rows(capsys, sriov, "--group", "4")[0]


def test_columns_and_names(sriov: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Interfaces, disks and mounts by function; vendors in words or numbers."""
    found = {row[0]: row for row in rows(capsys, sriov, "--columns", "address,netdevs,blocks,numa")}
    assert [[PF, "enp3s0", "-", "0"], [DISK, "-", "nvme0n1", "0"]] == [found[PF], found[DISK]]
    (named,) = rows(capsys, sriov, "--names", "--group", "3")
    assert ["nvme", "-", "nvme0n1", "/", "-"] == named[-5:]  # driver, netdevs, blocks, mounts, owner
    for place, line in (("/srv/a", "/dev/nvme0n1 /srv/a ext4 rw 0 0"), ("swap", "")):
        Path(sriov.root.mounts).write_text(f"{line}\n")
        Path(sriov.root.swaps).write_text("Filename Type\n" + ("" if line else "/dev/nvme0n1 partition 1 0 -2\n"))
        assert [[place]] == rows(capsys, sriov, "--columns", "mounts", "--group", "3")
    for words in (["--columns", "address,colour"], ["--class", "1"], ["--vendor", "xyzw"]):
        with pytest.raises(SystemExit):
            main(["list", "--root", sriov.root.path, *words])


def test_owners(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """The devices of one domain."""
    from pyhostdev.tools.demo import GUEST

    assert 0 == main(["prepare", GUEST, "--root", bcm5719.root.path, "--simulate"])
    assert 4 == len(rows(capsys, bcm5719, "--owner", "seed"))
    for owner, count in (("seed", 4), ("other", 0)):
        assert 0 == main(["status", "--owner", owner, "--json", "--root", bcm5719.root.path])
        assert count == len(json.loads(capsys.readouterr().out)["active"])


@pytest.mark.parametrize("words", ["list --names --owner vm1", "list --owner vm1", "topology", f"show {PF}"])
def test_unreadable_records_are_noted(
    words: str, sriov: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user learns once that owners are unknown; a list without owners needs no records."""
    monkeypatch.setattr(Host, "readable_records", lambda self: None)
    assert 0 == main([*words.split(), "--root", sriov.root.path])
    assert 1 == capsys.readouterr().err.count("cannot read the records")
    assert 0 == main(["list", "--group", "4", "--root", sriov.root.path])
    assert "" == capsys.readouterr().err


def test_selectors_in_every_verb(sriov: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """show and the nodedev verbs accept every selector; a selector without a function is refused."""
    root = ["--root", sriov.root.path]
    assert 0 == main(["show", "net:enp3s0", "--json", *root])
    assert PF == json.loads(capsys.readouterr().out)["address"]
    assert 0 == main(["nodedev-detach", "pf:enp3s0/vf1", "--simulate", *root])
    assert "vfio-pci" in rows(capsys, sriov, "--columns", "address,driver", "--group", "6")[0]
    assert 0 == main(["nodedev-reset", VF, "--simulate", *root])
    assert 0 == main(["nodedev-reattach", "pf:03:00.0/vf1", "--simulate", *root])
    assert 1 == main(["show", "net:enp9s9", *root])
    assert "no such device" in capsys.readouterr().err


def test_show_tells_what_surrounds_a_function(sriov: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Ports above with their ACS, resets, interfaces, disks, uses, owner and linked functions."""
    Path(sriov.root.pci_device(DISK), "consumer:pci:0000:03:00.0").mkdir()
    root = ["--root", sriov.root.path]
    assert 0 == main(["nodedev-detach", VF, "--simulate", *root])
    capsys.readouterr()
    assert 0 == main(["show", "block:nvme0n1", "--json", *root])
    disk = json.loads(capsys.readouterr().out)
    assert (["0000:00:02.0 (ACS on)"], ["nvme0n1"], []) == (disk["path"], disk["blocks"], disk["netdevs"])
    assert ["mounted: holds 'nvme0n1', which is in use as the file system at '/'"] == disk["uses"]
    assert (["consumer 0000:03:00.0"], [], None) == (disk["companions"], disk["holders"], disk["owner"])
    assert "flr" in disk["reset_methods"]
    assert 0 == main(["show", PF, *root])
    text = capsys.readouterr().out
    assert "default-route: has interface 'enp3s0'" in text
    assert "netdevs" in text
