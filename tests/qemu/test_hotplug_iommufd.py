# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running guest gets a card by iommufd: nodes are passed to QEMU, and closed before the function is reattached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hotplugging import CARD, Stage, live_domain, run

from pyhostdev import ConfigUnsupportedError, Host, HostdevManager, OperationError, RefusedError
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.conf.os_conf import IOMMUFDDef
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_hotplug import Guest
from pyhostdev.qemu.qemu_hotplug.connection import MonitorLost
from pyhostdev.qemu.qemu_hotplug.livestate import DirectoryState
from pyhostdev.testing import FakeHost, SimulatedConnection
from pyhostdev.testing.qemudescriptors import NamedDescriptors
from pyhostdev.testing.qemuslots import QMPRefusal
from pyhostdev.testing.qemuvfio import HostSide
from pyhostdev.util.statedir import StateDir

R12_8 = RELEASES[-1]
TREE = Path(__file__).parents[2] / "pyhostdev/testing/hosts/bcm5719.tree"
TG3, VFIO = ["tg3"] * 4, ["vfio-pci"] * 4
NODES = ("getfd", "object-add", "device_add", "closefd")


def tree(*lines: str) -> str:
    kept = [line for line in TREE.read_text().splitlines() if not line.startswith(("release", "iommufd"))]
    return "\n".join([*kept, "release 7.2.13", *lines]) + "\n"


