# SPDX-License-Identifier: LGPL-2.1-or-later
"""A captured description builds an equal host."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev import Host, HostdevManager
from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.treecapture import describe_host
from pyhostdev.testing.treefile import parse_host
from pyhostdev.util.virpci import PCIDevice, read_iommu_group_members


def facts(fake: FakeHost) -> list[tuple[object, ...]]:
    """Return the visible facts about each function."""
    return [(str(dev.address), *facts_of(dev)) for dev in Host(fake.root).scan()]


def facts_of(dev: PCIDevice) -> tuple[object, ...]:
    """Return the facts about one function that a plan depends on."""
    group = dev.iommu_group
    members = [] if group is None else [m.name for m in read_iommu_group_members(dev.root, group)]
    return (
        (dev.vendor, dev.device, dev.subsystem_vendor, dev.subsystem_device, dev.class_, dev.revision, dev.numa_node),
        (dev.driver, dev.read_driver_override(), group, members),
        (dev.is_multifunction(), dev.is_pci_express(), dev.is_ari, [str(s.address) for s in dev.read_siblings()]),
        (dev.read_reset_methods(), dev.sriov_totalvfs, [str(vf) for vf in dev.read_virtual_functions()], dev.physfn),
        [str(address) for address in dev.read_path()],
    )


@pytest.mark.parametrize("name", named_hosts())
def test_the_described_host_is_like_the_host(name: str, tmp_path: Path) -> None:
    """All facts about all functions, and the same description again."""
    fake = FakeHost.named(name, tmp_path / "one")
    text = describe_host(fake.root)
    other = FakeHost(parse_host(text), tmp_path / "two")
    assert facts(fake) == facts(other)
    assert text == describe_host(other.root)


def test_it_behaves_as_the_host(tmp_path: Path) -> None:
    """A device is detached and reattached in the described host; its uses are reported."""
    text = describe_host(FakeHost.named("sriov", tmp_path / "one").root)
    assert "mount nvme0n1 / ext4" in text and "route enp3s0" in text
    other = FakeHost(parse_host(text), tmp_path / "two")
    before = other.snapshot()
    manager = HostdevManager(Host(other.root, writer=other.kernel))
    manager.nodedev_detach("0000:03:10.0")
    assert "vfio-pci" == manager.host.pci_device("0000:03:10.0").driver  # type: ignore[union-attr]
    manager.nodedev_reattach("0000:03:10.0")
    assert before == other.snapshot()


def test_a_redacted_description_names_no_mount(tmp_path: Path) -> None:
    """Neither the boot id nor a mount point."""
    fake = FakeHost.named("sriov", tmp_path)
    (tmp_path / "proc/mounts").write_text("/dev/nvme0n1 /secret ext4 rw 0 0\n")
    text = describe_host(fake.root, redact=True)
    assert "mount nvme0n1 /mount-0 ext4" in text
    assert "boot-id" not in text and "secret" not in text
