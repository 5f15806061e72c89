# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A host and its managers as a state machine: in any order of events, the invariants hold.

The model only knows the prepared guests, what each completed or killed prepare requested, and which changes of a device
were not made by pyhostdev.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress

from crash import MortalStateDir, deaths, process
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scenarios import _hostdev, card

from pyhostdev import DomainDef, Host, HostdevError, HostdevManager, PCIDeviceAddress
from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.testing.faults import SimulatedKill
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.journal import Journal, Record
from pyhostdev.util.pcidriver import read_binding
from pyhostdev.util.virfile import read_link_name

# Short forms of the hosts that come with the package, and what a guest may ask for there
HOSTS_AND_DEVICES = {
    "bcm5719": ("0001:09:00.0", "0001:09:00.1", "0001:09:00.2", "0001:09:00.3"),
    "nic-own-groups": ("0000:04:00.0", "0000:04:00.1"),
    "sriov": ("0000:03:10.0", "0000:03:10.2", "0000:03:10.4"),
    card(3, f1="nodriver", f2="override=pci-stub"): ("0000:01:00.0", "0000:01:00.1", "0000:01:00.2"),
}
OWNERS = ("vm1", "vm2")
NODE_OWNERS = {"vm1": (107, 36), "vm2": None}
_DOMAIN = """<domain type='qemu'><name>{name}</name><memory>131072</memory><os><type machine='pc'>hvm</type></os>
  <devices>{hostdevs}</devices></domain>"""
_PLACES = list(deaths(14, 60))

places = st.integers(0, len(_PLACES) - 1)
owners = st.sampled_from(OWNERS)
numbers = st.integers(0, 3)
left_out = st.just(0) | st.integers(0, 14)
words = st.sampled_from(("", "", "", "unmanaged"))
marks_missing = st.integers(1, 4)  # prepare marks each of up to four devices twice: as begun, at last as done


class _DiesMarking(MortalStateDir):
    """A state directory whose writer dies when its n-th mark is in a temporary file, but not yet renamed."""

    def __init__(self, path: str, kernel: SimulatedKernel, mark: int) -> None:
        super().__init__(path, kernel)
        self.left = mark

    def step(self, operation: str, name: str) -> None:
        super().step(operation, name)
        self.left -= operation == "rename"
        if self.left == 0:
            self.kernel.kill()


