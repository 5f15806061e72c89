# SPDX-License-Identifier: LGPL-2.1-or-later
"""A function is found by every kind of selector; a selector that matches several functions is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.errors import DeviceMissingError, InvalidAddressError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.selector import Selector

PF, DISK = "0000:03:00.0", "0000:02:00.0"


@pytest.fixture
def sriov(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """A host with interfaces, a disk and VFs."""
    return fakehost("sriov")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (PF, PF),
        ("03:00.0", PF),
        ("pci_0000_03_00_0", PF),
        ("net:enp3s0", PF),
        ("net:enp3s0v1", "0000:03:10.2"),
        ("block:nvme0n1", DISK),
        ("pf:enp3s0/vf3", "0000:03:10.6"),
        ("pf:0000:03:00.0/vf0", "0000:03:10.0"),
        ("pf:03:00.0/vf0", "0000:03:10.0"),
        ("0000:7f:00.0", "0000:7f:00.0"),
    ],
)
def test_every_name_of_a_function(text: str, address: str, sriov: FakeHost) -> None:
    """An address is taken as it is; everything else is looked up on the host."""
    assert address == str(Selector.parse(text).resolve(sriov.root))


@pytest.mark.parametrize(
    "text", ["", "foo", "net:", "net:a/b", "net:..", "block:a b", "pf:enp3s0", "pf:/vf1", "pf:a/vf", "vf:1", "03:00.9"]
)
def test_other_texts_are_refused(text: str) -> None:
    """The sentence names the forms."""
    with pytest.raises(InvalidAddressError, match="not a PCI address"):
        Selector.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("net:none", "no such device"),
        ("block:none", "no such device"),
        ("pf:enp3s0/vf4", "has no VF 4"),
        ("pf:0000:02:00.0/vf0", "has no VF 0"),
        ("net:lo", "not on a PCI function"),
    ],
)
def test_names_without_a_function(text: str, words: str, sriov: FakeHost) -> None:
    """The host has no such device, or the device is not on a PCI function."""
    lo = Path(sriov.root.path, "sys/devices/virtual/net/lo")
    lo.mkdir(parents=True)
    Path(sriov.root.class_net, "lo").symlink_to("../../devices/virtual/net/lo")
    with pytest.raises(DeviceMissingError, match=words):
        Selector.parse(text).resolve(sriov.root)


def test_a_name_of_several_functions_is_refused(sriov: FakeHost) -> None:
    """A bond of two ports: the sentence names both."""
    bond = Path(sriov.root.path, "sys/devices/virtual/net/bond0")
    bond.mkdir(parents=True)
    for name in ("enp3s0", "enp3s0v0"):
        target = Path(sriov.root.class_net, name).resolve()
        (bond / f"lower_{name}").symlink_to("../../../../" + str(target.relative_to(Path(sriov.root.path) / "sys")))
    Path(sriov.root.class_net, "bond0").symlink_to("../../devices/virtual/net/bond0")
    with pytest.raises(InvalidAddressError, match=f"several functions: {PF}, 0000:03:10.0") as refusal:
        Selector.parse("net:bond0").resolve(sriov.root)
    assert "several-functions" == refusal.value.reason
