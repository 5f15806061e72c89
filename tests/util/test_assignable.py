# SPDX-License-Identifier: LGPL-2.1-or-later
"""The list of all assignable functions equals the check of each function."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest

from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.generator import PLAIN_CARDS, SRIOV_CARDS, make_tree, synthetic_host
from pyhostdev.util import pciscan, virpci
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan

CASES = Path(__file__).parents[2] / "testdata" / "cases"
TREES = [*named_hosts(), *sorted(str(path) for path in CASES.glob("*.tree"))]

HOST = """
driver nvme class:010802
driver vfio-pci
driver qat_vfio
driver virtio-gpu
mount /dev/nvme0n1 / ext4
0000:00:00.0 8086:29c0 060000 group=0
0000:01:00.0 144d:a808 010802 driver=nvme group=1 block=nvme0n1
0000:02:00.0 144d:a808 010802 driver=nvme group=2
0000:03:00.0 8086:0435 0b4000 group=3
0000:04:00.0 1af4:1050 038000 driver=virtio-gpu group=4
0000:05:00.0 1af4:1050 030000 driver=virtio-gpu group=5 boot-vga
0000:06:00.0 8086:0001 0b4000 driver=vfio-pci group=6
0000:06:00.1 8086:0001 0b4000 driver=nvme group=6
0000:07:00.0 8086:0001 0b4000
0000:08:00.0 8086:0001 0b4000 group=8
"""


def read(root: HostRoot) -> Scan:
    return Scan(root, pciscan.scan(root))


def assert_all_is_one_by_one(scan: Scan) -> None:
    assert [dev for dev in scan if not scan.obstacles(dev)] == scan.assignable()
    assert scan.assignable() == [dev for dev in scan if scan.is_assignable(dev)]


def test_what_a_driver_created_does_not_block_it(fakehost: Callable[[str], FakeHost]) -> None:
    """The functions behind a VMD are gone once it is detached; for each other they are there."""
    tree = (CASES / "vmd.tree").read_text().replace("mount nvme0n1 /srv ext4", "")
    scan = read(fakehost(tree).root)
    assert ["0000:2a:00.5"] == [str(dev.address) for dev in scan.assignable()]
    assert_all_is_one_by_one(scan)
    ssd = scan.find("10000:01:00.0")
    assert ssd is not None
    (found,) = scan.obstacles(ssd)
    assert ("group-not-viable", "0000:2a:00.5") == (found.reason, str(found.address))


def free_slots(scan: Scan) -> list[str]:
    return [str(dev.address)[5:7] for dev in scan.assignable()]


@pytest.mark.parametrize("name", TREES)
def test_of_every_host(fakehost: Callable[[str], FakeHost], name: str) -> None:
    """With bridges, members of groups that are not PCI functions, PFs with VFs, and the boot display."""
    assert_all_is_one_by_one(read(fakehost(name).root))


@pytest.mark.parametrize("cards", [SRIOV_CARDS, PLAIN_CARDS], ids=["sriov", "plain"])
def test_of_synthetic_hosts(tmp_path: Path, cards: tuple[str, ...]) -> None:
    """Most functions are decided by the columns."""
    assert_all_is_one_by_one(read(FakeHost(synthetic_host(170, cards=cards), tmp_path).root))


def test_what_stands_in_the_way_of_each(tmp_path: Path) -> None:
    """Each kind of obstacle: a mount, a denied device, the console, a neighbour's driver, no group."""
    scan = read(FakeHost.from_tree(HOST, tmp_path).root)
    assert_all_is_one_by_one(scan)
    assert ["02", "04", "06", "08"] == free_slots(scan)  # of slot 06 the function whose neighbour is on vfio-pci


