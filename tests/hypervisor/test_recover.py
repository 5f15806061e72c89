# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Kills at many points: after recover, every function has its driver, its override and its place on the lists.

tests/fuzz/fuzz_crash_matrix.py kills at every point, in more scenarios.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import deaths, prepare, process, recovered, release, run_and_die
from scenarios import card

from pyhostdev import DomainDef, PCIDeviceAddress
from pyhostdev.testing import FakeHost

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
EACH = 4  # of the places to die; in turn before, after and in a write


def test_prepare_killed_anywhere_is_undone(tmp_path: Path, seed_domain: DomainDef) -> None:
    """Prepare is killed at a write or a state operation: recover restores the host and the lists."""
    whole = process(FakeHost.named("bcm5719", tmp_path / "whole"))
    prepare(seed_domain)(whole.manager)
    for number, death in enumerate(itertools.islice(deaths(whole.kernel.writes, whole.state.steps), 0, None, EACH)):
        fake = FakeHost.named("bcm5719", tmp_path / str(number))
        before = fake.snapshot()
        victim = process(fake, **death)  # type: ignore[arg-type]
        died = run_and_die(prepare(seed_domain), victim)
        manager = recovered(fake)
        if manager.status().active:
            assert died, "prepared devices are their owner's"
            assert CARD == [dev.address for dev in manager.status().active]
            manager.release("vm1")
        assert (death, before) == (death, fake.snapshot())
        assert (death, ([], [], [])) == (death, manager.status())


def test_release_killed_anywhere_is_finished(tmp_path: Path, seed_domain: DomainDef) -> None:
    """Release is killed at a write or a state operation: recover finishes it."""
    whole = process(FakeHost.named("bcm5719", tmp_path / "whole"))
    prepare(seed_domain)(whole.manager)
    before_release = whole.kernel.writes, whole.state.steps
    release(whole.manager)
    totals = whole.kernel.writes - before_release[0], whole.state.steps - before_release[1]
    for number, death in enumerate(itertools.islice(deaths(*totals), 0, None, EACH)):
        fake = FakeHost.named("bcm5719", tmp_path / str(number))
        before = fake.snapshot()
        prepare(seed_domain)(process(fake).manager)
        run_and_die(release, process(fake, **death))  # type: ignore[arg-type]
        manager = recovered(fake)
        manager.release("vm1")
        assert (death, before) == (death, fake.snapshot())
        assert (death, ([], [], [])) == (death, manager.status())


def test_recover_killed_anywhere_converges(tmp_path: Path, seed_domain: DomainDef) -> None:
    """Recover is killed at a write or a state operation: the next one finishes."""

    def crashed(directory: Path) -> FakeHost:
        fake = FakeHost.named("bcm5719", directory)
        run_and_die(prepare(seed_domain), process(fake, dies_at_write=8, how="after"))
        return fake

    pristine = FakeHost.named("bcm5719", tmp_path / "pristine").snapshot()
    whole = process(crashed(tmp_path / "whole"))
    whole.manager.recover()
    assert whole.kernel.writes > 0
    for number, death in enumerate(itertools.islice(deaths(whole.kernel.writes, whole.state.steps), 0, None, EACH)):
        fake = crashed(tmp_path / str(number))
        run_and_die(lambda manager: manager.recover(timeout_s=0), process(fake, **death))  # type: ignore[arg-type]
        recovered(fake)
        assert (death, pristine) == (death, fake.snapshot())


