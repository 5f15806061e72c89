# SPDX-License-Identifier: LGPL-2.1-or-later
"""A failed read is a HostdevError and never read as absence; a sample of tests/fuzz/fuzz_read_faults.py."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash import process, recovered, run_and_die
from questions import QUESTIONS, Question
from reads import (
    Read,
    Reads,
    check_read,
    check_recover,
    errnos_in_turn,
    first_of_sites,
    is_left_out,
    reads_of,
    reads_of_phase,
    reads_of_recover,
)
from scenarios import SCENARIOS, Scenario, Stage

from pyhostdev import DomainDef, HostdevManager, PCIDeviceAddress
from pyhostdev.errors import HostdevError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Fail
from pyhostdev.util.journal import PREPARED, PREPARING
from pyhostdev.util.statedir import StateDir

SAMPLE = [s for s in SCENARIOS if s.name in ("not-assigned-2", "mixed-managed", "module-to-load-1", "vf", "nodedev")]
THREE = next(s for s in SCENARIOS if s.name == "managed-3")
EACH = 20  # one of twenty places that read, each with the next errno

scenarios = pytest.mark.parametrize("scenario", SAMPLE, ids=lambda scenario: scenario.name)


class FullDir(StateDir):
    """A state directory on a disk that is full."""

    def step(self, operation: str, name: str) -> None:
        if operation == "write":
            raise OSError(errno.ENOSPC, "full")


def sample(log: list[Read], name: str) -> Iterator[tuple[int, int]]:
    """Yield some reads of all kinds, by number, and an errno for each; the name determines the first one."""
    numbers = first_of_sites(log)[len(name) % EACH :: EACH]
    return zip(numbers, errnos_in_turn(len(name)), strict=False)


@pytest.mark.fault("F28", "F25")
@pytest.mark.parametrize("phase", ["prepare", "release"])
@scenarios
def test_refused_read_is_rolled_back_or_reported(tmp_path: Path, scenario: Scenario, phase: str) -> None:
    """Any read fails during prepare or release: everything is restored, or the error reports otherwise."""
    stage = Stage(scenario, tmp_path)
    for number, errnum in sample(reads_of_phase(stage, phase), scenario.name):
        check_read(stage, phase, number, errnum)


@pytest.mark.fault("F28", "F25", "F1")
@scenarios
def test_refused_read_of_recover_is_reported(tmp_path: Path, scenario: Scenario) -> None:
    """Any read fails during recover after a crash: the reported results are correct, and the next recover finishes."""
    stage = Stage(scenario, tmp_path)
    deaths = [case for case in stage.deaths() if case.fault.get("how") == "after"]
    death = deaths[len(deaths) // 2]
    for number, errnum in sample(reads_of_recover(stage, death), scenario.name):
        check_recover(stage, death, number, errnum)


@pytest.mark.fault("F28", "F25")
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_answer_is_right_or_an_error(tmp_path: Path, question: Question) -> None:
    """In a plan, a list and a refusal, an obstacle does not vanish because it cannot be read."""
    fake = question.build(tmp_path)
    answer = question.answer(fake)
    log = reads_of(fake, lambda: question.answer(fake))
    for number, errnum in sample(log, question.name):
        if not is_left_out(log[number - 1], errnum):
            question.check(fake, answer, number, errnum)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("plan-busy", {"in-use", "mounted", "default-route", "boot-vga", "driverctl"}),
        ("plan-looked-at", {"mounted", "boot-vga"}),
        ("plan-physical", {"pf-with-vfs", "mounted", "default-route"}),
        ("plan-without-group", {"no-iommu-group"}),
        ("plan-module-missing", {"driver-missing"}),
    ],
)
def test_questions_ask_for_what_can_vanish(tmp_path: Path, name: str, reasons: set[str]) -> None:
    """Without failed reads, the hosts of the questions have the findings that a failed read could hide."""
    question = next(question for question in QUESTIONS if question.name == name)
    answer: Any = question.answer(question.build(tmp_path))
    plan = answer[0]
    assert reasons == {finding["reason"] for finding in plan["findings"]}


@pytest.mark.fault("F28")
def test_reset_is_done_or_an_error(bcm5719: FakeHost) -> None:
    """A device that cannot be examined is not reset, and the log reports it."""
    disk = PCIDeviceAddress(1, 7, 0, 0)
    process(bcm5719).manager.nodedev_reset(disk)  # makes the state directory, which is there from then on
    log = reads_of(bcm5719, lambda: process(bcm5719).manager.nodedev_reset(disk))
    for number, errnum in sample(log, "reset"):
        victim = process(bcm5719)
        with Reads(bcm5719, number, errnum) as reads, pytest.raises(HostdevError):
            victim.manager.nodedev_reset(disk)
        assert 0 == victim.kernel.writes, reads.what


@pytest.mark.fault("F28", "F4")
def test_update_active_notes_all_or_nothing(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """The devices of a running domain are recorded together, or none of them if one cannot be read."""
    process(bcm5719).manager.prepare(process(bcm5719).manager.host.plan(seed_domain))
    for path in Path(bcm5719.root.state_dir).iterdir():
        path.unlink()

    def update(manager: HostdevManager) -> None:
        manager.update_active_pci_devices("qemu", "vm1", seed_domain.pci_hostdevs())

    log = reads_of(bcm5719, lambda: update(process(bcm5719).manager))
    for number, errnum in sample(log, "update"):
        for path in Path(bcm5719.root.state_dir).iterdir():
            path.unlink()
        with Reads(bcm5719, number, errnum) as reads, pytest.raises(HostdevError):
            update(process(bcm5719).manager)
        assert ([], [], []) == process(bcm5719).manager.status(), reads.what


def test_reads_are_counted_once_and_not_the_kernels(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Streams, listings, links and bytes of configuration space count; what the simulated kernel reads does not."""
    victim = process(bcm5719)
    with Reads(bcm5719) as reads:
        victim.manager.prepare(victim.manager.host.plan(seed_domain))
    paths = {read.path for read in reads.log}
    calls = {read.call for read in reads.log}
    assert {"open", "read", "fstat", "readlink", "scandir", "phd_read_at"} <= calls
    assert {"proc/mounts", "run/pyhostdev", "sys/bus/pci/devices/0001:09:00.0/config"} <= paths
    assert [] == [read for read in reads.log if any(line.startswith("kernel:") for line in read.site)]