def test_signals_do_not_shorten_a_group(tmp_path: Path) -> None:
    """A pending signal ends a listing after its first names; the members that follow count, too."""
    fake = FakeHost.from_tree(HOST, tmp_path)
    snapshot = pciscan.scan(fake.root)
    shutil.rmtree(fake.root.iommu_group_devices(2))
    os.mkdir(fake.root.iommu_group_devices(2))
    os.symlink("x", os.path.join(fake.root.iommu_group_devices(2), "stranger"))
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)
    try:
        known = pciscan.known_groups(fake.root, snapshot, [2] * 20_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not any(known)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the groups that are listed; none is listed by itself."""
    real = pciscan.known_groups
    found: list[int] = []

    def known_groups(root: HostRoot, snapshot: pciscan.Snapshot, groups: Sequence[int]) -> list[bool]:
        found.extend(groups)
        return real(root, snapshot, groups)

    monkeypatch.setattr(pciscan, "known_groups", known_groups)
    monkeypatch.setattr(virpci, "read_iommu_group_members", mock.Mock(side_effect=AssertionError))
    return found


def test_each_group_is_listed_once_at_most(tmp_path: Path, asked: list[int]) -> None:
    """What is the same for a group is read in one call for all groups, not for each of its functions."""
    make_tree(tmp_path, 600)
    shutil.rmtree(tmp_path / "sys/class")
    scan = read(HostRoot(tmp_path))
    found = scan.assignable()
    assert 400 < len(found) < 600
    assert 400 < len(set(asked)) == len(asked) <= len(scan.groups)


def test_no_group_is_listed_whose_functions_an_iommu_lists(tmp_path: Path, asked: list[int]) -> None:
    """The list of an IOMMU's devices shows that a group has no other member; a function that is not in it decides."""
    make_tree(tmp_path, 600)
    scan = read(HostRoot(tmp_path))
    found = scan.assignable()
    assert 400 < len(found) < 600
    assert [] == asked
    os.unlink(Path(scan.root.class_iommu, "dmar0/devices", str(found[7].address)))
    assert list(map(str, found)) == list(map(str, read(scan.root).assignable()))
    assert [found[7].iommu_group] == asked


def test_a_stranger_in_the_list_of_an_iommu(tmp_path: Path) -> None:
    """A device of another bus, and a function that the scan did not see, are looked for in the functions' groups."""
    fake = FakeHost.from_tree(HOST, tmp_path)
    scan = read(fake.root)
    listed = Path(fake.root.class_iommu, "dmar0/devices")
    listed.mkdir(parents=True)
    for dev in scan:
        os.symlink(fake.root.pci_device(dev.address), listed / str(dev.address))
    assert ["02", "04", "06", "08"] == free_slots(scan)
    for name, group in (("LNXSYSTM:00", 2), ("0000:09:00.0", 8), ("no group", None)):
        stranger = Path(listed, name)
        stranger.mkdir()
        if group is not None:
            os.symlink(f"../../{group}", stranger / "iommu_group")
            member = Path(fake.root.iommu_group_devices(group), name)
            device = member if "LNX" in name else Path(fake.root.pci_device(name))
            device.mkdir()
            member.touch()
            os.symlink("../drivers/other", device / "driver")
    assert ["04", "06"] == free_slots(scan)


def test_a_neighbour_on_a_variant_of_vfio_pci(tmp_path: Path) -> None:
    """A variant does not keep the DMA, although it has another name."""
    functions = "0000:06:00.0 8086:0001 0b4000 driver=qat_vfio group=6", "0000:06:00.1 8086:0001 0b4000 group=6"
    scan = read(FakeHost.from_tree("\n".join(["driver qat_vfio", *functions, ""]), tmp_path).root)
    os.makedirs(f"{scan.root.pci_device('0000:06:00.0')}/vfio-dev", exist_ok=True)
    assert_all_is_one_by_one(scan)
    assert 2 == len(scan.assignable())


def test_the_console_on_a_vfio_driver(tmp_path: Path) -> None:
    """The host has given it up already."""
    display = "0000:05:00.0 1af4:1050 030000 driver=vfio-pci group=5 boot-vga"
    scan = read(FakeHost.from_tree(f"driver vfio-pci\n{display}\n", tmp_path).root)
    assert_all_is_one_by_one(scan)
    assert 1 == len(scan.assignable())


def test_a_group_with_strangers_is_asked_in_full(tmp_path: Path) -> None:
    """A member that is not a PCI function, and a function that the scan did not see, decide nothing by themselves."""
    fake = FakeHost.from_tree(HOST, tmp_path)
    scan = read(fake.root)
    snapshot = pciscan.scan(fake.root)
    assert [True, True] == pciscan.known_groups(fake.root, snapshot, [2, 6])
    os.symlink("x", os.path.join(fake.root.iommu_group_devices(2), "stranger"))
    os.symlink("x", os.path.join(fake.root.iommu_group_devices(6), "0000:07:00.0"))
    assert [False, False, True] == pciscan.known_groups(fake.root, snapshot, [2, 6, 8])
    assert_all_is_one_by_one(scan)
