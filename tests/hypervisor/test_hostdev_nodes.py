# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes below /dev/vfio: the guest's user owns them exactly as long as the guest has the devices."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import process

from pyhostdev import (
    ConfigUnsupportedError,
    DomainDef,
    Host,
    HostdevManager,
    OperationError,
    PCIDeviceAddress,
    SysfsError,
)
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Fail
from pyhostdev.testing.kernel import SimulatedKernel

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
USER = (107, 36)
Domain = Callable[..., DomainDef]


def owners(fake: FakeHost) -> dict[str, tuple[int, int]]:
    """Return the owner of each VFIO node, by its name below dev/vfio."""
    found = {}
    for top, _, names in os.walk(fake.root.dev_vfio):
        for name in names:
            node = fake.kernel.read_node(os.path.join(top, name))
            assert node is not None
            found[os.path.relpath(os.path.join(top, name), fake.root.dev_vfio)] = (node.uid, node.gid)
    found.pop("vfio", None)
    return found


def with_iommufd(fake: FakeHost) -> FakeHost:
    """Give a host the device of iommufd, so that each function has a node of its own."""
    Path(fake.root.dev_iommu).parent.mkdir(exist_ok=True)
    Path(fake.root.dev_iommu).touch()
    return fake


@pytest.mark.fault("F41")
def test_group_node_is_the_users_while_the_guest_has_it(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """The owner of the node changes together with the devices, and is restored with them."""
    before = bcm5719.snapshot()
    manager = process(bcm5719).manager
    with manager.prepared(manager.host.plan(seed_domain), node_owner=USER):
        assert {"14": USER} == owners(bcm5719)
    assert before == bcm5719.snapshot()


def test_functions_nodes_are_given_for_assigned_ones_only(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """With iommufd, the user also gets the own node of each assigned function, and no other."""
    manager = process(with_iommufd(bcm5719)).manager
    manager.prepare(manager.host.plan(seed_domain), node_owner=USER)
    found = owners(bcm5719)
    numbers = {a: os.listdir(os.path.join(bcm5719.root.pci_device(a), "vfio-dev"))[0] for a in CARD}
    assert {USER} == {found[f"devices/{numbers[a]}"] for a in (CARD[0], CARD[3])}
    assert {(0, 0)} == {found[f"devices/{numbers[a]}"] for a in CARD[1:3]}
    manager.release("vm1")
    assert not os.path.exists(bcm5719.root.dev_vfio_devices)


def test_group_of_a_function_that_is_only_declared_is_not_given(
    fakehost: Callable[[str], FakeHost], domain: Domain
) -> None:
    """The user of a guest gets no access to a function that is not assigned."""
    fake = fakehost("nic-own-groups")
    manager = process(fake).manager
    manager.prepare(manager.host.plan(domain("vm1", "0000:04:00.0 yes", "0000:04:00.1 no")), node_owner=USER)
    assert sorted([(0, 0), USER]) == sorted(owners(fake).values())


def test_prepare_without_a_user_changes_no_owner(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Nodes keep root as their owner unless another owner is requested."""
    manager = process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    assert {"14": (0, 0)} == owners(bcm5719)


def test_node_that_stays_is_given_back(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Devices that were bound to vfio-pci before keep it; root owns their node again."""
    manager = process(bcm5719).manager
    for address in CARD:
        manager.nodedev_detach(address)
    manager.prepare(manager.host.plan(seed_domain), node_owner=USER)
    assert {"14": USER} == owners(bcm5719)
    manager.release("vm1")
    assert {"14": (0, 0)} == owners(bcm5719)
    assert all(not record.nodes for record in manager.journal.read()[0].values())


@pytest.mark.fault("F41")
def test_recreated_node_is_left_alone(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A recreated node is left alone, whatever its owner."""
    manager = process(bcm5719).manager
    for address in CARD:
        manager.nodedev_detach(address)
    manager.prepare(manager.host.plan(seed_domain), node_owner=USER)
    node = Path(bcm5719.root.vfio_group(14))
    node.rename(node.with_name("old"))
    node.write_text("5:5\n")
    node.with_name("old").unlink()
    messages = [item.message for item in manager.recover(include_prepared=True)]
    assert 2 == sum("was replaced, and was left alone" in text for text in messages)
    assert {"14": (5, 5)} == owners(bcm5719)


def test_node_with_another_owner_is_left_alone(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Another program's later change of a node's owner is not undone."""
    manager = process(bcm5719).manager
    for address in CARD:
        manager.nodedev_detach(address)
    manager.prepare(manager.host.plan(seed_domain), node_owner=USER)
    Path(bcm5719.root.vfio_group(14)).write_text("6:6\n")
    manager.release("vm1")
    assert {"14": (6, 6)} == owners(bcm5719)


def test_second_prepare_of_a_guest_remembers_the_first_owner(
    fakehost: Callable[[str], FakeHost], domain: Domain
) -> None:
    """A node that the same guest already has returns to the owner before the first prepare."""
    fake = fakehost("bcm5719")
    manager = process(fake).manager
    for address in CARD:
        manager.nodedev_detach(address)
    for address in CARD[:2]:
        manager.prepare(manager.host.plan(domain("vm1", str(address)), "off"), node_owner=USER)
    manager.reattach_pci_devices("qemu", "vm1", domain("vm1", str(CARD[0])).pci_hostdevs())
    assert {"14": USER} == owners(fake)
    manager.release("vm1")
    assert {"14": (0, 0)} == owners(fake)


@pytest.mark.fault("F41")
def test_refused_owner_is_rolled_back(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """If the owner of a node cannot be changed, the whole prepare is rolled back."""
    before = bcm5719.snapshot()
    victim = process(bcm5719)
    victim.kernel.inject(13, Fail(errno.EPERM))
    with pytest.raises(SysfsError) as error:
        victim.manager.prepare(victim.manager.host.plan(seed_domain), node_owner=USER)
    assert (errno.EPERM, True) == (error.value.errno, error.value.rolled_back)
    assert (before, ([], [], [])) == (bcm5719.snapshot(), victim.manager.status())


@pytest.mark.parametrize("kind", ["link", "directory", "nothing"])
def test_only_a_node_changes_its_owner(bcm5719: FakeHost, seed_domain: DomainDef, tmp_path: Path, kind: str) -> None:
    """A link, a directory or nothing in place of a node rolls prepare back; no link is followed."""
    manager = process(bcm5719).manager
    for address in CARD:
        manager.nodedev_detach(address)
    node, elsewhere = Path(bcm5719.root.vfio_group(14)), tmp_path / "elsewhere"
    node.unlink()
    elsewhere.write_text("")
    if kind == "link":
        node.symlink_to(elsewhere)
    elif kind == "directory":
        node.mkdir()
    with pytest.raises(OperationError) as error:
        manager.prepare(manager.host.plan(seed_domain), node_owner=USER)
    assert (True, "") == (error.value.rolled_back, elsewhere.read_text())
    assert CARD == manager.status().inactive


def test_writer_without_nodes_is_reported(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A foreign SysfsWriter that cannot change owners: the error says so, and everything is rolled back."""

    class Writer:
        def __init__(self, kernel: SimulatedKernel) -> None:
            self.write, self.load_module, self.is_in_flight = kernel.write, kernel.load_module, kernel.is_in_flight

    manager = HostdevManager(Host(bcm5719.root, writer=Writer(bcm5719.kernel)))
    before = bcm5719.snapshot()
    with pytest.raises(ConfigUnsupportedError):
        manager.prepare(manager.host.plan(seed_domain), node_owner=USER)
    assert before == bcm5719.snapshot()
