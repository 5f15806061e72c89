# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each operation on the kernel and on the state fails with each errno: rolled back, or reported as not."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
from crash import process
from refusals import ERRNOS, check_refusal, refusals
from scenarios import SCENARIOS, Scenario, Stage

from pyhostdev import (
    ConfigError,
    DeviceInUseError,
    DomainDef,
    HostdevManager,
    InDoubtError,
    PCIDeviceAddress,
    RefusedError,
    SysfsError,
)
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Fail, Hang
from pyhostdev.util.statedir import StateDir

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
Managers = Callable[[FakeHost], HostdevManager]
Domain = Callable[..., DomainDef]

SAMPLE = [s for s in SCENARIOS if s.name in ("not-assigned-3", "mixed-managed", "module-to-load-1", "vf", "nodedev")]


@pytest.mark.fault("F12", "F15", "F25", "F28")
@pytest.mark.parametrize("scenario", SAMPLE, ids=lambda scenario: scenario.name)
def test_every_refused_operation_is_rolled_back_or_reported(tmp_path: Path, scenario: Scenario) -> None:
    """
    Every fourth operation is refused, with the errnos in turn: all is as before, or the error reports otherwise.

    tests/fuzz/fuzz_faults.py refuses all of them.
    """
    stage = Stage(scenario, tmp_path)
    cases = list(zip(refusals(stage), cycle(ERRNOS), strict=False))
    for case, errnum in cases[len(scenario.name) % 4 :: 4]:
        check_refusal(stage, case, errnum)


@pytest.mark.fault("F12")
def test_both_errors_are_reported_when_the_roll_back_fails_too(
    bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Managers
) -> None:
    """A bind and its undo fail: one error has both, the record remains, and recover finishes."""
    before = bcm5719.snapshot()
    manager = manager_for(bcm5719)
    bcm5719.kernel.inject(3, Fail(errno.EBUSY))
    bcm5719.kernel.inject(5, Fail(errno.EIO))
    with pytest.raises(SysfsError, match=r"vfio-pci/bind.*could not be undone.*tg3/bind") as error:
        manager.prepare(manager.host.plan(seed_domain))
    assert (errno.EBUSY, False) == (error.value.errno, error.value.rolled_back)
    assert [CARD[0]] == list(manager.journal.read()[0])
    manager.recover(timeout_s=0)
    assert before == bcm5719.snapshot()


@pytest.mark.fault("F10")
def test_missing_module_is_reported_before_the_first_write(fakehost: Callable[[str], FakeHost]) -> None:
    """Without vfio-pci and a module that provides it, nodedev-detach writes nothing."""
    fake = fakehost("driver igb 8086:1521\n0000:01:00.0 8086:1521 020000 driver=igb group=1\n")
    victim = process(fake)
    with pytest.raises(RefusedError) as error:
        victim.manager.nodedev_detach(PCIDeviceAddress(0, 1, 0, 0))
    assert (["vfio-missing"], 0) == ([f.reason for f in error.value.findings], victim.kernel.writes)


@pytest.mark.fault("F11")
def test_pf_with_vfs_is_reported_before_the_first_write(fakehost: Callable[[str], FakeHost]) -> None:
    """vfio-pci would refuse the device after the host driver is unbound; the plan refuses it before."""
    victim = process(fakehost("pf-multifunction"))
    with pytest.raises(RefusedError) as error:
        victim.manager.nodedev_detach(PCIDeviceAddress.parse("0000:06:12.0"))
    assert (["pf-with-vfs"], 0) == ([f.reason for f in error.value.findings], victim.kernel.writes)