def test_recover_twice_writes_nothing(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A second recover finds nothing to do."""
    run_and_die(prepare(seed_domain), process(bcm5719, dies_at_write=6, how="before"))
    process(bcm5719).manager.recover()
    second = process(bcm5719)
    assert ([], 0) == (second.manager.recover(), second.kernel.writes)


def test_prepared_devices_stay_their_owners(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """recover leaves the devices of a finished prepare alone, unless --all is given."""
    before = bcm5719.snapshot()
    prepare(seed_domain)(process(bcm5719).manager)
    assert ["kept"] * 4 == [item.outcome for item in process(bcm5719).manager.recover()]
    assert ["restored"] * 4 == [i.outcome for i in process(bcm5719).manager.recover(include_prepared=True)]
    assert before == bcm5719.snapshot()


def test_write_in_flight_is_in_doubt_until_it_lands(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Recover waits for a write that has not returned, then reports it; once the write has landed, it finishes."""
    before = bcm5719.snapshot()
    run_and_die(prepare(seed_domain), process(bcm5719, dies_at_write=2, how="blocked"))
    found = process(bcm5719).manager.recover(timeout_s=0.1)
    assert "in-doubt" in [item.outcome for item in found]
    recovered(bcm5719)
    assert before == bcm5719.snapshot()


def test_records_of_an_earlier_boot_are_not_replayed(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """After a reboot the bindings are gone: a record is reported as expired, and nothing is written."""
    prepare(seed_domain)(process(bcm5719).manager)
    Path(bcm5719.root.boot_id).write_text("another\n")
    later = process(bcm5719)
    assert ["expired"] * 4 == [item.outcome for item in later.manager.recover(include_prepared=True)]
    assert (0, ([], [], [])) == (later.kernel.writes, later.manager.status())


def test_bad_record_is_set_aside_and_its_device_left_alone(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A bad record is kept for inspection, and its device left alone; the others are recovered."""
    run_and_die(prepare(seed_domain), process(bcm5719, dies_at_write=12, how="after"))
    path = Path(bcm5719.root.state_dir, f"{CARD[0]}.json")
    path.write_bytes(path.read_bytes()[:40])
    later = process(bcm5719)
    outcomes = {item.what: item.outcome for item in later.manager.recover()}
    assert "set-aside" == outcomes[path.name]
    assert (False, True) == (path.exists(), path.with_name(f"{path.name}.bad").exists())
    assert str(CARD[0]) not in {os.path.basename(os.path.dirname(e.path)) for e in later.kernel.trace}


def half_prepare(fake: FakeHost, definition: DomainDef, spare: FakeHost) -> None:
    """Die when all devices but the last are marked prepared; spare is such a host too, for a prepare that does not."""
    whole = process(spare)
    prepare(definition)(whole.manager)
    last = max(number for number, name in enumerate(whole.state.names_of_steps, 1) if name == "rename")
    assert run_and_die(prepare(definition), process(fake, dies_at_state=last))
    assert {"prepared", "preparing"} == {record.state for record in process(fake).manager.journal.read()[0].values()}


def test_device_of_the_inactive_list_is_there_again_as_it_was(
    fakehost: Callable[[str], FakeHost], domain: Callable[..., DomainDef]
) -> None:
    """After a killed prepare, nodedev-reattach still knows the device's stub and its original driver."""
    fake = fakehost(card(2, f0="override=pci-stub"))
    device = PCIDeviceAddress(0, 1, 0, 0)
    before = fake.snapshot()
    process(fake).manager.nodedev_detach(device, "pci-stub")
    detached = fake.snapshot()
    run_and_die(prepare(domain("vm1", str(device), "0000:01:00.1")), process(fake, dies_at_write=6, how="after"))
    manager = recovered(fake)
    assert (detached, [device]) == (fake.snapshot(), manager.status().inactive)
    manager.nodedev_reattach(device)
    assert (before, ([], [], [])) == (fake.snapshot(), manager.status())


@pytest.mark.parametrize("then", ["released", "released-and-detached"])
def test_recover_of_everything_decides_under_its_locks(bcm5719: FakeHost, seed_domain: DomainDef, then: str) -> None:
    """Devices that were released after recover's listing are not released again, even with --all."""
    looking = process(bcm5719)
    prepare(seed_domain)(process(bcm5719).manager)
    answers = [looking.manager.journal.read()]
    read = looking.manager.journal.read
    looking.manager.journal.read = lambda: answers.pop() if answers else read()  # type: ignore[method-assign]
    process(bcm5719).manager.release("vm1")
    if then == "released-and-detached":
        for address in CARD:
            process(bcm5719).manager.nodedev_detach(address)
    during = bcm5719.snapshot(books=True)
    assert ["kept"] * 4 == [item.outcome for item in looking.manager.recover(include_prepared=True)]
    assert (during, 0) == (bcm5719.snapshot(books=True), looking.kernel.writes)


def test_recover_waits_for_a_write_that_lands_in_time(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """recover waits for a write in flight; once it has returned, the device is restored in the same call."""
    before = bcm5719.snapshot()
    run_and_die(prepare(seed_domain), process(bcm5719, dies_at_write=2, how="blocked"))
    landing = threading.Timer(0.1, bcm5719.kernel.complete)
    landing.start()
    found = process(bcm5719).manager.recover(timeout_s=10)
    landing.join()
    assert ({"restored"}, before) == ({item.outcome for item in found}, bcm5719.snapshot())


def test_device_that_a_dynamic_id_gave_to_vfio_is_not_unrecorded(bcm5719: FakeHost) -> None:
    """A device on vfio-pci without an override is not reported: vfio-pci is its regular driver."""
    mover, kernel = process(bcm5719).manager.context.restorer.mover, bcm5719.kernel
    mover.unbind(CARD[0])
    kernel.write(f"{bcm5719.root.pci_driver('vfio-pci')}/new_id", b"14e4 1657", device=CARD[0])
    assert ("vfio-pci", None) == mover.read_binding(CARD[0])[:2]
    assert [] == process(bcm5719).manager.recover()


def test_release_of_what_is_half_prepared_undoes_it(
    fakehost: Callable[[str], FakeHost], domain: Callable[..., DomainDef]
) -> None:
    """Release of a killed prepare rolls it back: its devices return to where they were."""
    fake, spare = fakehost(card(3)), fakehost(card(3))
    definition = domain("vm1", *(f"0000:01:00.{function}" for function in range(3)))
    for host in (fake, spare):
        process(host).manager.nodedev_detach(PCIDeviceAddress(0, 1, 0, 0), "pci-stub")
    before, lists = fake.snapshot(), process(fake).manager.status()
    half_prepare(fake, definition, spare)
    process(fake).manager.release("vm1")
    assert (before, lists) == (fake.snapshot(), process(fake).manager.status())


def test_release_of_what_is_half_prepared_killed_anywhere(tmp_path: Path, domain: Callable[..., DomainDef]) -> None:
    """The last mark of a half prepared change remains until release has rolled back all other devices."""
    definition = domain("vm1", "0000:01:00.0", "0000:01:00.1")
    made = itertools.count()

    def host() -> FakeHost:
        return FakeHost.from_tree(card(2), tmp_path / str(next(made)))

    def crashed() -> FakeHost:
        fake = host()
        half_prepare(fake, definition, host())
        return fake

    pristine = host().snapshot()
    whole = process(crashed())
    release(whole.manager)
    for death in deaths(whole.kernel.writes, whole.state.steps):
        fake = crashed()
        run_and_die(release, process(fake, **death))  # type: ignore[arg-type]
        manager = recovered(fake)
        assert (death, pristine, ([], [], [])) == (death, fake.snapshot(), manager.status())
