# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults at the n-th write: each has its documented effect, once, and no other."""

from __future__ import annotations

import errno
import time

import pytest
from bench import Bench

from pyhostdev.testing.fakehost import snapshot_tree
from pyhostdev.testing.faults import Delay, Fail, Hang, Interfere, Kill, SimulatedKill, Vanish
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.pciaddress import PCIDeviceAddress

F0, F1 = "0001:09:00.0", "0001:09:00.1"
FIRST = PCIDeviceAddress.parse(F0)


def test_fail_refuses_the_nth_write_alone(card: Bench) -> None:
    """The n-th write after the injection fails; the writes before and after it are real."""
    card.override(F1, "x")
    card.kernel.inject(2, Fail(errno.EIO))
    assert ["ok", "EIO", "ok"] == [card.override(F0, text) for text in ("a", "b", "c")]
    assert ["ok", "ok", "EIO", "ok"] == [entry.result for entry in card.kernel.trace]
    assert b"c\n" == card.read(F0, "driver_override")


def test_module_load_counts_as_a_write(card: Bench) -> None:
    """Loading a module counts as a write and can fail like one."""
    card.kernel.inject(1, Fail(errno.EPERM))
    with pytest.raises(Exception, match="not permitted"):
        card.kernel.load_module("vfio-pci")
    card.kernel.inject(1, Hang())
    with pytest.raises(Exception, match="has not finished"):
        card.kernel.load_module("vfio-pci")


def test_hanging_override_lands_when_it_completes(card: Bench) -> None:
    """Until it completes, the device is in doubt and the override unchanged."""
    card.kernel.inject(1, Hang())
    assert "in-doubt" == card.override(F0, "vfio-pci")
    assert (True, b"(null)\n") == (card.kernel.is_in_flight(FIRST), card.read(F0, "driver_override"))
    card.kernel.complete(FIRST)
    assert (False, b"vfio-pci\n") == (card.kernel.is_in_flight(FIRST), card.read(F0, "driver_override"))


def test_hang_that_does_not_land_leaves_nothing(card: Bench) -> None:
    """The write never reached the kernel."""
    before = snapshot_tree(card.root.path)
    card.kernel.inject(1, Hang(lands=False))
    assert "in-doubt" == card.unbind("tg3", F0)
    assert card.kernel.is_in_flight(FIRST)
    card.kernel.complete(FIRST)
    assert not card.kernel.is_in_flight(FIRST)
    assert before == snapshot_tree(card.root.path)


def test_hanging_bind_and_unbind_stop_in_their_middle(card: Bench) -> None:
    """The link has changed already, the driver's files have not."""
    card.kernel.inject(1, Hang())
    assert "in-doubt" == card.unbind("tg3", F0)
    assert (None, True) == (card.driver(F0), card.exists(f"sys/bus/pci/devices/{F0}/net"))
    card.kernel.complete(FIRST)
    assert not card.exists(f"sys/bus/pci/devices/{F0}/net")
    card.kernel.inject(1, Hang())
    assert "in-doubt" == card.bind("tg3", F0)
    assert ("tg3", False) == (card.driver(F0), card.exists(f"sys/bus/pci/devices/{F0}/net"))


def test_complete_of_one_device_leaves_the_other(card: Bench) -> None:
    """Each device's write is its own."""
    for address in (F0, F1):
        card.kernel.inject(1, Hang())
        card.override(address, "x")
    card.kernel.complete(FIRST)
    assert [False, True] == [card.kernel.is_in_flight(PCIDeviceAddress.parse(a)) for a in (F0, F1)]


@pytest.mark.parametrize(("when", "content"), [("before", b"(null)\n"), ("after", b"x\n"), ("blocked", b"(null)\n")])
def test_kill_ends_the_writer(card: Bench, when: str, content: bytes) -> None:
    """Before, after or inside a write: later writes of this process do nothing; others see what happened."""
    card.kernel.inject(1, Kill(when))
    with pytest.raises(SimulatedKill):
        card.override(F0, "x")
    assert content == card.read(F0, "driver_override")
    with pytest.raises(SimulatedKill):
        card.override(F1, "y")
    assert b"(null)\n" == card.read(F1, "driver_override")
    second = SimulatedKernel(card.root)
    assert (when == "blocked") == second.is_in_flight(FIRST)
    second.complete()
    assert (b"(null)\n" if when == "before" else b"x\n") == card.read(F0, "driver_override")


def test_kill_when_is_checked() -> None:
    """An unknown moment is refused."""
    with pytest.raises(ValueError, match="during"):
        Kill("during")


def test_vanished_function_is_gone_from_everywhere(card: Bench) -> None:
    """A vanished function leaves bus, driver and group; its neighbours remain."""
    card.kernel.inject(1, Vanish(FIRST))
    assert "ENODEV" == card.unbind("tg3", F0)
    left = [path for path in snapshot_tree(card.root.path) if path.endswith(F0)]
    assert ([], "tg3") == (left, card.driver(F1))


def test_foreign_writer_acts_between_two_writes(card: Bench) -> None:
    """A foreign write is neither counted nor traced."""
    override = f"{card.root.pci_device(FIRST)}/driver_override"
    card.kernel.inject(2, Interfere(lambda shell: shell.write(override, b"stolen", device=FIRST)))
    card.override(F0, "vfio-pci")
    card.override(F1, "vfio-pci")
    assert [b"stolen\n", b"vfio-pci\n"] == [card.read(a, "driver_override") for a in (F0, F1)]
    assert 2 == len(card.kernel.trace) == card.kernel.writes


def test_delay_takes_its_time_and_changes_nothing_else(card: Bench) -> None:
    """The write is late, and real."""
    start = time.monotonic()
    card.kernel.inject(1, Delay(0.05))
    assert "ok" == card.override(F0, "x")
    assert time.monotonic() - start >= 0.05
    assert b"x\n" == card.read(F0, "driver_override")
