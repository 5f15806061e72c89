# SPDX-License-Identifier: LGPL-2.1-or-later
"""A captured description builds an equal host."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev import Host, HostdevManager
from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.treecapture import describe_host
from pyhostdev.testing.treefile import parse_host
from pyhostdev.util.vfiodriver import VFIODrivers
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


VARIANTS = """driver mlx5_core 15b3:101d 15b3:101e
driver xe 8086:e20b
driver nvme class:010802
driver vfio-pci {0}
driver mlx5_vfio_pci 15b3:101e {0}
driver xe-vfio-pci 8086:e20b module=xe_vfio_pci {0}
0000:02:00.0 15b3:101d 020000 driver=mlx5_core group=2 express=endpoint flr
0000:02:00.2 15b3:101e 020000 driver=mlx5_core group=3 express=endpoint flr
0000:03:00.0 8086:e20b 030000 driver=xe group=5 express=endpoint flr
0000:04:00.0 144d:a808 010802 driver=nvme group=6 express=endpoint flr
iommufd available
"""


@pytest.mark.parametrize("availability", ["loaded", "available"])
def test_drivers_that_can_be_loaded(availability: str, tmp_path: Path) -> None:
    """Each function gets the VFIO driver that it has on the host, although no module of VFIO is loaded there."""
    fake = FakeHost(parse_host(VARIANTS.format(availability)), tmp_path / "one")
    text = describe_host(fake.root)
    other = FakeHost(parse_host(text), tmp_path / "two")
    assert text == describe_host(other.root)
    names = ["vfio-pci", "mlx5_vfio_pci", "xe-vfio-pci" if availability == "loaded" else "xe_vfio_pci", "vfio-pci"]
    for root in (fake.root, other.root):
        assert names == [VFIODrivers(root).choose(dev).driver for dev in Host(root).scan()]
    manager = HostdevManager(Host(other.root, writer=other.kernel))
    before = other.snapshot()
    for address, name in zip(("0000:02:00.2", "0000:04:00.0"), (names[1], names[3]), strict=True):
        manager.nodedev_detach(address)
        assert name == manager.host.pci_device(address).driver  # type: ignore[union-attr]
        manager.nodedev_reattach(address)
    assert Path(other.root.dev_iommu).exists()
    if availability == "loaded":
        assert before == other.snapshot()


def test_a_host_without_vfio_has_none(tmp_path: Path) -> None:
    """A driver that the host cannot load is not invented."""
    lines = [line for line in VARIANTS.splitlines() if "vfio" not in line and "iommufd" not in line]
    text = describe_host(FakeHost(parse_host("\n".join(lines) + "\n"), tmp_path).root)
    assert "vfio" not in text and "iommufd" not in text


def test_a_redacted_description_names_no_mount(tmp_path: Path) -> None:
    """Neither the boot id nor a mount point."""
    fake = FakeHost.named("sriov", tmp_path)
    (tmp_path / "proc/mounts").write_text("/dev/nvme0n1 /secret ext4 rw 0 0\n")
    text = describe_host(fake.root, redact=True)
    assert "mount nvme0n1 /mount-0 ext4" in text
    assert "boot-id" not in text and "secret" not in text
