# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that die while they plug or unplug, at a write, at an operation on their files, or at a command of QEMU."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from crash import MortalStateDir, process
from hotplugging import CARD, UNIT, card, live_domain

from pyhostdev import DomainDef, HostdevError
from pyhostdev.hypervisor.guest_facts import GUEST_FILE, GuestFacts
from pyhostdev.qemu.qemu_hotplug import Guest
from pyhostdev.qemu.qemu_hotplug.livestate import DirectoryState, live_definition
from pyhostdev.qemu.qemu_hotplug.recovery import finish_all
from pyhostdev.qemu.qemu_hotplug.runtime import GuestDirectory
from pyhostdev.testing import FakeHost, SimulatedConnection, SimulatedKill, SimulatedQEMU

TIMEOUT_S = 0.02


class Death(NamedTuple):
    """Where a process dies: "write", "state", "live" (files of the guest) or "command", and at which of them."""

    place: str = "none"
    number: int = 0
    how: str = "before"

    def __str__(self) -> str:
        return f"{self.place}-{self.number}-{self.how}"


class Actor:
    """One process that plugs: its guest, and what it did so far."""

    def __init__(self, world: World, death: Death) -> None:
        of_writes = {"dies_at_write": death.number} if death.place == "write" else {}
        of_state = {"dies_at_state": death.number} if death.place == "state" else {}
        self.victim = process(world.fake, **of_writes, **of_state, how=death.how)
        self.death = death
        dies_at = death.number if death.place == "live" else 0
        self.files = MortalStateDir(world.path, self.victim.kernel, dies_at, torn=death.how == "torn")
        self.commands = 0
        self.connection = SimulatedConnection(world.qemu.machine, self.on_command)
        self.guest = Guest(self.connection, self.victim.manager, state=DirectoryState(self.files), pid=world.qemu.pid)
        self.answer = self.connection.execute
        self.connection.execute = self.execute  # type: ignore[method-assign]

    def on_command(self, _command: str) -> None:
        """A dead process sends nothing."""
        self.commands += 1
        if self.death == Death("command", self.commands, "before"):
            self.victim.kernel.kill()
        if self.victim.kernel.killed:
            raise SimulatedKill

    async def execute(self, cmd: str, arguments: Any = None) -> Any:
        """A process that dies after a command does not see the answer."""
        try:
            return await self.answer(cmd, arguments)
        finally:
            if self.death == Death("command", self.commands, "after"):
                self.victim.kernel.kill()
                raise SimulatedKill

    def run(self, action: str) -> bool:
        """Attach, detach or finish; True if the process died."""
        try:
            asyncio.run(self.acted(action))
        except SimulatedKill:
            return True
        except HostdevError:
            return False  # pending, or a failure of the second process: judged by what is left
        return False

    async def acted(self, action: str) -> None:
        guest = self.guest
        if action == "attach":
            plan = self.victim.manager.host.plan_attach(guest.definition, card())
            await guest.attach(plan, timeout_s=TIMEOUT_S)
        elif action == "detach":
            await guest.detach(UNIT, timeout_s=TIMEOUT_S)
        else:
            await guest.finish(timeout_s=TIMEOUT_S)