@pytest.fixture
def fake(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """The seed's host with iommufd."""
    return fakehost(tree("iommufd available"))


class NodeStage(Stage):
    """A guest whose devices use iommufd."""

    def __init__(self, fake: FakeHost, **options: object) -> None:
        dom = live_domain(fake)
        dom.iommufds.append(IOMMUFDDef(enabled=True))
        super().__init__(fake, version=(11, 1), definition=dom, **options)  # type: ignore[arg-type]
        self.guest = self.guest_over(self.connection)

    def guest_over(self, connection: Any) -> Guest:
        """Return the guest over this connection."""
        return Guest(
            connection,
            self.manager,
            self.guest.definition,
            pid=self.qemu.pid,
            capabilities=load("x86_64", R12_8.qemu),
            release=R12_8,
        )

    def plan(self, hostdevs: Any = None, **options: Any) -> Any:
        return super().plan(hostdevs, release=R12_8, **options)

    @property
    def told(self) -> list[str]:
        """The commands for descriptors and devices, each with its name."""
        found = ((c, a.get("fdname") or a.get("id")) for c, a in self.connection.commands if c in NODES)
        return [f"{command} {name}" for command, name in found]


def open_nodes() -> list[str]:
    """Return the nodes of functions that this process has open."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return [link for link in links if "/dev/vfio/devices/" in link]


def test_nodes_are_handed_over_before_each_device(fake: FakeHost) -> None:
    """The iommufd is first, function 0 last; this process keeps no node open, and QEMU closes them with the unit."""
    stage = NodeStage(fake)
    stage.attach()
    assert [
        "getfd iommufd0-node", "object-add iommufd0", "getfd hostdev1-node", "device_add hostdev1",
        "getfd hostdev0-node", "device_add hostdev0",
    ] == [word for word in stage.told if not word.startswith("closefd")]  # fmt: skip
    added = [arguments for command, arguments in stage.connection.commands if command == "device_add"]
    assert [("iommufd0", "hostdev1-node", None), ("iommufd0", "hostdev0-node", None)] == [
        (words["iommufd"], words["fd"], words.get("host")) for words in added
    ]
    assert (VFIO, [CARD[0], CARD[3]]) == (stage.drivers(), stage.qemu.host_side.functions)
    assert (2, {}) == (len(open_nodes()), stage.qemu.machine.nodes.names)  # the simulated QEMU's, which is this process
    stage.detach()
    assert (TG3, []) == (stage.drivers(), stage.qemu.host_side.functions)


def test_one_iommufd_serves_a_guest_for_its_life(fake: FakeHost) -> None:
    """The functions of a guest share one iommufd."""
    stage = NodeStage(fake)
    stage.attach()
    stage.detach()
    stage.attach()
    assert 1 == stage.told.count("object-add iommufd0")
    assert VFIO == stage.drivers()
    stage.qemu.end()


@pytest.mark.parametrize("refused", range(2))
def test_a_refused_device_leaves_no_node_open(fake: FakeHost, monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    """QEMU refuses the device before it uses the node: the node is closed in QEMU before the card is reattached."""
    stage = NodeStage(fake)
    count = iter(range(9))
    real = NamedDescriptors.check

    def check(nodes: NamedDescriptors, properties: dict[str, object]) -> None:
        if next(count) == refused:
            raise QMPRefusal("not today")
        real(nodes, properties)

    monkeypatch.setattr(NamedDescriptors, "check", check)
    with pytest.raises(OperationError, match="not today") as error:
        stage.attach()
    assert (True, TG3) == (error.value.rolled_back, stage.drivers())
    assert ({}, []) == (stage.qemu.machine.nodes.names, open_nodes())


def test_what_cannot_be_is_refused_before_the_first_write(fakehost: Callable[[str], FakeHost]) -> None:
    """A kernel without iommufd, or a connection that cannot pass descriptors, is refused."""
    without = fakehost(tree())
    stage = NodeStage(without)
    before = without.snapshot()
    with pytest.raises(RefusedError) as error:
        stage.attach()
    assert ["iommufd-missing"] == [finding.reason for finding in error.value.findings]
    assert (before, []) == (without.snapshot(), stage.told)


def test_a_connection_without_descriptors_is_refused(fake: FakeHost) -> None:
    """Nothing is touched."""
    stage = NodeStage(fake)
    before = fake.snapshot()

    class Plain:
        """A connection that cannot pass descriptors."""

        def __init__(self, connection: SimulatedConnection) -> None:
            self.events, self.execute = connection.events, connection.execute

    guest = stage.guest_over(Plain(stage.connection))
    with pytest.raises(ConfigUnsupportedError, match="hand over"):
        run(guest.attach(stage.plan()))
    assert before == fake.snapshot()


class Killed(BaseException):
    """The attacher was killed."""


def test_a_killed_attacher_leaves_no_node_open(fake: FakeHost) -> None:
    """It passed a node and was killed before the device: the next process closes the node and reattaches the card."""

    def kill(command: str) -> None:
        if command == "device_add":
            raise Killed

    stage = NodeStage(fake, on_command=kill)
    with pytest.raises(Killed):
        stage.attach()
    assert VFIO == stage.drivers()
    stage.connection._on_command = None
    stage.finish()
    assert TG3 == stage.drivers()
    assert {} == stage.qemu.machine.nodes.names


def test_qemu_that_dies_while_it_has_nodes(fake: FakeHost) -> None:
    """The end of QEMU closes its nodes; release reattaches the card."""
    stage = NodeStage(fake)
    stage.attach()
    stage.qemu.end()
    HostdevManager(Host(fake.root, writer=fake.kernel)).release("vm1")
    assert TG3 == stage.drivers()


def refuse_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel refuse the first function that QEMU binds."""
    count = iter(range(9))
    real = HostSide.bind

    def bind(side: HostSide, device_id: str, fd: int, iommufd: int) -> str:
        if next(count) == 0:
            os.close(fd)
            raise QMPRefusal(f"error bind device fd={fd} to iommufd={iommufd}: Operation not permitted")
        return real(side, device_id, fd, iommufd)

    monkeypatch.setattr(HostSide, "bind", bind)


def test_an_id_that_qemu_refused_is_not_used_again(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU 11.1 ends itself when it gets another node under the id of a device that it refused."""
    refuse_the_first(monkeypatch)
    stage = NodeStage(fake)
    with pytest.raises(OperationError, match="error bind device"):
        stage.attach()
    assert (TG3, {"hostdev1"}) == (stage.drivers(), set(stage.guest.state.spent_ids))
    stage.attach()
    assert (VFIO, ["hostdev0", "hostdev2"]) == (stage.drivers(), stage.qemu.ids)
    stage.detach()
    assert {"hostdev1"} == set(stage.guest.state.spent_ids)
    stage.attach()
    assert ["hostdev0", "hostdev2"] == stage.qemu.ids
    stage.qemu.end()


def test_an_alias_of_the_user_that_qemu_refused_is_refused(fake: FakeHost) -> None:
    """Nothing is touched, and QEMU runs on."""
    stage = NodeStage(fake)
    stage.guest.state.store_spent_ids(["ua-card"])
    plan = stage.plan()
    plan.definition.pci_hostdevs()[0].info.alias = "ua-card"
    before = fake.snapshot()
    with pytest.raises(ConfigUnsupportedError, match="'ua-card' cannot be used again"):
        run(stage.guest.attach(plan))
    assert (before, []) == (fake.snapshot(), stage.told)


def test_the_simulated_qemu_ends_as_the_real_one(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in the lab with QEMU 11.1; the monitor's client sees the end of its connection."""
    refuse_the_first(monkeypatch)
    stage = NodeStage(fake)
    with pytest.raises(OperationError, match="error bind device"):
        stage.attach()
    stage.guest.state.store_spent_ids([])
    with pytest.raises(MonitorLost, match="already saved with a different value"):
        stage.attach()


def test_spent_ids_are_stored_for_the_next_process(tmp_path: Path) -> None:
    """They stay until they are replaced."""
    path = str(tmp_path / "run")
    state = DirectoryState(StateDir(path))
    assert frozenset() == state.spent_ids
    state.store_spent_ids(["hostdev2", "hostdev1"])
    assert {"hostdev1", "hostdev2"} == DirectoryState(StateDir(path)).spent_ids
    (tmp_path / "run/spent-ids.json").write_text("7")
    with pytest.raises(OperationError, match=r"spent-ids\.json"):
        print(state.spent_ids)
