# SPDX-License-Identifier: LGPL-2.1-or-later
"""All assignable functions at once are those that nothing stands in the way of, one by one."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("name", TREES)
def test_of_every_host(fakehost: Callable[[str], FakeHost], name: str) -> None:
    """With bridges, members of groups that are not PCI functions, PFs with VFs, and the boot display."""
    assert_all_is_one_by_one(read(fakehost(name).root))


@pytest.mark.parametrize("cards", [SRIOV_CARDS, PLAIN_CARDS], ids=["sriov", "plain"])
def test_of_synthetic_hosts(tmp_path: Path, cards: tuple[str, ...]) -> None:
    """Most functions are told from the columns."""
    assert_all_is_one_by_one(read(FakeHost(synthetic_host(170, cards=cards), tmp_path).root))


def test_what_stands_in_the_way_of_each(tmp_path: Path) -> None:
    """A mount, a denied kind, the console, a neighbour's driver, no group at all."""
    scan = read(FakeHost.from_tree(HOST, tmp_path).root)
    assert_all_is_one_by_one(scan)
    free = [str(dev.address)[5:7] for dev in scan.assignable()]
    assert ["02", "04", "06", "08"] == free  # of slot 06 the function whose neighbour is on vfio-pci


def test_each_group_is_listed_once_at_most(tmp_path: Path) -> None:
    """What is the same for a group is asked in one call for all groups, not for each of its functions."""
    make_tree(tmp_path, 600)
    scan = read(HostRoot(tmp_path))
    real = pciscan.known_groups
    asked: list[int] = []

    def known_groups(root: HostRoot, snapshot: pciscan.Snapshot, groups: Sequence[int]) -> list[bool]:
        asked.extend(groups)
        return real(root, snapshot, groups)

    with (
        mock.patch.object(pciscan, "known_groups", known_groups),
        mock.patch.object(virpci, "read_iommu_group_members", side_effect=AssertionError),
    ):
        found = scan.assignable()
    assert 400 < len(found) < 600
    assert len(set(asked)) == len(asked) <= len(scan.groups)


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
