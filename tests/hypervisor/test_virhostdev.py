# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manager: changes are atomic, drivers are restored by name, other processes see the lists."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scenarios import card

from pyhostdev import (
    ConfigError,
    DeviceInUseError,
    DomainDef,
    Host,
    HostdevManager,
    OperationError,
    PCIDeviceAddress,
    RefusedError,
    SysfsError,
)
from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.testing.faults import Fail, Hang, Interfere
from pyhostdev.util.pcidriver import DriverMover, read_binding
from pyhostdev.util.sysfs_writer import ForkedWriter

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
Managers = Callable[[FakeHost], HostdevManager]
Domain = Callable[..., DomainDef]


def drivers(fake: FakeHost) -> list[str | None]:
    scan = Host(fake.root).scan()
    return [scan.find(address).driver for address in CARD]  # type: ignore[union-attr]


def prepare(manager: HostdevManager, definition: DomainDef, policy: str = "auto") -> None:
    manager.prepare(manager.host.plan(definition, policy))


def test_s5_prepare_and_release_round_trip(bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers) -> None:
    """S5: all four are detached and active with their owner, and reattached afterwards; the host is as before."""
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    with manager.prepared(manager.host.plan(seed_domain), owner="vm1"):
        assert drivers(bcm5719) == ["vfio-pci"] * 4
        assert [(a, "vm1") for a in CARD] == manager_for(bcm5719).status().active
    assert before == bcm5719.snapshot()
    assert manager.status()[:2] == ([], [])


