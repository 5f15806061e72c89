# SPDX-License-Identifier: LGPL-2.1-or-later
"""No verb unbinds a PF whose VFs are in use: its driver may remove them, and would wait for their users."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyhostdev import DeviceInUseError, DomainDef, Host, HostdevManager, InDoubtError, PCIDeviceAddress, RefusedError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.pcidriver import DriverMover, read_binding

Domain = Callable[..., DomainDef]
Build = Callable[[str], FakeHost]

PF, VF = PCIDeviceAddress(0, 3, 0, 0), PCIDeviceAddress(0, 3, 0x10, 0)
TREE = """\
driver igb 8086:10c9 remove=vfs
driver igbvf 8086:10ca
driver vfio-pci
0000:03:00.0 8086:10c9 020000 driver=igb group=1 express=endpoint flr sriov=7 vf-device=10ca vf-offset=128 vf-stride=2
0000:03:10.0 8086:10ca 020000 driver=igbvf group=2 physfn=0000:03:00.0 express=endpoint flr
"""


def test_driver_removes_its_vfs_or_waits_for_them(fakehost: Build) -> None:
    """As with the real igb, a held VF makes the unbind of its PF wait."""
    fake = fakehost(TREE)
    mover = DriverMover(fake.root, fake.kernel)
    mover.detach(VF, read_binding(fake.root, VF), "vfio-pci")
    with fake.kernel.open_group(2), pytest.raises(InDoubtError):
        mover.unbind(PF)
    assert (None, None) == (Host(fake.root).pci_device(VF), read_binding(fake.root, PF).driver)


@pytest.mark.parametrize("policy", ["auto", "off"])
def test_vf_of_another_domain(fakehost: Build, domain: Domain, policy: str) -> None:
    """The error names the VF's domain, even with policy off, and nothing is touched."""
    fake = fakehost(TREE)
    manager = HostdevManager(Host(fake.root, writer=fake.kernel))
    manager.prepare(manager.host.plan(domain("vm1", str(VF))))
    writes = fake.kernel.writes
    with pytest.raises(RefusedError) as refusal:
        manager.prepare(manager.host.plan(domain("vm2", str(PF)), policy))
    assert [("in-use", VF)] == [(f.reason, f.address) for f in refusal.value.findings if f.address == VF]
    with pytest.raises(RefusedError):
        manager.nodedev_detach(PF)
    assert writes == fake.kernel.writes


def test_vf_that_a_process_holds(fakehost: Build, domain: Domain) -> None:
    """A holder without a record is found through the group of the VF."""
    fake = fakehost(TREE)
    host = Host(fake.root, writer=fake.kernel)
    DriverMover(fake.root, fake.kernel).detach(VF, read_binding(fake.root, VF), "vfio-pci")
    with fake.kernel.open_group(2):
        found = host.plan(domain("vm2", str(PF)), "off").obstacles
    assert [("in-use", VF)] == [(finding.reason, finding.address) for finding in found]


def test_pf_is_given_back_after_the_users_of_its_vfs(fakehost: Build, domain: Domain) -> None:
    """A PF with VFs under vfio-pci is reattached once no domain has one of them."""
    fake = fakehost(TREE)
    manager = HostdevManager(Host(fake.root, writer=fake.kernel))
    manager.prepare(manager.host.plan(domain("vm1", str(VF))))
    record = manager.journal.read()[0][VF]._replace(address=PF, owner="vm2", original=read_binding(fake.root, PF))
    manager.journal.write(record)
    with pytest.raises(DeviceInUseError, match="virtual function of 0000:03:00.0, is in use by domain 'vm1'"):
        manager.release("vm2")
    assert "igb" == read_binding(fake.root, PF).driver
    manager.release("vm1")
    assert [PF] == manager.release("vm2")