def leave_half_prepared(stage: Stage) -> None:
    """Kill a prepare when some of its records are "prepared" and the last one is not."""
    last = max(number for number, name in enumerate(stage.preparing.state.names_of_steps, 1) if name == "write")
    run_and_die(stage.scenario.prepare, process(stage.fake, dies_at_state=last))


@pytest.mark.fault("F1", "F28")
def test_recover_finishes_a_release_of_a_half_prepared_change(tmp_path: Path) -> None:
    """Release rolls back a killed prepare but cannot read one device; the next recover reattaches that one."""
    stage = Stage(THREE, tmp_path)
    leave_half_prepared(stage)
    log = reads_of(stage.fake, lambda: process(stage.fake).manager.release("vm1"))
    stage.rewind()
    for number, errnum in sample(log, "half"):
        leave_half_prepared(stage)
        with Reads(stage.fake, number, errnum) as reads, contextlib.suppress(HostdevError):
            process(stage.fake).manager.release("vm1")
        recovered(stage.fake)
        assert stage.before[0] == stage.look(), reads.what
        stage.rewind()


@pytest.mark.fault("F1", "F25", "F28")
def test_half_prepared_change_outlives_its_last_mark(tmp_path: Path) -> None:
    """
    A device that cannot be restored, and whose record says "prepared", keeps the records that say "preparing".

    The disk is full, so that its own record cannot be made to say so.
    """
    stage = Stage(THREE, tmp_path)
    leave_half_prepared(stage)
    records = process(stage.fake).manager.journal.read()[0]
    assert {PREPARED, PREPARING} == {record.state for record in records.values()}
    victim = process(stage.fake)
    victim.manager.journal.state = FullDir(stage.fake.root.state_dir)
    victim.kernel.inject(1, Fail(errno.EIO))
    assert ["failed"] * 3 == [item.outcome for item in victim.manager.recover(timeout_s=0)]
    assert records == process(stage.fake).manager.journal.read()[0]
    assert ["restored"] * 3 == [item.outcome for item in process(stage.fake).manager.recover(timeout_s=0)]
    assert stage.before[0] == stage.look()
