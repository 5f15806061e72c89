# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Hosts and domains in all the ways in which a device can be where it is before a guest gets it.

A scenario is made once in a directory, and its cases run there one after the other: each ends with the tree as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from crash import Process, deaths, process, recovered, run_and_die

from pyhostdev import DomainDef, HostdevManager, PCIDeviceAddress
from pyhostdev.testing.fakehost import HOSTS, FakeHost

Tree = dict[str, bytes | str | None]
Lists = tuple[list[tuple[str, str | None]], list[str]]

_CARD = """\
driver pcieport class:0604 builtin
driver tg3 14e4:1657
driver vfio-pci{module}
driver pci-stub builtin
driver mlx5_vfio_pci
{variant}0000:00:00.0 8086:6f00 060000 group=0
0000:00:02.0 8086:6f04 060400 driver=pcieport group=1 bridge=01-01 express=root-port acs
"""
_FUNCTION = "0000:01:00.{number} 14e4:1657 020000 {driver} group=14 {many}express=endpoint {reset} {words}\n"

_VFIO_NUMBER = re.compile("vfio-dev/vfio[0-9]+")
_VARIANT = "xe-vfio-pci 14e4:1657 available"  # its module is called xe_vfio_pci

_HOSTDEV = """
    <hostdev mode='subsystem' type='pci' managed='{managed}'{assigned}>{model}
      <source><address domain='{a.domain:#x}' bus='{a.bus:#x}' slot='{a.slot:#x}' function='{a.function}'/></source>
    </hostdev>"""
_DOMAIN = """<domain type='qemu'><name>vm1</name><memory>131072</memory><os><type machine='pc'>hvm</type></os>
  <devices>{hostdevs}</devices></domain>"""


def address(number: int) -> str:
    """Return the address of one function of the card."""
    return f"0000:01:00.{number}"


def card(count: int, *, module: str = "", variant: str = "", reset: str = "pm flr", **words: str) -> str:
    """Return a host with a card of some functions in one group; f1="nodriver" is about function 1 only."""
    text = _CARD.format(module=module, variant=variant and f"driver {variant}\n")
    for number in range(count):
        special = words.get(f"f{number}", "")
        driver = "" if "nodriver" in special or "driver=" in special else "driver=tg3"
        many = "multifunction " if count > 1 else ""
        text += _FUNCTION.format(number=number, driver=driver, many=many, reset=reset, words=special)
    return text


class Scenario(NamedTuple):
    """
    One host, one domain, and the state of the host before.

    Hostdevs are "ADDRESS [yes|no] [unmanaged] [model=DRIVER]"; ``setup`` are raw writes, "PATH=VALUE" in sys/bus/pci;
    ``detached`` is "ADDRESS[ DRIVER]", detached without an owner first. ``loads`` is a module that
    is loaded and stays.
    Without a guest (``is_nodedev``) the first hostdev's device is detached without an owner and reattached.
    ``node_owner`` gets the nodes; with iommufd each function has its own.
    """

    name: str
    tree: str
    hostdevs: tuple[str, ...]
    setup: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    policy: str = "auto"
    loads: str = ""
    is_nodedev: bool = False
    node_owner: tuple[int, int] | None = None
    has_iommufd: bool = False

    def definition(self) -> DomainDef:
        """Return the domain."""
        return DomainDef.parse(_DOMAIN.format(hostdevs="".join(_hostdev(words) for words in self.hostdevs)))

    def build(self, directory: Path) -> FakeHost:
        """Make the host as it is when the domain is to start."""
        fake = FakeHost.from_tree(self.tree if "\n" in self.tree else f"{HOSTS}/{self.tree}.tree", directory)
        if self.has_iommufd:
            Path(fake.root.dev_iommu).parent.mkdir(exist_ok=True)
            Path(fake.root.dev_iommu).touch()
        for words in self.setup:
            path, _, value = words.partition("=")
            foreign = fake.kernel.foreign()
            where = next((p for p in (*path.split("/"), value) if p.count(":") == 2), address(0))
            foreign.write(fake.root.join("sys/bus/pci", path), value.encode(), device=PCIDeviceAddress.parse(where))
        for words in self.detached:
            name, _, driver = words.partition(" ")
            process(fake).manager.nodedev_detach(PCIDeviceAddress.parse(name), driver or "vfio-pci")
        return fake

    @property
    def device(self) -> PCIDeviceAddress:
        """The first device."""
        return PCIDeviceAddress.parse(self.hostdevs[0].split()[0])

    def prepare(self, manager: HostdevManager) -> None:
        """Take the devices."""
        if self.is_nodedev:
            manager.nodedev_detach(self.device)
        else:
            manager.prepare(manager.host.plan(self.definition(), self.policy), node_owner=self.node_owner)

    def release(self, manager: HostdevManager) -> None:
        """Give the devices back."""
        if not self.is_nodedev:
            manager.release("vm1")
        elif manager.status().inactive:
            manager.nodedev_reattach(self.device)


