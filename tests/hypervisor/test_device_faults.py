# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that vanish, are replaced, are moved by another tool, or cannot be reset."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import process

from pyhostdev import (
    DomainDef,
    HostdevManager,
    OperationError,
    PCIDeviceAddress,
    RefusedError,
    SysfsError,
)
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Interfere, Vanish

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
Managers = Callable[[FakeHost], HostdevManager]
Domain = Callable[..., DomainDef]


@pytest.mark.fault("F13")
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("number", range(1, 13))
def test_device_that_vanishes_while_it_is_prepared(
    bcm5719: FakeHost, seed_domain: DomainDef, number: int, opened: bool
) -> None:
    """A device vanishes before or during any write: the others are restored, and no record remains."""
    victim = process(bcm5719)
    gone = CARD[(number - 1) // 3]
    others = [address for address in CARD if address != gone]
    before = {address: victim.manager.host.pci_device(address).driver for address in others}  # type: ignore[union-attr]
    victim.kernel.inject(number, Vanish(gone, opened=opened))
    with pytest.raises((SysfsError, OperationError)) as error:
        victim.manager.prepare(victim.manager.host.plan(seed_domain))
    assert (True, ([], [], [])) == (error.value.rolled_back, victim.manager.status())
    after = {address: victim.manager.host.pci_device(address).driver for address in others}  # type: ignore[union-attr]
    assert before == after


@pytest.mark.fault("F13")
@pytest.mark.parametrize("number", range(1, 21))
def test_device_that_vanishes_while_it_is_released(bcm5719: FakeHost, seed_domain: DomainDef, number: int) -> None:
    """A device vanishes before any write of release: the others are restored, and its own record is closed."""
    victim = process(bcm5719)
    victim.manager.prepare(victim.manager.host.plan(seed_domain))
    victim.kernel.inject(number, Vanish(CARD[2]))
    assert CARD == victim.manager.release("vm1")
    drivers = [victim.manager.host.pci_device(a).driver for a in CARD if a != CARD[2]]  # type: ignore[union-attr]
    assert (["tg3"] * 3, ([], [], [])) == (drivers, victim.manager.status())


def replug(fake: FakeHost, address: PCIDeviceAddress) -> None:
    fake.kernel.vanish(address)
    path = fake.root.join("sys/bus/pci/rescan")
    fake.kernel.foreign().write(path, b"1", device=address)


@pytest.mark.fault("F14")
def test_device_plugged_in_again_is_another_one(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A new device at a prepared one's address is left alone by release, and the old record is removed."""
    victim = process(bcm5719)
    victim.manager.prepare(victim.manager.host.plan(seed_domain))
    replug(bcm5719, CARD[1])
    done = len(victim.kernel.trace)
    victim.manager.release("vm1")
    touched = {os.path.basename(os.path.dirname(e.path)) for e in victim.kernel.trace[done:]}
    assert str(CARD[1]) not in {*touched, *(e.value.decode() for e in victim.kernel.trace[done:])}
    assert ([], [], []) == victim.manager.status()


@pytest.mark.fault("F14")
def test_device_replaced_since_the_plan_is_refused(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A plan is only valid for the devices that it saw: a replaced device is a finding."""
    victim = process(bcm5719)
    plan = victim.manager.host.plan(seed_domain)
    replug(bcm5719, CARD[1])
    with pytest.raises(RefusedError) as error:
        victim.manager.prepare(plan)
    assert [("changed-device", CARD[1])] == [(f.reason, f.address) for f in error.value.findings]
    assert 0 == victim.kernel.writes


@pytest.mark.fault("F16")
@pytest.mark.parametrize("number", [2, 3, 4, 9])
def test_foreign_write_between_two_own_ones_is_a_failure(
    bcm5719: FakeHost, seed_domain: DomainDef, number: int
) -> None:
    """A foreign change of an override during prepare makes it fail, and all devices return to their drivers."""
    victim = process(bcm5719)
    address = CARD[(number - 2) // 3]
    override = f"{bcm5719.root.pci_device(address)}/driver_override"
    victim.kernel.inject(number, Interfere(lambda other: other.write(override, b"pci-stub", device=address)))
    with pytest.raises((OperationError, SysfsError)) as error:
        victim.manager.prepare(victim.manager.host.plan(seed_domain))
    assert error.value.rolled_back is True
    drivers = [victim.manager.host.pci_device(address).driver for address in CARD]  # type: ignore[union-attr]
    assert ["tg3"] * 4 == drivers


@pytest.mark.fault("F16")
def test_listed_device_back_on_its_host_driver_is_refused(bcm5719: FakeHost, domain: Domain) -> None:
    """An unmanaged device of the inactive list that has its host driver again is refused."""
    victim = process(bcm5719)
    for address in CARD:
        victim.manager.nodedev_detach(address)
    foreign, path = bcm5719.kernel.foreign(), bcm5719.root.join("sys/bus/pci")
    for name, value in (
        (f"devices/{CARD[0]}/driver_override", "tg3"),
        ("drivers/vfio-pci/unbind", str(CARD[0])),
        ("drivers/tg3/bind", str(CARD[0])),
    ):
        foreign.write(f"{path}/{name}", value.encode(), device=CARD[0])
    plan = victim.manager.host.plan(domain("vm1", f"{CARD[0]} unmanaged"), "off")
    assert [("unmanaged-attached", CARD[0])] == [(finding.reason, finding.address) for finding in plan.findings]
    with pytest.raises(RefusedError):
        victim.manager.prepare(plan)


@pytest.mark.fault("F17")
def test_stub_unloaded_under_a_guest(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Release binds a prepared device without its stub to its original driver."""
    before = bcm5719.snapshot()
    victim = process(bcm5719)
    victim.manager.prepare(victim.manager.host.plan(seed_domain))
    unbind = f"{bcm5719.root.pci_driver('vfio-pci')}/unbind"
    bcm5719.kernel.foreign().write(unbind, str(CARD[3]).encode(), device=CARD[3])
    victim.manager.release("vm1")
    assert before == bcm5719.snapshot()


@pytest.mark.fault("F18")
def test_dynamic_id_steals_nothing(fakehost: Callable[[str], FakeHost], seed_domain: DomainDef) -> None:
    """If vfio-pci has the card's ID as a dynamic ID, release still binds the recorded driver."""
    fake = fakehost("bcm5719")
    fake.kernel.foreign().write(f"{fake.root.pci_driver('vfio-pci')}/new_id", b"14e4 1657", device=CARD[0])
    before = fake.snapshot()
    victim = process(fake)
    with victim.manager.prepared(victim.manager.host.plan(seed_domain)):
        pass
    assert before == fake.snapshot()


@pytest.mark.fault("F19", "F40")
def test_interrupted_release_resets_before_recover_finishes_it(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Recover resets a device before it is reattached, as release does."""
    process(bcm5719).manager.prepare(process(bcm5719).manager.host.plan(seed_domain))
    last = process(bcm5719)
    last.manager.recover(include_prepared=True, timeout_s=0)
    names = [os.path.basename(entry.path) for entry in last.kernel.trace]
    assert ["reset", "driver_override", "unbind", "bind", "driver_override"] * 4 == names


@pytest.mark.fault("F19")
def test_nodedev_reset_needs_a_reset_of_its_own(fakehost: Callable[[str], FakeHost]) -> None:
    """A function that can only be reset with its neighbours is refused, and so is a bridge."""
    manager = process(fakehost("libvirt")).manager
    manager.nodedev_reset(PCIDeviceAddress.parse("0000:00:01.0"))
    with pytest.raises(RefusedError, match="bridge"):
        manager.nodedev_reset(PCIDeviceAddress.parse("0000:00:04.0"))
    text = (
        "0000:01:00.0 8086:1521 020000 driver=igb group=1 express=endpoint multifunction\n"
        "0000:01:00.1 8086:1521 020000 driver=igb group=1 express=endpoint multifunction\n"
    )
    bare = process(fakehost(f"driver igb 8086:1521\n{text}")).manager
    with pytest.raises(OperationError, match="no reset"):
        bare.nodedev_reset(PCIDeviceAddress(0, 1, 0, 0))


@pytest.mark.fault("F20")
def test_device_that_answers_nothing_is_refused(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A device whose configuration space reads as all ones is missing; the others are not touched."""
    config = Path(bcm5719.root.pci_device(CARD[2]), "config")
    config.write_bytes(b"\xff" * config.stat().st_size)
    victim = process(bcm5719)
    with pytest.raises(RefusedError) as error:
        victim.manager.prepare(victim.manager.host.plan(seed_domain))
    assert ("device-missing", CARD[2]) in [(f.reason, f.address) for f in error.value.findings]
    assert 0 == victim.kernel.writes
