# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real processes: killed at random moments, and two that compete for the same devices."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import process
from kills import kill_at_random
from scenarios import SCENARIOS, Stage

from pyhostdev import DeviceInUseError, DomainDef, HostdevManager, PCIDeviceAddress, RefusedError
from pyhostdev.hypervisor.hostdev_lock import lock_set
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Delay

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
PF, VF = PCIDeviceAddress.parse("0000:03:00.0"), PCIDeviceAddress.parse("0000:03:10.0")
OTHER_VF = VF.with_function(2)
Domain = Callable[..., DomainDef]
_fork = multiprocessing.get_context("fork")


@pytest.mark.fault("F1")
@pytest.mark.parametrize("name", ["seed", "one-inactive-of-three"])
def test_killed_at_random(tmp_path: Path, name: str) -> None:
    """After SIGKILL at a random moment of prepare or release, recover restores everything."""
    stage, chance = Stage(next(s for s in SCENARIOS if s.name == name), tmp_path), random.Random(name)
    for _ in range(6):
        kill_at_random(stage, chance)


def hold(fake: FakeHost, definition: DomainDef, started: object, go_on: object) -> None:
    """Prepare in a child, slowly: signal when it is in the middle, and end on request."""
    child = process(fake)
    write = child.kernel.write

    def slow(path: str, value: bytes, *, device: PCIDeviceAddress | str) -> None:
        started.set()  # type: ignore[attr-defined]
        go_on.wait(10)  # type: ignore[attr-defined]
        write(path, value, device=device)

    child.kernel.write = slow  # type: ignore[method-assign]
    child.manager.prepare(child.manager.host.plan(definition))


class Busy:
    """A process in the middle of preparing a domain's devices."""

    def __init__(self, fake: FakeHost, definition: DomainDef) -> None:
        self.started, self.go_on = _fork.Event(), _fork.Event()
        self.process = _fork.Process(target=hold, args=(fake, definition, self.started, self.go_on))

    def __enter__(self) -> Busy:
        self.process.start()
        assert self.started.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self.go_on.set()
        self.process.join(10)
        assert 0 == self.process.exitcode


@pytest.mark.fault("F6")
def test_loser_gets_the_owner_at_once(bcm5719: FakeHost, seed_domain: DomainDef, domain: Domain) -> None:
    """A request for a device that another process is preparing is refused with its owner's name, without a wait."""
    manager = process(bcm5719).manager
    plan = manager.host.plan(domain("vm2", *(f"{a} {'no' if a.function else 'yes'}" for a in CARD)))
    with Busy(bcm5719, seed_domain) as busy:
        begun = time.monotonic()
        with pytest.raises(DeviceInUseError, match=rf"held by 'vm1' \(process {busy.process.pid}\)") as error:
            manager.prepare(plan)
        assert time.monotonic() - begun < 1
    assert (None, "in-use") == (error.value.rolled_back, error.value.reason)
    assert {"vm1"} == {device.owner for device in manager.status().active}


