# SPDX-License-Identifier: LGPL-2.1-or-later
"""No change remains half done: signals in the middle, two calls at once, a device that another program moved."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash import process, recovered, run_and_die
from endings import release_at_random

from pyhostdev import DeviceInUseError, DomainDef, Host, HostdevManager, PCIDeviceAddress
from pyhostdev.hypervisor import hostdev_release, virhostdev
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Fail
from pyhostdev.testing.guest import SimulatedGuest
from pyhostdev.util.pcidriver import read_binding

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
Domain = Callable[..., DomainDef]

SLOW_PREPARE = """
import sys
from pyhostdev import DomainDef, Host, HostdevManager
from pyhostdev.testing.faults import Interfere
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.hostroot import HostRoot
def say(_):
    print("middle", flush=True)
    sys.stdin.readline()
kernel = SimulatedKernel(HostRoot(sys.argv[1]))
kernel.inject(4, Interfere(say))
host = Host(kernel.root, writer=kernel)
HostdevManager(host).prepare(host.plan(DomainDef.parse(open(sys.argv[2]).read())))
"""


@pytest.mark.fault("F42")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM], ids=lambda n: n.name)
def test_signal_that_ends_a_program_finishes_the_undo(
    bcm5719: FakeHost, tmp_path: Path, seed_domain: DomainDef, number: signal.Signals
) -> None:
    """Any signal that ends a program during prepare: the host is restored before the program ends."""
    before = bcm5719.snapshot()
    path = tmp_path / "guest.xml"
    path.write_text(seed_domain.format())
    words = [sys.executable, "-c", SLOW_PREPARE, bcm5719.root.path, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert b"middle\n" == child.stdout.readline()
        child.send_signal(number)
        child.communicate(b"\n", timeout=60)
    assert -number == child.returncode
    assert (before, ([], [], [])) == (bcm5719.snapshot(), Host(bcm5719.root).status())


INTERRUPTED_VERB = """
import os, signal, sys
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.tools.main import main
write, left = SimulatedKernel.write, [4]
def interrupted(self, *args, **options):
    write(self, *args, **options)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGINT)