def test_error_while_prepared_says_that_all_was_rolled_back(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """An error such as QEMU's early end leaves the block after the release, and says that the host is as before."""
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    with pytest.raises(OperationError) as caught, manager.prepared(manager.host.plan(seed_domain)):
        assert drivers(bcm5719) == ["vfio-pci"] * 4
        raise OperationError("QEMU ended before the guest could run")
    assert caught.value.rolled_back is True
    assert before == bcm5719.snapshot()


def test_lists_are_seen_and_released_by_another_process(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A second manager sees the owner, and can release what the first one prepared."""
    before = bcm5719.snapshot()
    prepare(manager_for(bcm5719), seed_domain)
    assert manager_for(bcm5719).release("vm1") == CARD
    assert before == bcm5719.snapshot()


def test_originals_are_on_disk_before_the_first_write(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """When the first write fails, all four records have been there already."""
    manager = manager_for(bcm5719)
    seen: list[int] = []
    write = manager.host.writer.write  # type: ignore[union-attr]

    def watch(path: str, value: bytes, *, device: PCIDeviceAddress) -> None:
        seen.append(len(manager_for(bcm5719).journal.read()[0]))
        write(path, value, device=device)

    manager.host.writer.write = watch  # type: ignore[union-attr, method-assign]
    prepare(manager, seed_domain)
    assert seen[0] == 4


def test_refusal_touches_nothing(bcm5719: FakeHost, domain: Domain, manager_for: Managers) -> None:
    """Declaring functions 0 and 3 of a 4-function device names the two missing ones and changes no byte."""
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    with pytest.raises(RefusedError) as refusal:
        prepare(manager, domain("vm1", f"{CARD[0]} yes", f"{CARD[3]} yes"))
    assert CARD[1:3] == [finding.address for finding in refusal.value.findings]
    assert before == bcm5719.snapshot()
    assert ([], [], []) == manager.status()


def test_s5_second_domain_gets_the_owner(bcm5719: FakeHost, domain: Domain, manager_for: Managers) -> None:
    """S5: a not-assigned function is on the active list like any other; a second owner's error names the first."""
    words = [f"{CARD[0]} yes", f"{CARD[1]} no", f"{CARD[2]} no", f"{CARD[3]} yes"]
    manager = manager_for(bcm5719)
    prepare(manager, domain("vm1", *words))
    with pytest.raises(RefusedError, match="'vm1'") as refusal:
        prepare(manager_for(bcm5719), domain("vm2", str(CARD[1])), "off")
    assert {"in-use"} == {finding.reason for finding in refusal.value.findings}


def writes_of(fake: FakeHost) -> int:
    return len(fake.kernel.trace)


def test_every_failing_write_is_rolled_back(
    fakehost: Callable[[str], FakeHost], tmp_path: Path, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """For any failing write of prepare, the host and the lists are as before, and the first error is raised."""
    fake = fakehost("bcm5719")
    prepare(manager_for(fake), seed_domain)
    total = writes_of(fake)
    assert total >= 12
    for number in range(1, total + 1):
        fake = FakeHost.named("bcm5719", tmp_path / f"host{number}")
        before = fake.snapshot()
        fake.kernel.inject(number, Fail(errno.EIO))
        manager = manager_for(fake)
        with pytest.raises(SysfsError) as error:
            prepare(manager, seed_domain)
        assert (error.value.errno, error.value.rolled_back) == (errno.EIO, True)
        assert before == fake.snapshot()
        assert manager.status() == ([], [], [])


def test_failed_give_back_keeps_its_record(bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers) -> None:
    """A device that cannot go back stays known, the others go back, and a repeated release finishes."""
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    bcm5719.kernel.inject(5, Fail(errno.EIO))  # behind the four resets
    with pytest.raises(OperationError) as error:
        manager.release("vm1")
    assert error.value.rolled_back is False
    assert [(CARD[0], "vm1")] == manager.status().active
    assert [CARD[0]] == manager.release("vm1")
    assert before == bcm5719.snapshot()


def test_driver_and_override_come_back_as_recorded(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A recorded override that names another driver than the recorded one comes back too."""
    override = f"{bcm5719.root.pci_device(CARD[1])}/driver_override"
    bcm5719.kernel.write(override, b"pci-stub", device=CARD[1])
    bcm5719.kernel.write(f"{bcm5719.root.pci_driver('tg3')}/unbind", str(CARD[2]).encode(), device=CARD[2])
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    with manager.prepared(manager.host.plan(seed_domain)):
        assert drivers(bcm5719) == ["vfio-pci"] * 4
    assert before == bcm5719.snapshot()
    assert drivers(bcm5719) == ["tg3", "tg3", None, "tg3"]


def test_signal_in_the_middle_finishes_the_undo(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """SIGTERM after some steps, once: everything is undone before it is delivered."""
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    arrived: list[object] = []
    old = signal.signal(signal.SIGTERM, lambda *_: arrived.append(bcm5719.snapshot()))
    write = manager.host.writer.write  # type: ignore[union-attr]

    def interrupted(path: str, value: bytes, *, device: PCIDeviceAddress) -> None:
        write(path, value, device=device)
        if device == CARD[1] and path.endswith("/vfio-pci/bind"):
            os.kill(os.getpid(), signal.SIGTERM)

    manager.host.writer.write = interrupted  # type: ignore[union-attr, method-assign]
    try:
        with pytest.raises(OperationError, match="SIGTERM") as error:
            prepare(manager, seed_domain)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert error.value.rolled_back is True
    assert [before] == arrived


def test_devices_are_reset_before_the_first_goes_back(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """No function is reattached with a guest's state in it; after a failed reset it is still reattached."""
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    done = len(bcm5719.kernel.trace)
    bcm5719.kernel.inject(2, Fail(errno.ENOTTY))
    manager.release("vm1")
    written = [os.path.basename(entry.path) for entry in bcm5719.kernel.trace[done:]]
    assert ["reset"] * 4 == written[:4]
    assert "reset" not in written[4:]
    assert ["tg3"] * 4 == drivers(bcm5719)


def test_foreign_change_is_reported_and_not_undone(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A device that another tool moved to a third driver is left there, and reported."""
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    top = bcm5719.root.pci_device(CARD[1])
    for path, value in (
        (f"{top}/driver_override", b"pci-stub"),
        (f"{bcm5719.root.pci_driver('vfio-pci')}/unbind", str(CARD[1]).encode()),
        (f"{bcm5719.root.pci_driver('pci-stub')}/bind", str(CARD[1]).encode()),
    ):
        bcm5719.kernel.write(path, value, device=CARD[1])
    with pytest.raises(OperationError, match="pci-stub"):
        manager.release("vm1")
    assert drivers(bcm5719) == ["tg3", "pci-stub", "tg3", "tg3"]


def test_module_is_loaded_as_a_visible_step(
    fakehost: Callable[[str], FakeHost], seed_domain: DomainDef, manager_for: Managers
) -> None:
    """If the vfio-pci module is not loaded, the plan reports it once and prepare loads it."""
    text = Path(HOSTS, "bcm5719.tree").read_text()
    fake = fakehost(text.replace("driver vfio-pci\n", "driver vfio-pci available\n"))
    manager = manager_for(fake)
    plan = manager.host.plan(seed_domain)
    assert ["load-module"] + ["detach"] * 4 + ["reset"] * 4 + ["reattach"] * 4 == [step.action for step in plan.steps]
    assert (str(CARD[0]), "vfio-pci") == (str(plan.steps[0].address), plan.steps[0].after)
    with manager.prepared(plan):
        assert ["vfio-pci"] * 4 == drivers(fake)


class Scenario:
    """libvirt's own manager scenarios (virhostdevtest) on its fake host: three single functions."""

    DEVICES = tuple(PCIDeviceAddress(0, 0, slot, 0) for slot in (1, 2, 3))

    def __init__(self, fake: FakeHost, domain: Domain, managers: Managers) -> None:
        self.manager = managers(fake)
        self.managed = domain("vm", *(str(a) for a in self.DEVICES))
        self.unmanaged = domain("vm", *(f"{a} unmanaged" for a in self.DEVICES))
        self.other = domain("other", *(str(a) for a in self.DEVICES))

    def counts(self) -> tuple[int, int]:
        status = self.manager.status()
        return len(status.active), len(status.inactive)

    def prepare(self, definition: DomainDef, driver: str = "qemu") -> None:
        self.manager.prepare_pci_devices(driver, definition.name, definition.pci_hostdevs())

    def reattach(self, definition: DomainDef) -> None:
        self.manager.reattach_pci_devices("qemu", definition.name, definition.pci_hostdevs())

    def detach_all(self) -> None:
        for address in self.DEVICES:
            self.manager.nodedev_detach(address)

    def nodedev_reattach_all(self) -> None:
        for address in self.DEVICES:
            self.manager.nodedev_reattach(address)

    def check_conflicts(self, definition: DomainDef) -> None:
        counts = self.counts()
        for wanted in (definition, self.other):
            with pytest.raises(DeviceInUseError):
                self.prepare(wanted)
        assert counts == self.counts()


@pytest.fixture
def scenario(fakehost: Callable[[str], FakeHost], domain: Domain, manager_for: Managers) -> Scenario:
    return Scenario(fakehost("libvirt"), domain, manager_for)


def test_roundtrip_no_guest(scenario: Scenario) -> None:
    """RoundtripNoGuest: detach puts each on the inactive list, reattach takes each off."""
    scenario.detach_all()
    assert scenario.counts() == (0, 3)
    scenario.nodedev_reattach_all()
    assert scenario.counts() == (0, 0)


def test_roundtrip_unmanaged(scenario: Scenario) -> None:
    """RoundtripUnmanaged: inactive to active and back; an empty list does nothing; conflicts change nothing."""
    scenario.detach_all()
    scenario.manager.prepare_pci_devices("qemu", "vm", [])
    scenario.prepare(scenario.unmanaged)
    assert scenario.counts() == (3, 0)
    scenario.check_conflicts(scenario.unmanaged)
    scenario.reattach(scenario.unmanaged)
    assert scenario.counts() == (0, 3)
    scenario.nodedev_reattach_all()
    assert scenario.counts() == (0, 0)


def test_roundtrip_managed(scenario: Scenario) -> None:
    """RoundtripManaged: active while used, on no list afterwards."""
    scenario.prepare(scenario.managed)
    assert scenario.counts() == (3, 0)
    scenario.check_conflicts(scenario.managed)
    scenario.reattach(scenario.managed)
    assert scenario.counts() == (0, 0)


def test_roundtrip_mixed(scenario: Scenario) -> None:
    """RoundtripMixed: devices detached by hand return to the inactive list, managed or not."""
    scenario.detach_all()
    scenario.prepare(scenario.managed)
    assert scenario.counts() == (3, 0)
    scenario.reattach(scenario.managed)
    assert scenario.counts() == (0, 3)
    scenario.nodedev_reattach_all()
    assert scenario.counts() == (0, 0)


def test_foreign_change_of_a_moved_device_is_a_failure(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A foreign change of the first device while prepare moves the last makes prepare fail, and all are rolled back."""
    before = bcm5719.snapshot()
    override = f"{bcm5719.root.pci_device(CARD[0])}/driver_override"
    last = 3 * len(CARD)  # override, unbind and bind a device
    bcm5719.kernel.inject(last, Interfere(lambda other: other.write(override, b"tg3", device=CARD[0])))
    with pytest.raises(OperationError, match="has 'vfio-pci' and 'tg3'") as error:
        prepare(manager_for(bcm5719), seed_domain)
    assert error.value.rolled_back
    assert before == bcm5719.snapshot()


def test_foreign_change_of_a_kept_device_is_a_failure(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A device that was with vfio-pci before and is taken away while others are moved makes prepare fail, too."""
    DriverMover(bcm5719.root, bcm5719.kernel).detach(CARD[1], read_binding(bcm5719.root, CARD[1]), "vfio-pci")
    unbind = f"{bcm5719.root.pci_device(CARD[1])}/driver/unbind"
    last = 3 * (len(CARD) - 1)
    action = Interfere(lambda other: other.write(unbind, str(CARD[1]).encode(), device=CARD[1]))
    bcm5719.kernel.inject(last, action)
    with pytest.raises(OperationError, match=f"Device {CARD[1]} should have driver 'vfio-pci'"):
        prepare(manager_for(bcm5719), seed_domain)
    assert ["tg3", None, "tg3", "tg3"] == drivers(bcm5719)
    assert ([], []) == manager_for(bcm5719).status()[:2]


def test_release_refuses_before_it_writes_while_the_group_is_held(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A process with the group open would block the unbind for ever: it is named, and nothing is written."""
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    during = bcm5719.snapshot()
    with bcm5719.kernel.open_group(14), pytest.raises(DeviceInUseError, match="held open by"):
        manager.release("vm1")
    assert during == bcm5719.snapshot()
    assert manager.release("vm1") == CARD


def test_device_in_doubt_has_the_word_when_several_cannot_be_given_back(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """The error of a release names the device in doubt, its driver and the step, whatever else failed before it."""
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    first = len(CARD) + 1  # behind a reset of each
    bcm5719.kernel.inject(first, Fail(errno.EIO))
    bcm5719.kernel.inject(first + 2, Hang())  # the second device: override, then unbind
    with pytest.raises(OperationError, match=f"2 of 4 .*{CARD[1]} is in doubt: .*vfio-pci/unbind") as error:
        manager.release("vm1")
    assert ("in-doubt", CARD[1]) == (error.value.reason, error.value.address)
    bcm5719.kernel.complete()
    assert all(item.is_done for item in manager.recover(timeout_s=0))


def test_live_host_writes_by_itself_and_a_directory_does_not(bcm5719: FakeHost) -> None:
    """HostdevManager(Host("/")) is all a program needs; a directory is read only until it is given a kernel."""
    assert ForkedWriter is type(HostdevManager(Host("/")).context.writer)
    with pytest.raises(ConfigError, match="read only"):
        HostdevManager(Host(bcm5719.root))


@pytest.mark.parametrize("stub", ["vfio-pci", "pci-stub", "mlx5_vfio_pci"])
def test_detached_device_comes_from_where_it_came_whoever_had_it_since(
    fakehost: Callable[[str], FakeHost], domain: Domain, manager_for: Managers, stub: str
) -> None:
    """A guest that had a device of the inactive list changes nothing about what nodedev-reattach restores."""
    fake = fakehost(card(2, f1="override=pci-stub"))
    addresses = [PCIDeviceAddress(0, 1, 0, function) for function in (0, 1)]
    before = fake.snapshot()
    manager = manager_for(fake)
    for address in addresses:
        manager.nodedev_detach(address, stub)
    prepare(manager, domain("vm1", *map(str, addresses)))
    manager.release("vm1")
    for address in addresses:
        manager.nodedev_reattach(address)
    assert (before, ([], [], [])) == (fake.snapshot(), manager.status())


def test_release_resets_only_what_goes_back_to_the_host(
    bcm5719: FakeHost, domain: Domain, manager_for: Managers
) -> None:
    """Devices that stay on vfio-pci or return to the inactive list are not reset."""
    manager = manager_for(bcm5719)
    DriverMover(bcm5719.root, bcm5719.kernel).detach(CARD[1], read_binding(bcm5719.root, CARD[1]), "vfio-pci")
    manager.nodedev_detach(CARD[2])
    prepare(manager, domain("vm1", *map(str, CARD)))
    manager.release("vm1")
    resets = [entry.path for entry in bcm5719.kernel.trace if entry.path.endswith("/reset")]
    assert [str(CARD[0]), str(CARD[3])] == [os.path.basename(os.path.dirname(path)) for path in resets]


def test_release_leaves_alone_what_prepare_did_not_move(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A device that was bound to vfio-pci before stays where another tool has bound it since."""
    mover = DriverMover(bcm5719.root, bcm5719.kernel)
    original = read_binding(bcm5719.root, CARD[1])
    mover.detach(CARD[1], original, "vfio-pci")
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    mover.give_back(CARD[1], original)
    assert CARD == manager.release("vm1")
    assert ["tg3"] * 4 == drivers(bcm5719)


def test_devices_go_back_in_the_order_of_the_domain(bcm5719: FakeHost, domain: Domain, manager_for: Managers) -> None:
    """The first hostdev is the first to go back, whatever its address."""
    wanted = [CARD[2], CARD[0], CARD[3], CARD[1]]
    manager = manager_for(bcm5719)
    prepare(manager, domain("vm1", *map(str, wanted)))
    done = len(bcm5719.kernel.trace)
    assert wanted == manager.release("vm1")
    bound = [entry.value.decode() for entry in bcm5719.kernel.trace[done:] if entry.path.endswith("/bind")]
    assert [str(address) for address in wanted] == bound


def test_release_waits_for_a_process_that_is_being_refused(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A release does not fail for a lock that is held only for a moment."""
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    other = ExitStack()
    other.enter_context(manager_for(bcm5719).context.locked(CARD, None))
    threading.Timer(0.05, other.close).start()
    assert CARD == manager.release("vm1")


def test_release_decides_under_its_locks(
    bcm5719: FakeHost, seed_domain: DomainDef, domain: Domain, manager_for: Managers
) -> None:
    """What another guest has got just before release has its owner's lock is that guest's."""
    late = manager_for(bcm5719)
    prepare(manager_for(bcm5719), seed_domain)
    locked = late.context.locked

    def locked_late(*args: Any) -> Any:
        late.context.locked = locked  # type: ignore[method-assign]
        manager_for(bcm5719).release("vm1")
        prepare(manager_for(bcm5719), domain("vm2", *map(str, CARD)))
        return locked(*args)

    late.context.locked = locked_late  # type: ignore[method-assign,assignment]
    assert [] == late.release("vm1")
    assert [(address, "vm2") for address in CARD] == late.status().active


def test_signal_in_the_middle_of_release_arrives_when_all_is_back(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """SIGTERM after the first device has gone back: the others go back before it is delivered."""
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    prepare(manager, seed_domain)
    itself = Interfere(lambda _: os.kill(os.getpid(), signal.SIGTERM))
    bcm5719.kernel.inject(len(CARD) + 3, itself)  # behind a reset of each
    arrived: list[object] = []
    old = signal.signal(signal.SIGTERM, lambda *_: arrived.append(bcm5719.snapshot()))
    try:
        manager.release("vm1")
    finally:
        signal.signal(signal.SIGTERM, old)
    assert [before] == arrived


def test_reattach_gives_back_what_is_asked_for_and_the_domains_own(
    bcm5719: FakeHost, domain: Domain, manager_for: Managers
) -> None:
    """Of a domain's devices those that are named, and of those that are named the domain's."""
    manager = manager_for(bcm5719)
    prepare(manager, domain("vm1", *map(str, CARD)))
    two = domain("vm1", *map(str, CARD[:2])).pci_hostdevs()
    manager.reattach_pci_devices("qemu", "vm2", two)
    assert CARD == [device.address for device in manager.status().active]
    manager.reattach_pci_devices("qemu", "vm1", two)
    assert CARD[2:] == [device.address for device in manager.status().active]


def test_bad_record_is_set_aside_before_another_takes_its_place(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """What cannot be read of a device stays for a look when a prepare writes down what it finds."""
    os.makedirs(bcm5719.root.state_dir, 0o700)
    path = Path(bcm5719.root.state_dir, f"{CARD[0]}.json")
    path.write_bytes(b"half a rec")
    manager = manager_for(bcm5719)
    with manager.prepared(manager.host.plan(seed_domain)):
        assert CARD == [device.address for device in manager.status().active]
    assert b"half a rec" == path.with_name(f"{path.name}.bad").read_bytes()


def test_old_spellings_of_the_context_warn(bcm5719: FakeHost) -> None:
    """What moved into the context is found at the manager, with a warning; any other name is not."""
    manager = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel))
    for name in ("locked", "restorer", "writer"):
        with pytest.warns(DeprecationWarning, match=f"context.{name}"):
            assert getattr(manager.context, name) == getattr(manager, name)
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        getattr(manager, "gone")  # noqa: B009
