# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that started a guest reattaches devices that leave without its request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hotplugging import CARD, UNIT, card, live_domain
from runningguests import RunningGuest, running_guest

from pyhostdev import Host, HostdevManager
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_hotplug.livestate import format_hostdevs
from pyhostdev.qemu.qemu_hotplug.owner import GuestOwner
from pyhostdev.qemu.qemu_hotplug.runtime import GuestDirectory, find_guest
from pyhostdev.testing import FakeHost
from pyhostdev.tools import main

qmp = pytest.importorskip("qemu.qmp")
WAIT_S = 30


class Stage:
    """A running guest, its owner, and verbs of a second process."""

    def __init__(self, guest: RunningGuest, unit: Path) -> None:
        self.guest = guest
        self.unit = unit
        self.fake = guest.fake

    async def verb(self, name: str, *words: str) -> int:
        argv = [name, "vm1", str(self.unit), *words, "--simulate", "--root", self.fake.root.path]
        return await asyncio.to_thread(main.main, argv)

    def drivers(self) -> list[str | None]:
        found = [Host(self.fake.root).pci_device(address) for address in CARD]
        return [None if dev is None else dev.driver for dev in found]

    async def until_given_back(self) -> None:
        for _ in range(WAIT_S * 20):
            records = HostdevManager(self.host).journal.read()[0]
            if self.drivers() == ["tg3"] * 4 and not records and not self.directory.state.load().hostdevs:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(self.drivers())

    @property
    def host(self) -> Host:
        return Host(self.fake.root, writer=self.fake.kernel)

    @property
    def directory(self) -> GuestDirectory:
        found = find_guest(self.fake.root.state_dir, "vm1")
        assert found is not None
        return found


async def owned(stage: Stage, script: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a script in parallel to the owner."""
    dom = live_domain(stage.fake)
    owner = GuestOwner(dom, stage.host, stored_capabilities(dom), DEFAULT_RELEASE, None)
    client: Any = qmp.QMPClient("owner")
    with owner.owning(stage.guest.directory.path):
        owner.spawned(stage.guest.directory.facts.pid)
        top = os.open(stage.directory.path, os.O_PATH | os.O_DIRECTORY)
        try:
            await client.connect(f"/proc/self/fd/{top}/monitor.sock")
            following = asyncio.ensure_future(owner.follow(client))
            await script(stage)
            owner.stop()
            await following
        finally:
            os.close(top)
            await client.disconnect()


@pytest.fixture
def play(bcm5719: FakeHost, tmp_path: Path) -> Callable[..., None]:
    """A function that runs a script in parallel to a guest's owner."""
    unit = tmp_path / "unit.xml"
    unit.write_text(format_hostdevs(card()))

    def run(script: Callable[[Stage], Awaitable[None]], **options: Any) -> None:
        with running_guest(bcm5719, has_owner=False, **options) as guest:
            asyncio.run(owned(Stage(guest, unit), script))

    return run


def test_a_function_pulled_by_the_host(play: Callable[..., None]) -> None:
    """The whole slot leaves; the owner reattaches all four functions and drops their unit."""

    async def script(stage: Stage) -> None:
        assert 0 == await stage.verb("attach-device")
        stage.guest.qemu.pull(CARD[3])
        await stage.until_given_back()

    play(script)


def test_a_detacher_that_gave_up(play: Callable[..., None]) -> None:
    """The guest does not answer: exit 5; after its reset, the owner reattaches without another command."""

    async def script(stage: Stage) -> None:
        assert 0 == await stage.verb("attach-device")
        assert 5 == await stage.verb("detach-device", "--timeout", "0.1")
        assert ["vfio-pci"] * 4 == stage.drivers()
        stage.guest.qemu.reset()
        await stage.until_given_back()

    play(script, guest="deaf")


def test_the_process_that_holds_the_lock_acts_itself(play: Callable[..., None]) -> None:
    """While another process changes the guest's devices, the owner waits; after its death, it acts."""

    async def script(stage: Stage) -> None:
        assert 0 == await stage.verb("attach-device")
        with stage.directory.controlling():
            stage.guest.qemu.pull(CARD[0])
            await asyncio.sleep(0.5)
            assert ["vfio-pci"] * 4 == stage.drivers()
        await stage.until_given_back()

    play(script)


def test_a_detach_of_another_process(play: Callable[..., None]) -> None:
    """The owner receives the events and does nothing."""

    async def script(stage: Stage) -> None:
        assert 0 == await stage.verb("attach-device")
        assert 0 == await stage.verb("detach-device")
        assert ["tg3"] * 4 == stage.drivers()
        assert 0 == await stage.verb("attach-device")
        assert {UNIT} == {r.plug.unit for r in HostdevManager(stage.host).journal.read()[0].values() if r.plug}

    play(script)


def test_the_end_of_the_guest_is_not_held_up(play: Callable[..., None]) -> None:
    """An owner that waits for the lock of another process stops waiting when the guest ends."""

    async def script(stage: Stage) -> None:
        assert 0 == await stage.verb("attach-device")
        fd = stage.directory.try_control()
        assert fd is not None
        stage.guest.qemu.pull(CARD[0])
        await asyncio.sleep(0.3)

    play(script)