@pytest.mark.fault("F9")
@pytest.mark.parametrize("number", range(1, 13))
def test_write_that_hangs_costs_its_device_only(bcm5719: FakeHost, seed_domain: DomainDef, number: int) -> None:
    """Any write of prepare hangs: the other devices return at once, this one when the kernel has finished."""
    before = bcm5719.snapshot()
    stuck = process(bcm5719)
    stuck.kernel.inject(number, Hang())
    with pytest.raises(InDoubtError) as error:
        stuck.manager.prepare(stuck.manager.host.plan(seed_domain))
    hanging = CARD[(number - 1) // 3]
    assert (hanging, False) == (error.value.address, error.value.rolled_back)
    assert [hanging] == list(stuck.manager.journal.read()[0])
    with pytest.raises(RefusedError) as refusal:
        process(bcm5719).manager.prepare(stuck.manager.host.plan(seed_domain))
    assert "in-doubt" in [finding.reason for finding in refusal.value.findings]
    assert ["in-doubt"] == [item.outcome for item in process(bcm5719).manager.recover(timeout_s=0)]
    bcm5719.kernel.complete()
    assert ["restored"] == [item.outcome for item in process(bcm5719).manager.recover(timeout_s=0)]
    assert before == bcm5719.snapshot()


@pytest.mark.fault("F3")
def test_release_while_a_process_has_the_group_open(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """While QEMU runs, release and recover --all name it and touch nothing."""
    victim = process(bcm5719)
    victim.manager.prepare(victim.manager.host.plan(seed_domain))
    before, writes = bcm5719.snapshot(), victim.kernel.writes
    with bcm5719.kernel.open_group(14):
        with pytest.raises(DeviceInUseError, match="held open"):
            victim.manager.release("vm1")
        kept = victim.manager.recover(include_prepared=True, timeout_s=0)
        assert ["kept"] * 4 == [item.outcome for item in kept]
    assert (before, writes) == (bcm5719.snapshot(), victim.kernel.writes)


@pytest.mark.fault("F5")
def test_reboot_leaves_nothing_to_replay(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Records that outlive a boot, for example on a disk, are reported as expired, without a write for them."""
    process(bcm5719).manager.prepare(process(bcm5719).manager.host.plan(seed_domain))
    kept = {path.name: path.read_bytes() for path in Path(bcm5719.root.state_dir).iterdir()}
    bcm5719.reboot()
    os.makedirs(bcm5719.root.state_dir, mode=0o700)
    for name, data in kept.items():
        Path(bcm5719.root.state_dir, name).write_bytes(data)
    before, later = bcm5719.snapshot(), process(bcm5719)
    assert ["expired"] * 4 == [item.outcome for item in later.manager.recover(include_prepared=True, timeout_s=0)]
    assert (before, 0) == (bcm5719.snapshot(), later.kernel.writes)


@pytest.mark.fault("F5")
def test_journal_newer_than_the_bindings_is_reported(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Without records, as in a container with its own /run, recover names the functions of unknown origin."""
    process(bcm5719).manager.prepare(process(bcm5719).manager.host.plan(seed_domain))
    for path in Path(bcm5719.root.state_dir).iterdir():
        path.unlink()
    later = process(bcm5719)
    found = later.manager.recover(include_prepared=True, timeout_s=0)
    assert [(str(address), "unrecorded") for address in CARD] == [(item.what, item.outcome) for item in found]
    assert 0 == later.kernel.writes


@pytest.mark.fault("F7")
def test_deadlines_do_not_use_the_time_of_day() -> None:
    """Deadlines use clocks that cannot be set; only a record, and from it status, has the time of day."""
    package = Path(__file__).parents[2] / "pyhostdev"
    users = [path.name for path in package.rglob("*.py") if "time.time(" in path.read_text()]
    assert {"journal.py", "clock.py"} == set(users)  # the other is -rtc base= of a guest


@pytest.mark.fault("F7")
@pytest.mark.parametrize("jump", [-4e9, 1e12])
def test_clock_that_jumps_changes_nothing(
    bcm5719: FakeHost, seed_domain: DomainDef, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """A clock that shows an impossible year, or goes back, does not make a record invalid."""
    before = bcm5719.snapshot()
    manager = process(bcm5719).manager
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    manager.prepare(manager.host.plan(seed_domain))
    monkeypatch.undo()
    later = process(bcm5719).manager
    assert ([], 4) == (later.status().problems, len(later.status().active))
    later.release(seed_domain.name)
    assert before == bcm5719.snapshot()


@pytest.mark.fault("F8")
def test_manager_refuses_after_a_fork(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A forked child cannot change anything with its parent's manager; the parent still can."""
    manager = process(bcm5719).manager
    plan = manager.host.plan(seed_domain)
    child = os.fork()
    if child == 0:
        try:
            manager.prepare(plan)
        except ConfigError:
            os._exit(17)
        os._exit(1)
    assert 17 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    manager.prepare(plan)
    manager.release("vm1")


@pytest.mark.fault("F8")
def test_locks_do_not_leak_into_programs(bcm5719: FakeHost) -> None:
    """A program that a manager starts inherits none of its descriptors."""
    manager = process(bcm5719).manager
    with manager.context.locked(CARD, "vm1"):
        done = subprocess.run(["/bin/ls", "-l", "/proc/self/fd"], capture_output=True, close_fds=False, check=False)
    assert b" 1 -> " in done.stdout
    assert b"pyhostdev" not in done.stdout


@pytest.mark.fault("F25")
def test_record_that_cannot_be_read_now_is_not_a_bad_record(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Running out of descriptors is a temporary error: no record is set aside or lost."""
    process(bcm5719).manager.prepare(process(bcm5719).manager.host.plan(seed_domain))
    opens = 3  # the directory, its list, the first record
    with pytest.raises(SysfsError) as error:
        process(bcm5719, dies_at_state=opens, errnum=errno.EMFILE).manager.recover(timeout_s=0)
    assert errno.EMFILE == error.value.errno
    assert 4 == len(process(bcm5719).manager.status().active)


@pytest.mark.fault("F25")
def test_full_disk_does_not_keep_a_device_from_its_driver(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Release works on a full disk: removing records needs no space."""
    before = bcm5719.snapshot()
    process(bcm5719).manager.prepare(process(bcm5719).manager.host.plan(seed_domain))

    class FullDir(StateDir):
        def step(self, operation: str, name: str) -> None:
            if operation == "write":
                raise OSError(errno.ENOSPC, "full")

    victim = process(bcm5719)
    victim.manager.journal.state = FullDir(bcm5719.root.state_dir)
    victim.manager.release("vm1")
    assert (before, ([], [], [])) == (bcm5719.snapshot(), victim.manager.status())


@pytest.mark.fault("F26")
def test_temporary_files_of_a_killed_writer_are_removed(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Recovering a device removes the temporary files of a process that was killed while it wrote its record."""
    whole = process(bcm5719)
    whole.manager.prepare(whole.manager.host.plan(seed_domain))
    left = Path(bcm5719.root.state_dir, f".{CARD[0]}.json.0123456789abcdef")
    left.write_bytes(b"{")
    whole.manager.recover(include_prepared=True, timeout_s=0)
    assert not left.exists()


@pytest.mark.fault("F25")
def test_state_directory_removed_under_a_manager(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A manager whose directory was removed creates a new one."""
    manager = process(bcm5719).manager
    for _ in range(2):
        manager.prepare(manager.host.plan(seed_domain))
        manager.release("vm1")
        for path in Path(bcm5719.root.state_dir).iterdir():
            path.unlink()
        os.rmdir(bcm5719.root.state_dir)
    assert ([], [], []) == manager.status()


def test_looking_keeps_no_descriptor(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Repeated plans and lists leave no more descriptors open than the first."""
    manager = process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    manager.status()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        manager.host.plan(seed_domain)
        manager.status()
    assert before == len(os.listdir("/proc/self/fd"))


@pytest.mark.fault("F4")
def test_update_active_after_a_restart(bcm5719: FakeHost, seed_domain: DomainDef, domain: Domain) -> None:
    """A running domain's devices are listed without a write; others' devices are not; an empty list does nothing."""
    prepared = process(bcm5719)
    prepared.manager.prepare(prepared.manager.host.plan(seed_domain))
    for path in Path(bcm5719.root.state_dir).iterdir():
        path.unlink()
    later = process(bcm5719)
    later.manager.update_active_pci_devices("qemu", "vm1", [])
    assert 0 == len(later.manager.status().active)
    later.manager.update_active_pci_devices("qemu", "vm1", seed_domain.pci_hostdevs())
    later.manager.update_active_pci_devices("qemu", "vm1", seed_domain.pci_hostdevs())
    assert [(address, "vm1") for address in CARD] == later.manager.status().active
    with pytest.raises(DeviceInUseError, match="'vm1'"):
        later.manager.update_active_pci_devices("qemu", "vm2", seed_domain.pci_hostdevs())
    assert 0 == later.kernel.writes


@pytest.mark.fault("F4")
def test_lists_are_the_same_after_a_restart(bcm5719: FakeHost, domain: Domain) -> None:
    """The active and the inactive list, managed or not, survive the program that made them."""
    first = process(bcm5719).manager
    for address in CARD[:3]:
        first.nodedev_detach(address)
    first.prepare(first.host.plan(domain("vm1", str(CARD[0]), f"{CARD[1]} unmanaged", str(CARD[3])), "off"))
    assert first.status() == process(bcm5719).manager.status()
    assert ([(CARD[0], "vm1"), (CARD[1], "vm1"), (CARD[3], "vm1")], [CARD[2]], []) == first.status()


def test_other(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """More of libvirt's own scenarios: a reset changes no list, update-active adds the given devices."""
    manager = process(fakehost("libvirt")).manager
    devices = [PCIDeviceAddress(0, 0, slot, 0) for slot in (1, 2, 3)]
    for address in devices:
        manager.nodedev_detach(address)
        manager.nodedev_reset(address)
    assert ([], devices) == manager.status()[:2]
    manager.update_active_pci_devices("qemu", "vm", [])
    assert 0 == len(manager.status().active)
    manager.update_active_pci_devices("qemu", "vm", domain("vm", *map(str, devices)).pci_hostdevs())
    assert ([(address, "vm") for address in devices], []) == manager.status()[:2]


def test_nodedev_detach_of_what_the_host_needs_wants_consent(fakehost: Callable[[str], FakeHost]) -> None:
    """A disk with the root file system is only detached with an explicit consent."""
    fake = fakehost("sriov")
    disk = PCIDeviceAddress.parse("0000:02:00.0")
    victim = process(fake)
    with pytest.raises(RefusedError) as error:
        victim.manager.nodedev_detach(disk)
    assert (["mounted"], 0) == ([finding.reason for finding in error.value.findings], victim.kernel.writes)
    victim.manager.nodedev_detach(disk, accept=[f"mounted:{disk}"])
    assert [disk] == victim.manager.status().inactive