@pytest.mark.fault("F6")
def test_same_owner_cannot_be_prepared_twice_at_once(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """Two processes that start the same domain exclude each other, even with different devices."""
    fake = fakehost("nic-own-groups")
    manager = process(fake).manager
    plan = manager.host.plan(domain("vm1", "0000:04:00.1"))
    with Busy(fake, domain("vm1", "0000:04:00.0")), pytest.raises(DeviceInUseError, match="lock of owner"):
        manager.prepare(plan)


@pytest.mark.fault("F6", "F9")
def test_unrelated_guests_never_meet(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """During the prepare of one domain, another domain with other groups is prepared and released."""
    fake = fakehost("nic-own-groups")
    manager = process(fake).manager
    with Busy(fake, domain("vm1", "0000:04:00.0")):
        manager.prepare(manager.host.plan(domain("vm2", "0000:04:00.1")))
        manager.release("vm2")
    assert ["vm1"] == [device.owner for device in manager.status().active]


@pytest.mark.fault("F6")
def test_vfs_share_their_pf_and_the_pf_is_exclusive(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """Another VF of the same PF does not wait; the PF itself is locked."""
    fake = fakehost("sriov")
    manager = process(fake).manager
    with Busy(fake, domain("vm1", str(VF))):
        manager.nodedev_detach(OTHER_VF)
        manager.nodedev_reattach(OTHER_VF)
        with pytest.raises(DeviceInUseError, match="lock of pf"):
            manager.nodedev_detach(PF)


def test_lock_sets_are_sorted_and_shared_where_they_may_be(fakehost: Callable[[str], FakeHost]) -> None:
    """The owner, then groups alone, a PF alone, its VFs together, in one order for all processes."""
    fake = fakehost("sriov")
    names = [lock.name for lock in lock_set(fake.root, [OTHER_VF, VF], "vm1")]
    assert names[0].startswith("owner-")
    assert sorted(names[1:]) == names[1:]
    assert {f"pf-{PF}.lock"} == {lock.name for lock in lock_set(fake.root, [OTHER_VF, VF], "vm1") if lock.is_shared}
    assert [False, False] == [lock.is_shared for lock in lock_set(fake.root, [PF], None)]
    assert not any(lock.is_shared for lock in lock_set(fake.root, [VF, PF], None))


@pytest.mark.fault("F6")
def test_recover_leaves_a_running_prepare_alone(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """recover finds the locks of a running prepare held, and leaves it alone."""
    with Busy(bcm5719, seed_domain):
        assert {"kept"} == {item.outcome for item in process(bcm5719).manager.recover(timeout_s=0)}
    assert 4 == len(process(bcm5719).manager.status().active)


@pytest.mark.fault("F6")
def test_prepare_that_ends_while_recover_looks_stays(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """recover reads the records again under the locks, and decides by these."""
    looking = process(bcm5719).manager
    read, journal = looking.journal.read, looking.journal
    stale = [True]

    def read_late() -> object:
        answer = read()
        if stale.pop() if stale else False:
            return {a: r._replace(state="preparing") for a, r in answer[0].items()}, answer[1]
        return answer

    process(bcm5719).manager.prepare(looking.host.plan(seed_domain))
    journal.read = read_late  # type: ignore[method-assign,assignment]
    assert ["kept"] * 4 == [item.outcome for item in looking.recover(timeout_s=0)]


@pytest.mark.fault("F2")
def test_locks_are_free_when_their_holder_is_killed(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A manager that is killed during a write leaves no lock behind."""
    before = bcm5719.snapshot()
    busy = Busy(bcm5719, seed_domain)
    busy.process.start()
    assert busy.started.wait(10)
    busy.process.kill()
    busy.process.join(10)
    assert {"restored"} == {item.outcome for item in process(bcm5719).manager.recover(timeout_s=0)}
    assert before == bcm5719.snapshot()


def contend(fake: FakeHost, owner: str, definition: DomainDef, rounds: int, told: object) -> None:
    """Prepare and release repeatedly; count the successes, and the states that must never occur."""
    won = wrong = 0
    for _ in range(rounds):
        racer = process(fake)
        racer.kernel.inject(2, Delay(0.002))
        try:
            racer.manager.prepare(racer.manager.host.plan(definition))
        except (DeviceInUseError, RefusedError):
            continue
        won += 1
        wrong += {owner} != {device.owner for device in racer.manager.status().active}
        _release(racer.manager, owner)
    told.put((won, wrong))  # type: ignore[attr-defined]


def _release(manager: HostdevManager, owner: str) -> None:
    """Release, and retry while another process briefly holds the locks."""
    for _ in range(200):
        try:
            manager.release(owner)
        except DeviceInUseError:
            time.sleep(0.002)
        else:
            return
    raise AssertionError("the locks of losers never ended")


@pytest.mark.fault("F6")
def test_two_managers_on_the_same_devices(bcm5719: FakeHost, domain: Domain) -> None:
    """Two processes compete for the same four functions: never two owners, and everything is restored at the end."""
    before = bcm5719.snapshot()
    words = [f"{a} {'no' if a.function else 'yes'}" for a in CARD]
    told = _fork.Queue()
    racers = [
        _fork.Process(target=contend, args=(bcm5719, owner, domain(owner, *words), 25, told)) for owner in ("a", "b")
    ]
    for racer in racers:
        racer.start()
    results = [told.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(10)
    assert sum(won for won, _ in results) > 0
    assert [0, 0] == [wrong for _, wrong in results]
    assert (before, ([], [], [])) == (bcm5719.snapshot(), process(bcm5719).manager.status())