def _hostdev(words: str) -> str:
    name, *rest = words.split()
    model = next((word.removeprefix("model=") for word in rest if word.startswith("model=")), None)
    return _HOSTDEV.format(
        a=PCIDeviceAddress.parse(name),
        managed="no" if "unmanaged" in rest else "yes",
        assigned=next((f" assigned='{word}'" for word in rest if word in ("yes", "no")), ""),
        model=f"\n      <driver name='vfio' model='{model}'/>" if model else "",
    )


def _bound_by_hand(name: str, stub: str = "vfio-pci") -> tuple[str, ...]:
    return (
        f"devices/{name}/driver_override={stub}",
        f"drivers/tg3/unbind={name}",
        f"drivers/{stub}/bind={name}",
    )


def _groups() -> Iterator[Scenario]:
    for count in range(1, 9):
        everything = tuple(address(n) for n in range(count))
        yield Scenario(f"managed-{count}", card(count), everything)
        if count > 1:
            words = tuple(f"{a} {'no' if 0 < n < count - 1 else 'yes'}" for n, a in enumerate(everything))
            yield Scenario(f"not-assigned-{count}", card(count), words)
    for count in (1, 3):
        everything = tuple(address(n) for n in range(count))
        yield Scenario(f"inactive-first-{count}", card(count), everything, detached=everything)
        unmanaged = tuple(f"{a} unmanaged" for a in everything)
        yield Scenario(f"unmanaged-inactive-{count}", card(count), unmanaged, detached=everything)
        by_hand = tuple(word for a in everything for word in _bound_by_hand(a))
        yield Scenario(f"unmanaged-by-hand-{count}", card(count), unmanaged, setup=by_hand)
        yield Scenario(f"already-on-vfio-{count}", card(count), everything, setup=by_hand)
        yield Scenario(f"module-to-load-{count}", card(count, module=" available"), everything, loads="vfio-pci")
        yield Scenario(f"no-reset-{count}", card(count, reset="pm=noreset"), everything)


