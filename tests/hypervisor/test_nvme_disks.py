# SPDX-License-Identifier: LGPL-2.1-or-later
"""NVMe disks: the controller below a disk is taken from the host and given back like a host device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hotplugging import Stage, live_domain

from pyhostdev import DomainDef, Host, HostdevManager, RefusedError
from pyhostdev.hypervisor.libvirt_hook import prepare_begin, release_end
from pyhostdev.testing.fakehost import FakeHost

Managers = Callable[[FakeHost], HostdevManager]

FIRST = "0000:01:00.0"
SECOND = "0000:02:00.0"

CARD_WITH_A_NIC = """\
driver nvme class:010802
driver tg3 14e4:1657
driver vfio-pci
0000:00:00.0 8086:6f00 060000 group=0
0000:01:00.0 144d:a808 010802 driver=nvme group=1 multifunction express=endpoint flr
0000:01:00.1 14e4:1657 020000 driver=tg3 group=1 multifunction express=endpoint flr
"""


def address(text: str) -> str:
    """Return the <address> of a function of bus 1 or 2."""
    return f"<address domain='0x0000' bus='0x{text[5:7]}' slot='0x00' function='0x{text[11]}'/>"


def disk(controller: str, namespace: int = 1, name: str = "vda", managed: str = "yes") -> str:
    """Return a disk that is a namespace of a controller."""
    source = f"<source type='pci' managed='{managed}' namespace='{namespace}'>{address(controller)}</source>"
    return f"<disk type='nvme' device='disk'>{source}<target dev='{name}' bus='virtio'/></disk>"


def guest(name: str, *devices: str) -> DomainDef:
    """Return a domain with devices."""
    return DomainDef.parse(
        f"<domain type='qemu'><name>{name}</name><memory>131072</memory><os><type machine='q35'>hvm</type></os>"
        f"<devices>{''.join(devices)}</devices></domain>"
    )


def driver(fake: FakeHost, controller: str = FIRST) -> str | None:
    """Return the driver of a controller."""
    found = Host(fake.root).scan().find(controller)
    return None if found is None else found.driver


@pytest.fixture
def fake(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """A host with two NVMe controllers, each in its own group."""
    return fakehost("libvirt")


@pytest.fixture
def manager(fake: FakeHost, manager_for: Managers) -> HostdevManager:
    """The manager of that host."""
    return manager_for(fake)


def reasons(manager: HostdevManager, dom: DomainDef, policy: str = "auto") -> list[tuple[str, str]]:
    """Return what refuses a domain, by reason and address."""
    return [(found.reason, str(found.address)) for found in manager.host.plan(dom, policy).obstacles]


def test_controller_is_detached_and_given_back(fake: FakeHost, manager: HostdevManager) -> None:
    """The controller is bound to vfio-pci and has an owner while the guest has the disk; the host is as before then."""
    before = fake.snapshot()
    with manager.prepared(manager.host.plan(guest("vm1", disk(FIRST)))):
        assert "vfio-pci" == driver(fake)
        assert [(FIRST, "vm1")] == [(str(address), owner) for address, owner in manager.status().active]
    assert before == fake.snapshot()


def test_plan_names_the_disk(manager: HostdevManager) -> None:
    """The table says for which disk the controller leaves the host, and has no guest address of it."""
    plan = manager.host.plan(guest("vm1", disk(FIRST)))
    assert "used by QEMU for the guest's disk vda: detached from driver 'nvme' to vfio-pci" in plan.explain()
    assert {} == plan.guest_addresses
    assert ["detach", "reattach"] == [step.action for step in plan.steps if step.action != "reset"]


def test_namespaces_of_one_controller_belong_to_one_guest(fake: FakeHost, manager: HostdevManager) -> None:
    """Two disks on a controller detach it once; another guest cannot have a namespace of it meanwhile."""
    both = guest("vm1", disk(FIRST), disk(FIRST, 2, "vdb"))
    plan = manager.host.plan(both)
    assert [FIRST] == [str(request.address) for request in plan.requests]
    with manager.prepared(plan):
        other = guest("vm2", disk(FIRST, 3))
        assert [("in-use", FIRST)] == reasons(manager, other)
        with pytest.raises(RefusedError) as refusal:
            manager.prepare(manager.host.plan(other))
        assert 55 == refusal.value.libvirt_code
        assert [] == reasons(manager, guest("vm3", disk(SECOND)))


def test_disk_and_host_device_exclude_each_other(manager: HostdevManager) -> None:
    """A controller under a disk cannot be a host device: neither of the same guest nor of another."""
    hostdev = f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{address(FIRST)}</source></hostdev>"
    assert [("in-use", FIRST)] == reasons(manager, guest("vm1", disk(FIRST), hostdev))
    with manager.prepared(manager.host.plan(guest("vm2", hostdev))):
        assert [("in-use", FIRST)] == reasons(manager, guest("vm1", disk(FIRST)))


def test_unmanaged_controller_must_be_detached_before(fake: FakeHost, manager: HostdevManager) -> None:
    """managed='no' leaves binding to the administrator, before and after."""
    dom = guest("vm1", disk(FIRST, managed="no"))
    assert [("unmanaged-attached", FIRST)] == reasons(manager, dom)
    manager.nodedev_detach(FIRST)
    with manager.prepared(manager.host.plan(dom)):
        assert "vfio-pci" == driver(fake)
    assert "vfio-pci" == driver(fake)
    manager.nodedev_reattach(FIRST)
    assert "nvme" == driver(fake)


def test_missing_controller_is_refused(manager: HostdevManager) -> None:
    """The host must have the controller."""
    assert [("device-missing", "0000:0f:00.0")] == reasons(manager, guest("vm1", disk("0000:0f:00.0")))


def test_completeness_holds_for_a_controller_in_a_group(fakehost: Callable[[str], FakeHost]) -> None:
    """The group rule and row S4 apply: a sibling with a host driver keeps the group's DMA for the host."""
    fake = fakehost(CARD_WITH_A_NIC)
    manager = HostdevManager(Host(fake.root, writer=fake.kernel))
    kept = "<hostdev mode='subsystem' type='pci' managed='yes' assigned='no'><source>{}</source></hostdev>"
    assert [("incomplete-device", "0000:01:00.1")] == reasons(manager, guest("vm1", disk(FIRST)))
    whole = guest("vm1", disk(FIRST), kept.format(address("0000:01:00.1")))
    assert [] == reasons(manager, whole)
    alone = guest("vm1", kept.format(address("0000:01:00.1")))
    assert [("incomplete-device", FIRST)] == reasons(manager, alone, "device")