SimulatedKernel.write = interrupted
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.fault("F42")
def test_interrupted_verb_says_how_it_ended(bcm5719: FakeHost, tmp_path: Path, seed_domain: DomainDef) -> None:
    """The command line rolls back, reports it in one sentence, and dies by the signal as a shell expects."""
    before = bcm5719.snapshot()
    path = tmp_path / "guest.xml"
    path.write_text(seed_domain.format())
    words = ["prepare", str(path), "--root", bcm5719.root.path, "--simulate", "--libvirt", "12.8"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_VERB, *words], capture_output=True, text=True, check=False)
    assert (-signal.SIGINT, "", "pyhostdev: Interrupted by SIGINT\n") == (done.returncode, done.stdout, done.stderr)
    assert before == bcm5719.snapshot()


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Plan under a prepare's locks, signal the start, and continue on request."""
    begun, go_on = threading.Event(), threading.Event()
    plan = virhostdev.HostdevManager._planned_again

    def slow(*args: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return plan(*args, **options)

    monkeypatch.setattr(virhostdev.HostdevManager, "_planned_again", slow)
    return begun, go_on


def start_to_prepare(fake: FakeHost, definition: DomainDef) -> threading.Thread:
    """Prepare in a thread of its own."""
    manager = process(fake).manager
    plan = manager.host.plan(definition)
    thread = threading.Thread(target=manager.prepare, args=(plan,))
    thread.start()
    return thread


@pytest.mark.fault("F6")
def test_release_waits_for_a_prepare_of_its_owner(
    bcm5719: FakeHost, seed_domain: DomainDef, planning: tuple[threading.Event, threading.Event]
) -> None:
    """A release requested while a prepare plans releases what that prepare has prepared."""
    before = bcm5719.snapshot()
    thread = start_to_prepare(bcm5719, seed_domain)
    assert planning[0].wait(30)
    threading.Timer(0.1, planning[1].set).start()
    assert CARD == process(bcm5719).manager.release("vm1")
    thread.join()
    assert (before, ([], [], [])) == (bcm5719.snapshot(), Host(bcm5719.root).status())


@pytest.mark.fault("F6")
def test_release_refuses_rather_than_wait_for_ever(
    bcm5719: FakeHost,
    seed_domain: DomainDef,
    planning: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A release during a long prepare of its owner fails: "nothing to do" would soon be wrong."""
    monkeypatch.setattr(hostdev_release, "GIVE_BACK_WAIT_S", 0.1)
    thread = start_to_prepare(bcm5719, seed_domain)
    assert planning[0].wait(30)
    with pytest.raises(DeviceInUseError, match="lock of owner"):
        process(bcm5719).manager.release("vm1")
    assert [] == process(bcm5719).manager.recover(timeout_s=0)
    planning[1].set()
    thread.join()
    assert CARD == process(bcm5719).manager.release("vm1")


def test_detach_to_another_stub_moves(bcm5719: FakeHost) -> None:
    """A detached device moves to the requested stub, and its record keeps the original driver."""
    before, manager = bcm5719.snapshot(), process(bcm5719).manager
    for driver in ("vfio-pci", "pci-stub", "pci-stub", "vfio-pci"):
        manager.nodedev_detach(CARD[1], driver)
        assert (driver, driver) == read_binding(bcm5719.root, CARD[1])[:2]
        assert [CARD[1]] == manager.status().inactive
    manager.nodedev_reattach(CARD[1])
    assert (before, ([], [], [])) == (bcm5719.snapshot(), manager.status())


def give_back_from_a_shell(fake: FakeHost, address: PCIDeviceAddress) -> None:
    """Bind a device to its host driver, by another program's hand."""
    shell = fake.kernel.foreign()
    for path, value in (
        (f"{fake.root.pci_device(address)}/driver_override", b"\n"),
        (f"{fake.root.pci_device(address)}/driver/unbind", str(address).encode()),
        (f"{fake.root.pci_driver('tg3')}/bind", str(address).encode()),
    ):
        shell.write(path, value, device=address)


def test_detach_of_what_another_program_gave_back_detaches_again(bcm5719: FakeHost) -> None:
    """A record with "detached" proves nothing: the device is detached again, and then restored to its earlier state."""
    before, manager = bcm5719.snapshot(), process(bcm5719).manager
    manager.nodedev_detach(CARD[1])
    give_back_from_a_shell(bcm5719, CARD[1])
    manager.nodedev_detach(CARD[1])
    assert "vfio-pci" == read_binding(bcm5719.root, CARD[1]).driver
    manager.nodedev_reattach(CARD[1])
    assert (before, ([], [], [])) == (bcm5719.snapshot(), manager.status())


@pytest.mark.fault("F15")
@pytest.mark.parametrize("number", range(1, 4))
def test_failed_move_to_another_stub_is_undone(bcm5719: FakeHost, number: int) -> None:
    """If the move fails, the device is bound to its first stub and listed as before."""
    process(bcm5719).manager.nodedev_detach(CARD[1])
    before = bcm5719.snapshot()
    records = process(bcm5719).manager.journal.read()
    victim = process(bcm5719)
    victim.kernel.inject(number, Fail(5))
    with pytest.raises(OSError, match="write") as error:
        victim.manager.nodedev_detach(CARD[1], "pci-stub")
    assert error.value.rolled_back is True  # type: ignore[attr-defined]
    assert (before, records) == (bcm5719.snapshot(), victim.manager.journal.read())


@pytest.mark.fault("F1")
@pytest.mark.parametrize("number", range(1, 4))
@pytest.mark.parametrize("how", ["before", "after", "blocked"])
def test_move_to_another_stub_killed_anywhere(bcm5719: FakeHost, number: int, how: str) -> None:
    """Killed in the middle of a move between stubs: recover puts the device back with its first stub."""
    process(bcm5719).manager.nodedev_detach(CARD[1])
    before = bcm5719.snapshot()
    run_and_die(lambda m: m.nodedev_detach(CARD[1], "pci-stub"), process(bcm5719, dies_at_write=number, how=how))
    manager = recovered(bcm5719)
    assert (before, [CARD[1]]) == (bcm5719.snapshot(), manager.status().inactive)


def test_prepare_again_is_success(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A second prepare by the same owner succeeds without a write, as a hook may call twice."""
    manager = process(bcm5719).manager
    assert manager.prepare(manager.host.plan(seed_domain), node_owner=(107, 36)) is True
    before, again = bcm5719.snapshot(books=True), process(bcm5719)
    plan = again.manager.host.plan(seed_domain)
    assert again.manager.prepare(plan, node_owner=(107, 36)) is False
    assert (before, 0) == (bcm5719.snapshot(books=True), again.kernel.writes)
    for other in (None, (0, 0)):
        with pytest.raises(Exception, match="in use by domain 'vm1'"):
            again.manager.prepare(plan, node_owner=other)


def test_prepare_again_of_something_else_is_refused(bcm5719: FakeHost, domain: Domain) -> None:
    """A second prepare with other devices or roles is refused."""
    manager = process(bcm5719).manager
    for address in CARD:
        manager.nodedev_detach(address)
    manager.prepare(manager.host.plan(domain("vm1", f"{CARD[0]} yes", f"{CARD[1]} no"), "off"))
    assert manager.prepare(manager.host.plan(domain("vm1", f"{CARD[0]} yes", f"{CARD[1]} no"), "off")) is False
    for words in (
        [f"{CARD[0]} yes"],
        [f"{CARD[0]} yes", f"{CARD[1]} yes"],
        [f"{CARD[0]} yes", f"{CARD[1]} no unmanaged"],
        [f"{CARD[0]} yes", f"{CARD[1]} no", f"{CARD[2]} no"],
    ):
        with pytest.raises(Exception, match="in use by domain 'vm1'"):
            manager.prepare(manager.host.plan(domain("vm1", *words), "off"))


def test_prepare_again_fails_when_a_device_was_taken_away(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A device that another program has reattached since is not prepared."""
    manager = process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    give_back_from_a_shell(bcm5719, CARD[2])
    with pytest.raises(Exception, match="in use by domain 'vm1'"):
        manager.prepare(manager.host.plan(seed_domain))


def test_second_guest_of_that_name_does_not_share_the_firsts_devices(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A ``prepared`` block only releases what it prepared itself: it never starts with another's devices."""
    manager = process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    with pytest.raises(Exception, match="in use by domain 'vm1'"), manager.prepared(manager.host.plan(seed_domain)):
        raise AssertionError("it was entered")
    assert 4 == len(manager.status().active)


@pytest.mark.fault("F3")
def test_release_waits_for_the_last_close(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """QEMU is gone from /proc but the kernel still holds its group: nothing is unbound before the release."""
    before, manager = bcm5719.snapshot(), process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    guest = SimulatedGuest(bcm5719.kernel, 14)
    guest.vanish()
    threading.Timer(0.2, guest.let_go).start()
    began = time.monotonic()
    manager.release("vm1")
    assert time.monotonic() - began >= 0.15
    assert before == bcm5719.snapshot()


@pytest.mark.fault("F3")
def test_release_at_random_moments_of_qemus_end(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """At every stage of QEMU's end: nothing is unbound under a holder. fuzz_endings.py does it 1,000 times."""
    chance = random.Random(1)
    assert "waited" in [release_at_random(bcm5719, seed_domain, chance) for _ in range(12)]


def test_status_needs_no_manager(bcm5719: FakeHost, seed_domain: DomainDef, manager_for: Any) -> None:
    """A host that can only be read has the same lists as its manager."""
    manager: HostdevManager = manager_for(bcm5719)
    assert ([], [], []) == Host(bcm5719.root).status()
    manager.prepare(manager.host.plan(seed_domain))
    assert manager.status() == Host(bcm5719.root).status()