class HostMachine(RuleBasedStateMachine):
    """Everything that can happen to the devices of one host."""

    def __init__(self) -> None:
        super().__init__()
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = tempfile.mkdtemp(prefix="machine", dir=base)
        self.first: dict[str, tuple[int, str | None, str | None]] = {}
        self.foreign: set[str] = set()  # devices that another program has changed
        self.told: dict[str, set[str]] = {}  # the owners that a verb has reported
        self.begun: dict[str, set[frozenset[str]]] = {}  # devices that an owner requested together

    @initialize(which=st.sampled_from(sorted(HOSTS_AND_DEVICES)))
    def make_host(self, which: str) -> None:
        tree = which if "\n" in which else f"{HOSTS}/{which}.tree"
        self.fake = FakeHost.from_tree(tree, os.path.join(self.directory, "host"))
        self.devices = [PCIDeviceAddress.parse(text) for text in HOSTS_AND_DEVICES[which]]
        self.manager = process(self.fake).manager
        self._look_at_first()

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    # What the rules are made of

    def _look_at_first(self) -> None:
        """Learn the drivers of devices that are new to the model: the kernel bound them at boot or hot-plug."""
        for address in self.devices:
            if os.path.isdir(self.fake.root.pci_device(address)):
                now = read_binding(self.fake.root, address)
                known = self.first.get(str(address))
                if known is None or known[0] != now.incarnation:
                    self.first[str(address)] = (now.incarnation, now.driver, now.override)
                    self.foreign.discard(str(address))

    def _chosen(self, left_out: int) -> frozenset[str]:
        return frozenset(str(a) for n, a in enumerate(self.devices) if not left_out & 1 << n)

    def _free(self) -> frozenset[str]:
        """Return what a prepare can have: devices that are there and on no list."""
        there = {str(a) for a in self.devices if os.path.isdir(self.fake.root.pci_device(a))}
        return frozenset(there - {str(a) for a in self._records()})

    def _prepare(self, manager: HostdevManager, owner: str, chosen: frozenset[str], word: str = "") -> None:
        hostdevs = "".join(_hostdev(f"{a} {word}") for a in sorted(chosen))
        definition = DomainDef.parse(_DOMAIN.format(name=owner, hostdevs=hostdevs))
        manager.prepare(manager.host.plan(definition, "off"), node_owner=NODE_OWNERS[owner])

    def _device(self, number: int) -> PCIDeviceAddress:
        return self.devices[number % len(self.devices)]

    def _records(self) -> dict[PCIDeviceAddress, Record]:
        records, bad = process(self.fake).manager.journal.read()
        assert [] == bad
        return records

    def _dying(self, place: int) -> HostdevManager:
        return process(self.fake, **_PLACES[place]).manager  # type: ignore[arg-type]

    def _dying_at_mark(self, mark: int) -> HostdevManager:
        kernel = SimulatedKernel(self.fake.root)
        state = _DiesMarking(self.fake.root.state_dir, kernel, mark)
        return HostdevManager(Host(self.fake.root, writer=kernel), journal=Journal(state))

    def _held(self) -> dict[str, set[str]]:
        """Return what each owner has on the active list."""
        held: dict[str, set[str]] = {}
        for device in process(self.fake).manager.status().active:
            held.setdefault(device.owner or "", set()).add(str(device.address))
        return held

    def _may_have(self, owner: str, chosen: frozenset[str]) -> None:
        """Note the devices of one request, and forget earlier requests that are no longer complete."""
        held = self._held().get(owner, set())
        self.begun[owner] = {unit for unit in self.begun.get(owner, ()) if unit <= held} | {chosen}

    # What managers do

    @rule(owner=owners, left_out=left_out, word=words)
    def prepare(self, owner: str, left_out: int, word: str) -> None:
        chosen = self._chosen(left_out)
        try:
            self._prepare(self.manager, owner, chosen, word)
        except HostdevError as err:
            assert err.rolled_back is not False or self._records(), err
            return
        self.told[owner] = self.told.get(owner, set()) | chosen
        self._may_have(owner, chosen)

    @rule(owner=owners)
    def release(self, owner: str) -> None:
        self.told.pop(owner, None)  # a release request gives the devices up, whatever its result
        try:
            self.manager.release(owner)
        except HostdevError:
            assert owner in self._held()
        else:
            assert owner not in self._held()

    @rule(number=numbers)
    def detach(self, number: int) -> None:
        try:
            self.manager.nodedev_detach(self._device(number))
        except HostdevError as err:
            assert err.rolled_back is not False or self._device(number) in self._records(), err

    @rule(number=numbers)
    def reattach(self, number: int) -> None:
        try:
            self.manager.nodedev_reattach(self._device(number))
        except HostdevError as err:
            assert err.rolled_back is None or self._device(number) in self._records(), err

    @rule(number=numbers)
    def reset(self, number: int) -> None:
        before = self._records()
        try:
            self.manager.nodedev_reset(self._device(number))
        except HostdevError as err:
            assert err.rolled_back is None
        assert before == self._records()

    @rule()
    def restart(self) -> None:
        before = self.manager.status()
        self.manager = process(self.fake).manager
        assert before == self.manager.status()

    @rule()
    def recover(self) -> None:
        self.fake.kernel.complete()
        found = self.manager.recover(timeout_s=0)
        undone = {item.what for item in found if item.outcome == "failed"}
        assert undone <= self.foreign
        left = {str(a) for a, r in self._records().items() if r.state in ("preparing", "releasing")}
        assert left <= undone
        second = process(self.fake)
        second.manager.recover(timeout_s=0)
        assert undone or 0 == second.kernel.writes
        self._look_for_halves(undone)

    def _look_for_halves(self, undone: set[str]) -> None:
        """After a recover, a domain has all the devices of one prepare, or none that could be given back."""
        for owner, held in self._held().items():
            has = held - undone
            whole = {unit for unit in self.begun.get(owner, ()) if unit <= has}
            assert (owner, has) == (owner, has & frozenset().union(*whole))
            self.begun[owner] = whole

    @rule(place=places, owner=owners, left_out=left_out, word=words)
    def die_in_prepare(self, place: int, owner: str, left_out: int, word: str) -> None:
        self._die_in_prepare(self._dying(place), owner, self._chosen(left_out), word)

    @rule(missing=marks_missing, owner=owners, left_out=left_out)
    @precondition(lambda self: len(self._free()) > 1)
    def die_marking_and_recover(self, missing: int, owner: str, left_out: int) -> None:
        """Die with some devices marked prepared and some not: a moment too short to be met by chance."""
        chosen = self._free() & self._chosen(left_out)
        self._die_in_prepare(self._dying_at_mark(max(2 * len(chosen) + 1 - missing, 1)), owner, chosen)
        self.recover()

    def _die_in_prepare(self, victim: HostdevManager, owner: str, chosen: frozenset[str], word: str = "") -> None:
        try:
            self._prepare(victim, owner, chosen, word)
        except HostdevError:
            return
        except SimulatedKill:
            pass
        self._may_have(owner, chosen)

    @rule(place=places, owner=owners)
    def die_in_release(self, place: int, owner: str) -> None:
        self.told.pop(owner, None)
        self._die(lambda manager: manager.release(owner), place)

    @rule(place=places, number=numbers, back=st.booleans())
    def die_in_nodedev(self, place: int, number: int, back: bool) -> None:
        device = self._device(number)
        self._die(lambda m: m.nodedev_reattach(device) if back else m.nodedev_detach(device), place)

    @rule(place=places)
    def die_in_recover(self, place: int) -> None:
        self._die(lambda manager: manager.recover(timeout_s=0), place)

    def _die(self, action: Callable[[HostdevManager], object], place: int) -> None:
        with suppress(SimulatedKill, HostdevError):
            action(self._dying(place))

    # What others do

    @rule(number=numbers, driver=st.sampled_from(["vfio-pci", "host", "none"]))
    def write_from_a_shell(self, number: int, driver: str) -> None:
        device = self._device(number)
        if not os.path.isdir(self.fake.root.pci_device(device)) or self.fake.kernel.is_in_flight(device):
            return
        self.foreign.add(str(device))
        top, name = self.fake.root.pci_device(device), driver
        if driver == "host":
            name = self.first[str(device)][1] or "vfio-pci"
        self._write(f"{top}/driver/unbind", str(device), device)
        self._write(f"{top}/driver_override", "\n" if driver == "none" else name, device)
        self._write(f"{self.fake.root.pci_driver(name)}/bind" if driver != "none" else "", str(device), device)

    def _write(self, path: str, value: str, device: PCIDeviceAddress) -> None:
        if path:
            try:
                self.fake.kernel.foreign().write(path, value.encode(), device=device)
            except HostdevError:
                return

    @rule(number=numbers)
    def vanish(self, number: int) -> None:
        self.fake.kernel.vanish(self._device(number))

    @rule()
    def rescan(self) -> None:
        path = self.fake.root.join("sys/bus/pci/rescan")
        self.fake.kernel.foreign().write(path, b"1", device=self.devices[0])
        self._look_at_first()

    @rule()
    @precondition(lambda self: self._records())
    def reboot(self) -> None:
        self.fake.reboot()
        self.manager = process(self.fake).manager
        self.first.clear()
        self.foreign.clear()
        self.told.clear()
        self.begun.clear()
        self._look_at_first()

    # What holds all the time

    @invariant()
    def lists_are_apart(self) -> None:
        status = process(self.fake).manager.status()
        assert set() == {device.address for device in status.active} & set(status.inactive)

    @invariant()
    def groups_have_one_owner(self) -> None:
        """The record of a device that was removed is in no group, although another device has its address now."""
        owners_of: dict[str, set[str]] = {}
        for address, record in self._records().items():
            group = read_link_name(self.fake.root, f"{self.fake.root.pci_device(address)}/iommu_group")
            if group is None or not record.is_active or record.owner is None:
                continue
            if read_binding(self.fake.root, address).incarnation == record.original.incarnation:
                owners_of.setdefault(group, set()).add(record.owner)
        assert [] == [group for group, names in owners_of.items() if len(names) > 1]

    @invariant()
    def who_was_told_has_it(self) -> None:
        held = self._held()
        assert self.told == {owner: has & held.get(owner, set()) for owner, has in self.told.items()}

    @invariant()
    def unlisted_devices_are_where_they_were(self) -> None:
        listed = {str(address) for address in self._records()}
        for name, (incarnation, driver, override) in self.first.items():
            address = PCIDeviceAddress.parse(name)
            if name in listed | self.foreign or not os.path.isdir(self.fake.root.pci_device(address)):
                continue
            now = read_binding(self.fake.root, address)
            if now.incarnation == incarnation:
                assert (name, driver, override) == (name, now.driver, now.override)

    @invariant()
    def prepared_devices_are_with_their_stubs(self) -> None:
        for address, record in self._records().items():
            there = os.path.isdir(self.fake.root.pci_device(address))
            if record.state in ("preparing", "releasing") or str(address) in self.foreign or not there:
                continue
            now = read_binding(self.fake.root, address)
            if now.incarnation == record.original.incarnation:
                assert record.target == now.driver

    @invariant()
    def nodes_are_roots_or_their_guests(self) -> None:
        given = {node.name: (node.to_uid, node.to_gid) for r in self._records().values() for node in r.nodes}
        top = self.fake.root.dev_vfio
        for name in os.listdir(top) if os.path.isdir(top) else ():
            node = self.fake.kernel.read_node(os.path.join(top, name))
            assert node is not None
            assert (node.uid, node.gid) in ((0, 0), given.get(name))