def _originals() -> Iterator[Scenario]:
    two, three = (address(0), address(1)), tuple(address(n) for n in range(3))
    yield Scenario("driverless", card(2, f1="nodriver"), two)
    yield Scenario("all-driverless", card(2, f0="nodriver", f1="nodriver"), two)
    yield Scenario("override-same", card(2, f0="override=tg3"), two)
    yield Scenario("override-other", card(2, f0="override=pci-stub"), two)
    yield Scenario("override-and-driverless", card(2, f1="nodriver override=pci-stub"), two)
    yield Scenario("override-of-nobody", card(2, f0="nodriver override=no-such-driver"), two)
    yield Scenario("override-vfio-on-host-driver", card(2, f0="override=vfio-pci"), two)
    yield Scenario("on-pci-stub", card(2), two, setup=_bound_by_hand(address(1), "pci-stub"))
    yield Scenario("dynamic-id", card(2, f1="nodriver"), two, setup=("drivers/vfio-pci/new_id=14e4 1657",))
    yield Scenario("one-inactive-of-three", card(3), three, detached=(address(1),))
    mixed = (address(0), f"{address(1)} unmanaged", address(2))
    yield Scenario("mixed-managed", card(3), mixed, detached=(address(1),))
    yield Scenario("one-on-vfio-of-three", card(3), three, setup=_bound_by_hand(address(2)))
    yield Scenario("inactive-on-pci-stub", card(2), two, detached=(f"{address(0)} pci-stub", f"{address(1)} pci-stub"))
    models = tuple(f"{a} model=mlx5_vfio_pci" for a in two)
    yield Scenario("variant-driver", card(2), models)
    yield Scenario("variant-driver-from-inactive", card(2), models, detached=two)
    yield Scenario("best-variant", card(2, variant=_VARIANT.replace(" available", "")), two)
    yield Scenario("best-variant-to-load", card(2, variant=_VARIANT), two, loads="xe_vfio_pci")
    by_hand = tuple(word for a in two for word in _bound_by_hand(a))
    yield Scenario("best-variant-from-vfio", card(2, variant=_VARIANT), two, setup=by_hand, loads="xe_vfio_pci")
    eight = tuple(f"{address(n)} {'no' if n % 3 else 'yes'}" for n in range(8))
    odd = {f"f{n}": ("nodriver", "override=pci-stub")[n // 2 % 2] for n in range(1, 8, 2)}
    yield Scenario("odd-originals-8", card(8, **odd), eight)
    yield Scenario("half-inactive-8", card(8), eight, detached=tuple(address(n) for n in range(0, 8, 2)))
    yield Scenario("no-reset-8", card(8, reset="pm=noreset"), eight)
    by_hand = tuple(word for n in (5, 6) for word in _bound_by_hand(address(n)))
    yield Scenario("some-by-hand-7", card(7), eight[:7], setup=by_hand)
    yield Scenario("policy-off-one-of-three", card(3), (address(1),), policy="off")
    yield Scenario("not-assigned-inactive", card(2), (f"{address(0)} yes", f"{address(1)} no"), detached=(address(1),))
    yield Scenario(
        "not-assigned-unmanaged",
        card(2),
        (f"{address(0)} yes", f"{address(1)} no unmanaged"),
        setup=_bound_by_hand(address(1)),
    )


def _hosts() -> Iterator[Scenario]:
    yield Scenario("own-groups-one-port", "nic-own-groups", ("0000:04:00.1",))
    yield Scenario("own-groups-both", "nic-own-groups", ("0000:04:00.0", "0000:04:00.1"))
    yield Scenario("vf", "sriov", ("0000:03:10.2",))
    yield Scenario("vfs", "sriov", ("0000:03:10.0", "0000:03:10.2", "0000:03:10.6"))
    yield Scenario("vf-driverless", "sriov", ("0000:03:10.0",), setup=("drivers/ixgbevf/unbind=0000:03:10.0",))
    no_probe = (
        "devices/0000:03:00.0/sriov_numvfs=0",
        "devices/0000:03:00.0/sriov_drivers_autoprobe=0",
        "devices/0000:03:00.0/sriov_numvfs=2",
    )
    yield Scenario("vf-not-probed", "sriov", ("0000:03:10.0", "0000:03:10.2"), setup=no_probe)
    bound = (
        *no_probe,
        "devices/0000:03:10.0/driver_override=ixgbevf",
        "drivers/ixgbevf/bind=0000:03:10.0",
        "devices/0000:03:10.0/driver_override=\n",
    )
    yield Scenario("vf-bound-where-none-is-probed", "sriov", ("0000:03:10.0",), setup=bound)
    pfs = ("0000:06:12.0", "0000:06:12.1")
    no_vfs = tuple(f"devices/{pf}/sriov_numvfs=0" for pf in pfs)
    yield Scenario("pfs-without-vfs", "pf-multifunction", pfs, setup=no_vfs)
    yield Scenario("vfs-of-two-pfs", "pf-multifunction", ("0000:06:12.2", "0000:06:12.3"))
    yield Scenario("three-singles", "libvirt", ("0000:00:01.0", "0000:00:02.0", "0000:00:03.0"))
    yield Scenario("conventional-group", "libvirt", ("0000:0a:01.0", "0000:0a:02.0", "0000:0a:03.0"))
    yield Scenario("wide-domain", "wide-domain", ("10000:82:00.0 yes", "10000:82:00.1 no"))
    yield Scenario("seed", "bcm5719", ("0001:09:00.0 yes", "0001:09:00.1 no", "0001:09:00.2 no", "0001:09:00.3 yes"))
    yield Scenario("ari-vf", "ari", ("0000:05:02.1",))


def _nodedev() -> Iterator[Scenario]:
    yield Scenario("nodedev", card(2), (address(0),), is_nodedev=True)
    yield Scenario("nodedev-driverless", card(1, f0="nodriver"), (address(0),), is_nodedev=True)
    yield Scenario("nodedev-override", card(1, f0="override=pci-stub"), (address(0),), is_nodedev=True)
    yield Scenario("nodedev-module", card(1, module=" available"), (address(0),), is_nodedev=True, loads="vfio-pci")
    variant = card(1, variant=_VARIANT)
    yield Scenario("nodedev-variant", variant, (address(0),), is_nodedev=True, loads="xe_vfio_pci")
    yield Scenario("nodedev-vf", "sriov", ("0000:03:10.4",), is_nodedev=True)


def _given_nodes() -> Iterator[Scenario]:
    two, user = (address(0), address(1)), (107, 36)
    by_hand = tuple(word for a in two for word in _bound_by_hand(a))
    yield Scenario("nodes-2", card(2), two, node_owner=user)
    yield Scenario("nodes-that-stay", card(2), two, setup=by_hand, node_owner=user)
    yield Scenario("nodes-of-inactive", card(3), (*two, address(2)), detached=two, node_owner=user)
    words = (f"{address(0)} yes", f"{address(1)} no")
    yield Scenario("nodes-of-functions", card(2), words, node_owner=user, has_iommufd=True)
    yield Scenario("nodes-of-functions-that-stay", card(2), words, setup=by_hand, node_owner=user, has_iommufd=True)
    yield Scenario("nodes-of-two-groups", "nic-own-groups", ("0000:04:00.0", "0000:04:00.1"), node_owner=user)


SCENARIOS = (*_groups(), *_originals(), *_hosts(), *_nodedev(), *_given_nodes())


class Case(NamedTuple):
    """One way to go wrong: in which phase, and what goes wrong with the process that is at it."""

    phase: str  # prepare or release
    fault: dict[str, object]


class Stage:
    """A scenario on its host, with what the host is like before, with the guest's devices, and after their release."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario = scenario
        self.directory = directory
        self.definition = scenario.definition()
        self._made = 0
        self._build()
        self._baseline = _files(self.fake.root.state_dir)
        self.before = [self.look()]
        self.preparing = self._run(scenario.prepare)
        self.prepared = self.look()
        self.releasing = self._run(scenario.release)
        self.after = self.look()
        if scenario.loads:  # a module that was loaded for a change that is undone stays
            self._build()
            self.fake.kernel.load_module(scenario.loads)
            self.before.append(self.look())
        self.rewind()

    def _build(self) -> None:
        self._made += 1
        self.fake = self.scenario.build(self.directory / str(self._made))

    def _run(self, action: Callable[[HostdevManager], object]) -> Process:
        whole = process(self.fake)
        action(whole.manager)
        return whole

    def look(self) -> tuple[Tree, Lists]:
        """Return the tree and the lists; a function that is bound to vfio-pci again may have another number there."""
        status = process(self.fake).manager.status()
        assert [] == status.problems
        active = [(str(item.address), item.owner) for item in status.active]
        tree = {_VFIO_NUMBER.sub("vfio-dev/vfioN", path): data for path, data in self.fake.snapshot().items()}
        return tree, (active, [str(a) for a in status.inactive])

    def rewind(self) -> None:
        """Go back to where the scenario starts; the tree is there already, unless a whole run does not end there."""
        if self.after[0] != self.before[0][0]:
            self._build()
            return
        top = self.fake.root.state_dir
        for name in os.listdir(top) if os.path.isdir(top) else ():
            os.unlink(os.path.join(top, name))
        if not self._baseline and os.path.isdir(top):
            os.rmdir(top)
        for name, data in self._baseline.items():
            Path(top, name).write_bytes(data)

    def deaths(self) -> list[Case]:
        """Return every place to die in prepare and in release."""
        return [
            Case(phase, death)
            for phase, whole in (("prepare", self.preparing), ("release", self.releasing))
            for death in deaths(whole.kernel.writes, whole.state.steps, whole.state.names_of_steps)
        ]

    def action(self, phase: str) -> Callable[[HostdevManager], None]:
        """Return what a phase does; for a release all that comes before it is done."""
        if phase == "prepare":
            return self.scenario.prepare
        self.scenario.prepare(process(self.fake).manager)
        return self.scenario.release

    def die(self, case: Case) -> None:
        """Let a process die there; another one then examines the host, while a write may still be in flight."""
        assert run_and_die(self.action(case.phase), process(self.fake, **case.fault))  # type: ignore[arg-type]
        process(self.fake).manager.recover(timeout_s=0)

    def check_restored(self, case: Case) -> None:
        """
        Recover, and check that every device is restored, or with the domain's owner; then rewind.

        A prepare with a "prepared" record before its death is done; a release without its record has not begun.
        """
        recovered(self.fake)
        found = self.look()
        if found == self.prepared:
            self.scenario.release(process(self.fake).manager)
            assert self.after == self.look(), case
        elif case.phase == "prepare":
            assert found in self.before, case
        else:
            assert self.after == found, case
        self.rewind()


def _files(top: str) -> dict[str, bytes]:
    names = os.listdir(top) if os.path.isdir(top) else []
    return {name: Path(top, name).read_bytes() for name in names}
