# SPDX-License-Identifier: LGPL-2.1-or-later
"""After any sequence of plugs, unplugs, pauses, resets and foreign changes, host, QEMU and records agree."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from hotplugging import CARD, UNIT, Stage
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sizes import examples

from pyhostdev import HostdevError
from pyhostdev.testing import FakeHost, QMPRefusal

MACHINES = st.sampled_from(["pc", "q35", "q35-native"])
GUESTS = st.sampled_from(["linux", "linux", "deaf", "compat"])


class Plugging(RuleBasedStateMachine):
    """One card and one guest; any refusal is accepted if all three agree."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.stage: Stage

    @initialize(machine=MACHINES, guest=GUESTS)
    def begin(self, machine: str, guest: str) -> None:
        # a reset does not empty the slot of a port: only QEMU's end takes it from a guest that does not answer
        self.never_answers = (machine, guest) == ("q35-native", "deaf")
        self.stage = Stage(FakeHost.named("bcm5719", self.directory), machine, guest=guest)

    def tried(self, action: Callable[..., Any], *words: Any) -> None:
        with contextlib.suppress(HostdevError):
            action(*words)

    @rule()
    def attach(self) -> None:
        self.tried(lambda: self.stage.attach(timeout_s=0.02))

    @rule()
    def detach(self) -> None:
        self.tried(self.stage.detach, UNIT, 0.02)

    @rule()
    def finish(self) -> None:
        self.tried(self.stage.finish, 0.02)

    @rule()
    def pause(self) -> None:
        self.stage.qemu.stop()

    @rule(seconds=st.sampled_from([0.05, 1, 7]))
    def run(self, seconds: float) -> None:
        self.stage.qemu.cont()
        self.stage.qemu.machine.advance(seconds)

    @rule()
    def reset(self) -> None:
        self.stage.qemu.reset()

    @rule(function=st.sampled_from([0, 3]))
    def pull(self, function: int) -> None:
        with contextlib.suppress(QMPRefusal):  # QEMU's own request is refused as ours is
            self.stage.qemu.pull(CARD[function])

    @invariant()
    def all_agree(self) -> None:
        """All functions are on the host, or none and all four are recorded; QEMU has only recorded functions."""
        if not hasattr(self, "stage"):
            return
        records = self.stage.manager.journal.read()[0]
        drivers = set(self.stage.drivers())
        assert len(drivers) == 1
        assert (drivers == {"vfio-pci"}) == (len(records) == 4)
        if not records:
            assert [] == self.stage.qemu.ids
            assert [] == self.stage.guest.definition.hostdevs

    def teardown(self) -> None:
        """At the end, the card is always reattached."""
        if hasattr(self, "stage"):
            self.stage.qemu.cont()
            self.stage.qemu.machine.advance(10)
            self.tried(self.stage.finish, 0.1)
            self.tried(self.stage.detach, UNIT, 0.1)
            self.stage.qemu.reset()
            self.tried(self.stage.finish, 0.1)
            self.tried(self.stage.detach, UNIT, 0.1)
            phases = {record.plug and record.plug.phase for record in self.stage.manager.journal.read()[0].values()}
            assert phases <= ({"unplugging"} if self.never_answers else set())
            self.stage.qemu.end()
            self.stage.manager.release("vm1", guest_ended=True)
            assert ({}, ["tg3"] * 4) == (self.stage.manager.journal.read()[0], self.stage.drivers())
        shutil.rmtree(self.directory, ignore_errors=True)


Plugging.TestCase.settings = settings(
    max_examples=examples(6), stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPlugging = Plugging.TestCase
