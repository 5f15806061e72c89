# SPDX-License-Identifier: LGPL-2.1-or-later
"""Synthetic hosts: their shape, the two ways to make them, and their text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import HOSTS, FakeHost, named_hosts
from pyhostdev.testing.generator import PLAIN_CARDS, SRIOV_CARDS, make_tree, synthetic_host
from pyhostdev.testing.hostspec import HostSpec
from pyhostdev.testing.treefile import parse_host, read_host
from pyhostdev.testing.treeformat import format_host
from pyhostdev.util import pciscan, pciscan_ref
from pyhostdev.util.hostroot import HostRoot


def everything(host: HostSpec) -> list[object]:
    left_out = ("name", "directory", "text")
    return [getattr(host, slot) for slot in HostSpec.__slots__ if slot not in left_out]


@pytest.mark.parametrize("functions", [0, 1, 100, 2000])
def test_host_has_as_many_functions_as_asked_for(functions: int) -> None:
    """A host is cut off at exactly its size, wherever in a card that is."""
    assert functions == len(synthetic_host(functions).functions)


def test_same_seed_makes_the_same_host() -> None:
    """A seed determines the host; another seed gives another one."""
    first, again, other = (synthetic_host(600, seed=seed) for seed in (1, 1, 2))
    assert everything(first) == everything(again)
    assert everything(first) != everything(other)


def test_large_host_is_of_realistic_shape() -> None:
    """Several domains, PFs with 63 and 127 VFs, bridges above everything, VFs in groups of their own."""
    functions = synthetic_host(6000).functions
    assert 2 <= len({address.domain for address in functions})
    vfs = Counter(spec.physfn for spec in functions.values() if spec.physfn)
    assert {63, 127} <= set(vfs.values())
    groups = Counter(spec.group for spec in functions.values())
    assert {1} == {groups[spec.group] for spec in functions.values() if spec.physfn}
    assert 9 == max(groups.values())  # a switch and its drives
    bridged = {(a.domain, bus) for a, s in functions.items() if s.bridge for bus in [s.bridge[0]]}
    assert all(a.bus == 0 or a[:2] in bridged for a in functions)


@pytest.mark.parametrize("cards", [SRIOV_CARDS, PLAIN_CARDS])
def test_both_ways_to_make_a_host_agree(tmp_path: Path, cards: tuple[str, ...]) -> None:
    """The fast tree and the FakeHost of one description are the same to the scanner and its reference."""
    large, small = HostRoot(tmp_path / "large"), tmp_path / "small"
    host = make_tree(large.path, 150, seed=3, cards=cards)
    fake = FakeHost(host, small)
    expected = pciscan_ref.scan(fake.root)
    assert 150 == len(expected)
    assert expected == pciscan_ref.scan(large)
    assert expected == list(pciscan.scan(large)) == list(pciscan.scan(fake.root))


def test_trees_agree_beyond_the_scan(tmp_path: Path) -> None:
    """What the fast tree has of a function's directory is what a FakeHost has there, but configuration space."""
    large, small = HostRoot(tmp_path / "large"), tmp_path / "small"
    host = make_tree(large.path, 140)
    fake = FakeHost(host, small)
    compared = 0
    for address in host.functions:
        for path in Path(large.pci_device(address)).iterdir():
            if path.is_file() and path.name not in ("config", "sriov_numvfs"):
                compared += 1
                assert Path(fake.root.pci_device(address), path.name).read_text() == path.read_text(), path
    assert 140 * 10 < compared


def test_tree_is_not_written_twice(tmp_path: Path) -> None:
    """A directory that already has a sys is refused."""
    make_tree(tmp_path, 1)
    with pytest.raises(FileExistsError):
        make_tree(tmp_path, 1)


@pytest.mark.parametrize("cards", [SRIOV_CARDS, PLAIN_CARDS])
def test_synthetic_host_as_text(cards: tuple[str, ...]) -> None:
    """A synthetic host can be written down as a description and read back."""
    host = synthetic_host(300, cards=cards)
    assert everything(host) == everything(parse_host(format_host(host)))


@pytest.mark.parametrize("name", named_hosts())
def test_shipped_host_as_text(name: str) -> None:
    """Formatting forgets nothing of any shipped host but its comments."""
    host = read_host(Path(HOSTS, f"{name}.tree"))
    assert everything(host) == everything(parse_host(format_host(host)))
