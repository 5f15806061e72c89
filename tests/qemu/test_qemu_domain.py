# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kind of machine of a definition, and the memory that QEMU must be able to lock for it."""

from __future__ import annotations

import pytest

from pyhostdev import DomainDef
from pyhostdev.qemu import memlock_limit
from pyhostdev.qemu.qemu_domain import is_arm_virt, is_i440fx, is_pseries, is_q35

GIB = 1 << 30
HOSTDEV = """<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address domain='0x0001' bus='0x01' slot='0x00' function='{}'/></source>{}</hostdev>"""
UNASSIGNED = "<address type='unassigned'/>"
IOMMU = "<iommu model='intel'/>"


def domain(*devices: str, head: str = "", kind: str = "kvm", arch: str = "x86_64", machine: str = "pc") -> DomainDef:
    return DomainDef.parse(
        f"<domain type='{kind}'><name>vm</name><memory unit='GiB'>1</memory>{head}"
        f"<os><type arch='{arch}' machine='{machine}'>hvm</type></os>"
        f"<devices>{''.join(devices)}</devices></domain>"
    )


def hostdev(function: int = 0, address: str = "") -> str:
    return HOSTDEV.format(function, address)


HARD_LIMIT = "<memtune><hard_limit unit='GiB'>3</hard_limit></memtune>"
NVME = """<disk type='nvme'><source type='pci' namespace='1'>
<address domain='0' bus='1' slot='0' function='0'/></source><target dev='vda'/></disk>"""
VDPA = "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/><model type='virtio'/></interface>"
VDPA_DISK = "<disk type='vhostvdpa'><source dev='/dev/vhost-vdpa-1'/><target dev='vdb'/></disk>"
LOCKED = "<memoryBacking><locked/></memoryBacking>"


@pytest.mark.parametrize(
    ("dom", "expected"),
    [
        pytest.param(domain(), None, id="nothing"),
        pytest.param(domain(hostdev()), 2 * GIB, id="hostdev"),
        pytest.param(domain(hostdev(), kind="qemu"), 2 * GIB, id="hostdev-tcg"),
        pytest.param(domain(hostdev(0), hostdev(1)), 2 * GIB, id="two share an address space"),
        pytest.param(domain(hostdev(0), hostdev(1), IOMMU), 3 * GIB, id="two behind an iommu"),
        pytest.param(domain(hostdev(0, UNASSIGNED)), 2 * GIB, id="unassigned counts"),
        pytest.param(domain(NVME), 2 * GIB, id="nvme"),
        pytest.param(domain(VDPA_DISK), 2 * GIB, id="vdpa disk"),
        pytest.param(domain(NVME, hostdev()), 3 * GIB, id="nvme and hostdev"),
        pytest.param(domain(NVME, VDPA), 3 * GIB, id="nvme and vdpa"),
        pytest.param(domain(head=HARD_LIMIT), 3 * GIB, id="hard limit"),
        pytest.param(domain(hostdev(), head=HARD_LIMIT + LOCKED), 3 * GIB, id="hard limit before all"),
        pytest.param(domain(head=LOCKED), -1, id="locked"),
        pytest.param(domain(hostdev(), head=LOCKED), -1, id="locked before hostdev"),
    ],
)
def test_memlock_limit_of_x86(dom: DomainDef, expected: int | None) -> None:
    """The hard limit, else no limit when locked, else memory per device address space and a GiB."""
    assert expected == memlock_limit(dom)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("<controller type='pci' index='0' model='pci-root'/>", 20971520),
        (
            hostdev() + "".join(f"<controller type='pci' index='{i}' model='pci-root'/>" for i in range(2)),
            4320133120,
        ),
    ],
)
def test_memlock_limit_of_pseries(devices: str, expected: int) -> None:
    """On POWER with KVM page tables and DMA windows count; the figures are libvirt's own."""
    assert expected == memlock_limit(domain(devices, arch="ppc64", machine="pseries"))


@pytest.mark.parametrize(
    ("arch", "machine", "expected"),
    [
        ("x86_64", "pc", [True, False, False, False]),
        ("i686", "pc-i440fx-7.2", [True, False, False, False]),
        ("x86_64", "q35", [False, True, False, False]),
        ("x86_64", "pc-q35-2.7", [False, True, False, False]),
        ("x86_64", "isapc", [False, False, False, False]),
        ("x86_64", "microvm", [False, False, False, False]),
        ("ppc64", "pseries-7.2", [False, False, True, False]),
        ("aarch64", "virt", [False, False, False, True]),
        ("ppc64", "virt", [False, False, False, False]),
    ],
)
def test_machine_is_identified_by_arch_and_name(arch: str, machine: str, expected: list[bool]) -> None:
    """A machine's name is only valid on its own architecture."""
    dom = domain(arch=arch, machine=machine)
    assert expected == [is_i440fx(dom), is_q35(dom), is_pseries(dom), is_arm_virt(dom)]