def test_nodes_are_given_to_the_guests_user(fake: FakeHost, manager: HostdevManager) -> None:
    """QEMU opens the group's node: its user gets it with the controller, and it is restored afterwards."""
    node = fake.root.vfio_group(14)
    with manager.prepared(manager.host.plan(guest("vm1", disk(FIRST))), node_owner=(64055, 108)):
        assert (64055, 108) == fake.kernel.read_node(node)[2:4]  # type: ignore[index]


def test_recover_gives_back_a_half_prepared_controller(fake: FakeHost, manager_for: Managers) -> None:
    """A prepared controller of a guest that is gone is given back by recover, as a host device is."""
    before = fake.snapshot()
    manager = manager_for(fake)
    manager.prepare(manager.host.plan(guest("vm1", disk(FIRST))))
    manager_for(fake).recover(include_prepared=True)
    assert before == fake.snapshot()


def test_backing_image_on_nvme_counts(manager: HostdevManager) -> None:
    """A namespace below an overlay is taken, too."""
    source = f"<source type='pci' managed='yes' namespace='1'>{address(FIRST)}</source>"
    overlay = (
        "<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/>"
        f"<backingStore type='nvme'><format type='raw'/>{source}<backingStore/></backingStore>"
        "<target dev='vda'/></disk>"
    )
    assert [FIRST] == [str(r.address) for r in manager.host.plan(guest("vm1", overlay)).requests]


def test_hook_leaves_a_managed_controller_to_libvirt(fake: FakeHost, manager: HostdevManager) -> None:
    """libvirt detaches the managed one; the hook prepares the other, and refuses for what it finds with either."""
    dom = guest("vm1", disk(FIRST), disk(SECOND, 1, "vdb", managed="no"))
    whole = prepare_begin(manager, dom, "vm1")
    assert [FIRST, SECOND] == [str(request.address) for request in whole.requests]
    assert ("nvme", "vfio-pci") == (driver(fake), driver(fake, SECOND))
    release_end(manager, "vm1")
    assert "nvme" == driver(fake, SECOND)


def test_pins_of_a_moved_controller(manager: HostdevManager) -> None:
    """A pinned controller that has moved is named where it is now."""
    dom = guest("vm1", disk(FIRST))
    first, second = (Host(manager.root).scan().find(text).address for text in (FIRST, SECOND))  # type: ignore[union-attr]
    assert [FIRST] == [str(address) for address, _ in manager.host.read_pins(dom)]
    moved = dom.with_host_addresses({first: second})
    assert [second] == [hostdev.pci_address for hostdev in moved.host_functions()]
    assert [first] == [hostdev.pci_address for hostdev in dom.host_functions()]


def test_controller_of_a_running_guest_cannot_be_unplugged(fake: FakeHost) -> None:
    """QEMU itself uses it: a request to release it is refused, and nothing is given back, also not by finish."""
    source = f"<source type='pci' managed='yes' namespace='1'>{address(FIRST)}</source>"
    xml = f"<disk type='nvme'>{source}<target dev='vda' bus='virtio'/></disk>"
    stage = Stage(fake, definition=live_domain(fake, devices=xml))
    stage.manager.prepare(stage.manager.host.plan(stage.guest.definition))
    with pytest.raises(RefusedError) as refusal:
        stage.detach(FIRST[:-2])
    assert [("in-use", FIRST)] == [(found.reason, str(found.address)) for found in refusal.value.findings]
    assert [] == stage.finish()
    assert "vfio-pci" == driver(fake)