class World:
    """A host with a running guest."""

    def __init__(self, fake: FakeHost, machine: str, guest: str = "linux") -> None:
        self.fake = fake
        self.path = os.path.join(fake.root.state_dir, "lib/qemu/domain-1-vm1")
        os.makedirs(self.path, mode=0o700)
        os.chmod(fake.root.state_dir, 0o700)
        self.machine, self.kind = machine, guest
        self.dom = live_domain(fake, machine.partition("-")[0])
        self.qemu: SimulatedQEMU
        self.begin()

    def begin(self) -> None:
        """Start the guest anew."""
        self.qemu = SimulatedQEMU(machine=self.machine, guest=self.kind, kernel=self.fake.kernel)
        self.qemu.cont()
        self.qemu.machine.advance(1)
        assert self.qemu.pid is not None
        directory = GuestDirectory(self.path, GuestFacts("vm1", self.qemu.pid, "9.0", None))
        directory.state.save(live_definition(self.dom))
        directory.files.replace(GUEST_FILE, directory.facts.to_bytes())

    def end(self) -> None:
        """End the guest, and remove its directory's files."""
        self.qemu.end()
        for entry in os.scandir(self.path):
            os.unlink(entry.path)

    def actor(self, death: Death = Death()) -> Actor:  # noqa: B008
        """Return a process that is about to act."""
        return Actor(self, death)

    @property
    def definition(self) -> DomainDef:
        return DirectoryState(MortalStateDir(self.path, self.fake.kernel)).load()

    def die(self, action: str, death: Death) -> bool:
        """Let one process die in an attach, or in a detach of what another one attached."""
        if action == "detach":
            self.actor().run("attach")
        return self.run(action, death)

    def run(self, action: str, death: Death) -> bool:
        """Run one process that may die, also while it begins; True if it did."""
        try:
            return self.actor(death).run(action)
        except SimulatedKill:
            return True

    def deaths(self, action: str) -> list[Death]:
        """Return every place to die in an action, from one that lives."""
        if action == "detach":
            self.actor().run("attach")
        actor = self.actor()
        actor.run(action)
        places = [Death("write", n, how) for n in range(1, actor.victim.kernel.writes + 1) for how in HOW_WRITES]
        for place, files in (("state", actor.victim.state), ("live", actor.files)):
            for number, name in enumerate(files.names_of_steps, 1):
                places += [Death(place, number)] + ([Death(place, number, "torn")] if name == "write" else [])
        places += [Death("command", n, how) for n in range(1, actor.commands + 1) for how in ("before", "after")]
        self.settle()
        return places

    def settle(self) -> None:
        """Let a healthy process take everything back."""
        self.fake.kernel.complete()
        self.actor().run("finish")
        if self.qemu.ids:
            self.actor().run("detach")
        if self.kind == "deaf":
            self.qemu.reset()
            self.actor().run("finish")
        process(self.fake).manager.recover(timeout_s=0)

    def check_decided(self, death: Death) -> None:
        """After a finish, the guest has the whole unit, or it was given back, or it is honestly pending."""
        self.fake.kernel.complete()
        self.actor().run("finish")
        manager = process(self.fake).manager
        assert all(item.is_done for item in manager.recover(timeout_s=0)), death
        records = manager.journal.read()[0]
        phases = {record.plug and record.plug.phase for record in records.values()}
        if not records:
            assert [] == self.qemu.ids, death
            assert ["tg3"] * 4 == self.drivers(), death
            assert [] == self.definition.hostdevs, death
        else:
            assert CARD == [str(address) for address in records], death
            assert ["vfio-pci"] * 4 == self.drivers(), death
            # a deaf guest keeps functions that it cannot see, through ACPI, until it is reset
            expected = {"plugged", "unplugging", *(["stuck-staged"] if self.kind == "deaf" else [])}
            assert phases <= expected and 1 == len(phases), (death, phases)
            is_staged = phases == {"stuck-staged"}
            assert self.qemu.ids == (["hostdev1"] if is_staged else ["hostdev0", "hostdev1"]), death
            assert len(self.definition.hostdevs) == (0 if is_staged else 4), death

    def check_restored(self, death: Death) -> None:
        """In the end the card is as it was, and nothing is left of the unit."""
        self.settle()
        manager = process(self.fake).manager
        assert {} == manager.journal.read()[0], death
        assert (["tg3"] * 4, [], []) == (self.drivers(), self.qemu.ids, self.definition.hostdevs), death
        assert [] == DirectoryState(MortalStateDir(self.path, self.fake.kernel)).unit_names(), death

    def check_restored_after_the_end(self, death: Death) -> None:
        """The guest and its owner are gone: recover, and a release of what the guest had, restore the card."""
        self.fake.kernel.complete()
        self.qemu.end()
        manager = process(self.fake).manager
        assert all(item.is_done for item in finish_all(manager, timeout_s=TIMEOUT_S)), death
        assert all(item.is_done for item in manager.recover(timeout_s=0)), death
        phases = {record.plug and record.plug.phase for record in manager.journal.read()[0].values()}
        assert phases <= {"plugged"}, (death, phases)
        manager.release("vm1", guest_ended=True)
        assert (["tg3"] * 4, {}) == (self.drivers(), manager.journal.read()[0]), death
        for entry in os.scandir(self.path):
            os.unlink(entry.path)
        self.begin()

    def drivers(self) -> list[str | None]:
        found = [process(self.fake).manager.host.pci_device(address) for address in CARD]
        return [None if dev is None else dev.driver for dev in found]

    def remove(self) -> None:
        """Remove what the simulation left."""
        self.qemu.end()
        shutil.rmtree(self.fake.root.path, ignore_errors=True)


HOW_WRITES = ("before", "after", "blocked")
ACTIONS = ("attach", "detach")


def scenarios() -> Iterator[tuple[str, str]]:
    """Yield machines and guests to die with."""
    for machine in ("pc", "q35", "q35-native"):
        yield machine, "linux"
    yield "pc", "deaf"
