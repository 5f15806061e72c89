# SPDX-License-Identifier: LGPL-2.1-or-later
"""Killed anywhere: after recover every function has its driver, its override and its place on the lists again."""

from __future__ import annotations

import os
from pathlib import Path

from crash import deaths, prepare, process, recovered, release, run_and_die

from pyhostdev import DomainDef, PCIDeviceAddress
from pyhostdev.testing import FakeHost

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]


def test_prepare_killed_anywhere_is_undone(tmp_path: Path, seed_domain: DomainDef) -> None:
    """Whichever write or state operation of prepare is the last one, recover leaves host and lists as before."""
    whole = process(FakeHost.named("bcm5719", tmp_path / "whole"))
    prepare(seed_domain)(whole.manager)
    for number, death in enumerate(deaths(whole.kernel.writes, whole.state.steps)):
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
    """Whichever write or state operation of release is the last one, recover finishes what was begun."""
    whole = process(FakeHost.named("bcm5719", tmp_path / "whole"))
    prepare(seed_domain)(whole.manager)
    before_release = whole.kernel.writes, whole.state.steps
    release(whole.manager)
    totals = whole.kernel.writes - before_release[0], whole.state.steps - before_release[1]
    for number, death in enumerate(deaths(*totals)):
        fake = FakeHost.named("bcm5719", tmp_path / str(number))
        before = fake.snapshot()
        prepare(seed_domain)(process(fake).manager)
        run_and_die(release, process(fake, **death))  # type: ignore[arg-type]
        manager = recovered(fake)
        manager.release("vm1")
        assert (death, before) == (death, fake.snapshot())
        assert (death, ([], [], [])) == (death, manager.status())


def test_recover_killed_anywhere_converges(tmp_path: Path, seed_domain: DomainDef) -> None:
    """Recover itself may be killed at each write and state operation: the next one finishes."""
    def crashed(directory: Path) -> FakeHost:
        fake = FakeHost.named("bcm5719", directory)
        run_and_die(prepare(seed_domain), process(fake, dies_at_write=8, how="after"))
        return fake

    pristine = FakeHost.named("bcm5719", tmp_path / "pristine").snapshot()
    whole = process(crashed(tmp_path / "whole"))
    whole.manager.recover()
    assert whole.kernel.writes > 0
    for number, death in enumerate(deaths(whole.kernel.writes, whole.state.steps)):
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
    """A finished prepare has no process: recover leaves its devices, unless it is told to give all back."""
    before = bcm5719.snapshot()
    prepare(seed_domain)(process(bcm5719).manager)
    assert ["kept"] * 4 == [item.outcome for item in process(bcm5719).manager.recover()]
    assert ["restored"] * 4 == [i.outcome for i in process(bcm5719).manager.recover(include_prepared=True)]
    assert before == bcm5719.snapshot()


def test_write_in_flight_is_in_doubt_until_it_lands(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Recover waits for a write that has not come back, then says so; when it has landed it finishes."""
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
    """Nobody guesses where a device came from: its file is kept for a look, the others are recovered."""
    run_and_die(prepare(seed_domain), process(bcm5719, dies_at_write=12, how="after"))
    path = Path(bcm5719.root.state_dir, f"{CARD[0]}.json")
    path.write_bytes(path.read_bytes()[:40])
    later = process(bcm5719)
    outcomes = {item.what: item.outcome for item in later.manager.recover()}
    assert "set-aside" == outcomes[path.name]
    assert str(CARD[0]) not in {os.path.basename(os.path.dirname(e.path)) for e in later.kernel.trace}
