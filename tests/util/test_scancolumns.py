# SPDX-License-Identifier: LGPL-2.1-or-later
"""The columns of a scan equal the facts of its objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.generator import make_tree
from pyhostdev.util import pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.pciaddress import key_of

FACTS = ("vendor", "device", "class_", "driver", "iommu_group")


def read(root: HostRoot) -> Scan:
    return Scan(root, pciscan.scan(root))


def assert_columns_equal_objects(scan: Scan) -> None:
    columns = scan.columns()
    assert len(scan) == len(columns)
    for name in FACTS:
        assert [getattr(dev, name) for dev in scan] == getattr(columns, name)
    assert [str(dev.address) for dev in scan] == columns.address
    assert [dev.physfn and str(dev.physfn) for dev in scan] == columns.physfn
    shared = [not dev.is_virtual_function and len(scan.slots[dev.address[:3]]) > 1 for dev in scan]
    assert shared == columns.shares_slot


@pytest.mark.parametrize("name", named_hosts())
def test_columns_of_hosts(fakehost: Callable[[str], FakeHost], name: str) -> None:
    """Every fact of every function, in the scan's order."""
    assert_columns_equal_objects(read(fakehost(name).root))


def test_columns_of_a_large_host(tmp_path: Path) -> None:
    """The columns are right if the scanner shares work between functions."""
    make_tree(tmp_path, 700)
    assert_columns_equal_objects(read(HostRoot(tmp_path)))


def test_what_the_host_does_not_have_is_none(tmp_path: Path) -> None:
    """Zero is a value: group 0 and a PF at 0000:00:00.0 are not None."""
    devices = tmp_path / "sys/bus/pci/devices"
    for name in ("0000:00:00.0", "0000:00:00.1"):
        (devices / name).mkdir(parents=True)
    (devices / "0000:00:00.1/physfn").symlink_to("../0000:00:00.0")
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    (devices / "0000:00:00.1/iommu_group").symlink_to("../../../../kernel/iommu_groups/0")
    columns = read(HostRoot(tmp_path)).columns()
    assert [[None, None]] * 4 == [getattr(columns, name) for name in FACTS[:4]]
    assert ([None, 0], [None, "0000:00:00.0"]) == (columns.iommu_group, columns.physfn)


def test_packed_columns_are_the_scanners(fakehost: Callable[[str], FakeHost]) -> None:
    """The numbers are not copied; ``have`` distinguishes unknown from zero; an unknown name is an error."""
    scan = read(fakehost("sriov").root)
    columns = scan.columns()
    assert [key_of(dev.address) for dev in scan] == list(columns.packed("key"))
    are_vfs = [bool(have & pciscan.HAVE_PHYSFN) for have in columns.packed("have")]
    assert [dev.is_virtual_function for dev in scan] == are_vfs
    assert columns.packed("vendor").readonly
    with pytest.raises(KeyError):
        columns.packed("nonsense")


def test_lists_belong_to_the_caller(fakehost: Callable[[str], FakeHost]) -> None:
    """A change of a returned list has no other effect."""
    scan = read(fakehost("sriov").root)
    scan.columns().address.clear()
    assert len(scan) == len(scan.columns().address) > 0
