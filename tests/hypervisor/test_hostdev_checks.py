# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host needs, and who else is at work: asked before the first write, told by reason and address."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import ConfigError, DeviceInUseError, DomainDef, Host, HostdevManager, PCIDeviceAddress
from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.testing.procfiles import holding_process

NVME = "0001:07:00.0"
PORT = "0001:09:00.2"
Domain = Callable[..., DomainDef]


def bcm5719_with(fakehost: Callable[[str], FakeHost], *lines: str) -> FakeHost:
    text = Path(HOSTS, "bcm5719.tree").read_text()
    return fakehost(text + "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "address", "reason"),
    [
        ("mount nvme0n1 / ext4", NVME, "mounted"),
        ("swap nvme0n1", NVME, "mounted"),
        ("route enp9s0f2", PORT, "default-route"),
    ],
)
def test_what_the_host_needs_wants_a_consent(
    fakehost: Callable[[str], FakeHost], domain: Domain, line: str, address: str, reason: str
) -> None:
    """A mounted disk or the way to the network refuses, until it is accepted by reason and address."""
    fake = bcm5719_with(fakehost, line)
    words = [NVME] if address == NVME else [f"0001:09:00.{function} yes" for function in range(4)]
    definition = domain("vm1", *words)
    plan = Host(fake.root).plan(definition)
    assert [(reason, "consent", address)] == [(f.reason, f.severity, str(f.address)) for f in plan.findings]
    assert not plan.ok
    assert not Host(fake.root).plan(definition, accept=[f"{reason}:0001:00:00.0"]).ok
    assert Host(fake.root).plan(definition, accept=[f"{reason}:{address}"]).ok


def test_boot_vga_wants_a_consent(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """The display that the host booted on is not taken by accident."""
    card = "0001:07:01.0 10de:1b80 030000 driver=nouveau group=40 boot-vga"
    fake = bcm5719_with(fakehost, "driver nouveau 10de:1b80", card)
    plan = Host(fake.root).plan(domain("vm1", "0001:07:01.0"))
    assert [("boot-vga", "consent")] == [(f.reason, f.severity) for f in plan.findings]


@pytest.mark.parametrize("text", ["mounted", "nonsense:0001:07:00.0", "mounted:somewhere"])
def test_consent_that_is_none_is_an_error(bcm5719: FakeHost, seed_domain: DomainDef, text: str) -> None:
    """A consent is REASON:ADDRESS with a reason that can be accepted; an error is never overridden by a typo."""
    with pytest.raises(ConfigError):
        Host(bcm5719.root).plan(seed_domain, accept=[text])


def test_held_group_is_in_use(bcm5719: FakeHost, domain: Domain, seed_domain: DomainDef) -> None:
    """A process that has the group's node open is named before anything is touched."""
    host = Host(bcm5719.root, writer=bcm5719.kernel)
    manager = HostdevManager(host)
    for function in range(4):
        manager.nodedev_detach(host.scan().groups[14][function].address)
    with bcm5719.kernel.open_group(14):
        plan = host.plan(seed_domain)
        assert {"in-use"} == {finding.reason for finding in plan.findings}
        assert "held open by" in plan.findings[0].message
    assert host.plan(seed_domain).ok


def test_running_domain_of_libvirtd_is_in_use(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """libvirtd's status files say what its running domains have; broken ones say nothing."""
    directory = Path(bcm5719.root.libvirt_status)
    directory.mkdir(parents=True)
    address = "<address domain='0x0001' bus='0x09' slot='0x00' function='0x1'/>"
    (directory / "web.xml").write_text(
        "<domstatus state='running'><domain type='kvm'><devices><hostdev mode='subsystem' type='pci'>"
        f"<source>{address}</source></hostdev></devices></domain></domstatus>"
    )
    (directory / "broken.xml").write_text("<domstatus")
    plan = Host(bcm5719.root).plan(seed_domain)
    assert [("in-use", "0001:09:00.1")] == [(f.reason, str(f.address)) for f in plan.findings]
    assert "'web'" in plan.findings[0].message


def test_mapping_is_followed_to_its_disk(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """A file system on a device mapper volume needs the disk below it."""
    fake = bcm5719_with(fakehost)
    volume = Path(fake.root.path, "sys/devices/virtual/block/dm-0")
    (volume / "slaves").mkdir(parents=True)
    os.symlink(os.path.realpath(f"{fake.root.class_block}/nvme0n1"), volume / "slaves/nvme0n1")
    os.symlink(volume, f"{fake.root.class_block}/dm-0")
    mapper = Path(fake.root.path, "dev/mapper")
    mapper.mkdir(parents=True)
    (Path(fake.root.path) / "dev/dm-0").touch()
    os.symlink("../dm-0", mapper / "vg-root")
    with open(fake.root.mounts, "a") as stream:
        stream.write("/dev/mapper/vg-root / ext4 rw 0 0\n")
    assert ["mounted"] == [f.reason for f in Host(fake.root).plan(domain("vm1", NVME)).findings]


def test_function_held_through_its_own_node_is_in_use(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A process with a function's iommufd node open holds its group as one with the group's node does."""
    manager = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel))
    manager.prepare(manager.host.plan(seed_domain))
    (name,) = os.listdir(os.path.join(bcm5719.root.pci_device(PCIDeviceAddress.parse(PORT)), "vfio-dev"))
    os.mkdir(bcm5719.root.dev_vfio_devices)
    node = Path(bcm5719.root.dev_vfio_devices, name)
    node.touch()
    with holding_process(bcm5719.root, str(node)), pytest.raises(DeviceInUseError, match="group 14 .* is held open by"):
        manager.release("vm1")
    assert 4 == len(manager.release("vm1"))
