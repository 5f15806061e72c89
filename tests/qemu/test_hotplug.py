# SPDX-License-Identifier: LGPL-2.1-or-later
"""Row S9: a card is plugged and unplugged as one unit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hotplugging import CARD, UNIT, Stage, card, live_domain, run

from pyhostdev import ConfigError, DomainDef, DomainHostdevDef, Host, OperationError, PendingError, RefusedError
from pyhostdev.conf.address_conf import PCIGuestAddress
from pyhostdev.conf.domain_conf import proposed_hostdevs
from pyhostdev.testing import FakeHost
from pyhostdev.util.memlock import read_memlock
from pyhostdev.util.pciaddress import PCIDeviceAddress

MACHINES = ("pc", "q35", "q35-native")
VFIO = ["vfio-pci"] * 4
TG3 = ["tg3"] * 4


@pytest.mark.parametrize("machine", MACHINES)
def test_s9_a_card_is_plugged_and_unplugged_as_one(bcm5719: FakeHost, machine: str) -> None:
    """The guest sees functions 0 and 3 of one slot; afterwards all four drivers are as before."""
    before = bcm5719.snapshot()
    stage = Stage(bcm5719, machine)
    assert UNIT == stage.attach()
    assert VFIO == stage.drivers()
    assert {"plugged"} == stage.phases()
    assert [0, 3] == [place.function for place in stage.qemu.machine.guest_sees()]
    assert ["hostdev0", "hostdev1"] == stage.qemu.ids
    assert sorted(CARD) == sorted(stage.detach())
    assert TG3 == stage.drivers()
    assert [] == stage.guest.definition.hostdevs
    stage.qemu.end()
    assert before == {path: value for path, value in bcm5719.snapshot().items() if "/lock" not in path}


def test_function_0_comes_last_and_one_is_asked(bcm5719: FakeHost) -> None:
    """Function 0 is plugged last, as multifunction; a request to unplug it unplugs the slot."""
    stage = Stage(bcm5719)
    stage.attach()
    stage.detach()
    first, second, third = stage.commands
    assert ("+hostdev1@0x2.0x3", "+hostdev0@0x2", "-hostdev0") == (first, second, third)
    told = [arguments for command, arguments in stage.connection.commands if command == "device_add"]
    assert [None, True] == [arguments.get("multifunction") for arguments in told]


@pytest.mark.parametrize("version", [(7, 2), (10, 0), (11, 1)])
def test_argument_types_of_every_release(bcm5719: FakeHost, version: tuple[int, int]) -> None:
    """JSON's own types are accepted by every release."""
    stage = Stage(bcm5719, version=version)
    hostdevs = card()
    hostdevs[0].info.rom_bar, hostdevs[0].info.boot_order = True, 1
    stage.attach(hostdevs)
    assert 2 == len(stage.qemu.ids)


def test_the_lowest_function_becomes_function_0(bcm5719: FakeHost) -> None:
    """Without function 0, the lowest assigned function becomes function 0 of the guest's slot."""
    stage = Stage(bcm5719)
    stage.attach(card(("no", "yes", "no", "yes")))
    assert [0, 3] == [place.function for place in stage.qemu.machine.guest_sees()]


def at(hostdevs: list[DomainHostdevDef], *places: str, multifunction: bool | None = None) -> list[DomainHostdevDef]:
    """Give the assigned functions addresses of the form BUS:SLOT.FUNCTION."""
    assigned = [hostdev for hostdev in hostdevs if hostdev.is_assigned]
    for hostdev, place in zip(assigned, places, strict=False):
        hostdev.info.address = PCIGuestAddress.at(PCIDeviceAddress.parse(f"0000:{place}"), multifunction=multifunction)
    return hostdevs


def test_addresses_of_the_user(bcm5719: FakeHost) -> None:
    """The user's functions are used; multifunction is set if further functions follow."""
    stage = Stage(bcm5719)
    stage.attach(at(card(), "00:07.1", "00:07.0"))
    assert ["+hostdev0@0x7.0x1", "+hostdev1@0x7"] == stage.commands


@pytest.mark.parametrize(
    ("places", "options", "text"),
    [
        (("00:07.0",), {}, "Either all assigned functions"),
        (("00:07.0", "00:08.0"), {}, "one guest slot"),
        (("00:07.1", "00:07.1"), {}, "the same guest address"),
        (("00:07.1", "00:07.3"), {}, "must be function 0"),
        (("00:07.0", "00:07.3"), {"multifunction": False}, "multifunction='off'"),
        (("00:01.0", "00:01.4"), {}, "in use"),
        (("03:07.0", "03:07.4"), {}, "the last bus is 0x00"),
    ],
)
def test_addresses_that_cannot_be(
    bcm5719: FakeHost, places: tuple[str, ...], options: dict[str, bool], text: str
) -> None:
    """Each is refused with one sentence, and nothing is touched."""
    stage = Stage(bcm5719)
    before = bcm5719.snapshot()
    with pytest.raises(ConfigError, match=text) as refused:
        stage.attach(at(card(), *places, **options))
    assert (27, before, []) == (refused.value.libvirt_code, bcm5719.snapshot(), stage.commands)


def test_buses_of_a_q35(bcm5719: FakeHost) -> None:
    """pcie.0 does not support hot-plug; a port only has slot 0."""
    for place, text in (("00:05.0", "does not support hotplug"), ("01:03.0", "slots 0x00 to 0x00")):
        stage = Stage(bcm5719, "q35")
        with pytest.raises(ConfigError, match=text):
            stage.attach(at(card(("yes", "no", "no", "no")), place))
        stage.qemu.end()


def refused(stage: Stage, hostdevs: list[DomainHostdevDef]) -> list[tuple[str, str]]:
    """Attach devices that the plan refuses; return the obstacles."""
    before = stage.fake.snapshot()
    with pytest.raises(RefusedError) as error:
        stage.attach(hostdevs)
    assert (before, []) == (stage.fake.snapshot(), stage.commands)
    return [(finding.reason, str(finding.address)) for finding in error.value.findings]


def test_all_functions_are_declared(bcm5719: FakeHost) -> None:
    """Row S4 holds, and the plan proposes what is missing, also for a running guest."""
    stage = Stage(bcm5719)
    assert [("incomplete-device", CARD[1]), ("incomplete-device", CARD[2])] == refused(
        stage, card(("yes", "-", "-", "yes"))
    )
    hostdevs = card(("yes", "-", "-", "yes"))
    hostdevs += proposed_hostdevs(stage.plan(hostdevs))
    assert UNIT == stage.attach(hostdevs)


def test_one_device_at_a_time(bcm5719: FakeHost) -> None:
    """A unit is one device: the error names a second one."""
    stage = Stage(bcm5719)
    nvme = DomainHostdevDef.for_pci("0001:07:00.0", managed=True)
    assert ("several-devices", "0001:07:00.0") in refused(stage, [*card(), nvme])


def test_a_guest_that_has_not_run(bcm5719: FakeHost) -> None:
    """A guest that has not run is never asked to plug or unplug a device."""
    stage = Stage(bcm5719, has_run=False)
    assert [("guest-not-run", "None")] == refused(stage, card())


def test_what_the_guest_has_already(bcm5719: FakeHost) -> None:
    """The same card again is refused with libvirt's number."""
    stage = Stage(bcm5719)
    stage.attach()
    with pytest.raises(ConfigError) as error:
        stage.attach()
    assert 55 == error.value.libvirt_code


def test_the_kept_functions_alone(bcm5719: FakeHost) -> None:
    """A unit without assigned functions is detached and reattached without QEMU."""
    stage = Stage(bcm5719, has_run=False)
    hostdevs = [DomainHostdevDef.for_pci(address, managed=True, assigned=False) for address in CARD]
    stage.attach(hostdevs)
    assert (VFIO, [], {"plugged"}) == (stage.drivers(), stage.commands, stage.phases())
    assert CARD == sorted(stage.detach())
    assert (TG3, []) == (stage.drivers(), stage.commands)


# What goes wrong on the way


class Refusing:
    """Lets a simulated QEMU refuse its n-th device_add."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.left = number
        self.stage = stage
        self.original = stage.qemu.machine.execute
        stage.qemu.machine.execute = self.execute  # type: ignore[method-assign]

    def execute(self, command: str, arguments: object = None) -> object:
        from pyhostdev.testing import QMPRefusal

        self.left -= command == "device_add"
        if command == "device_add" and self.left == 0:
            raise QMPRefusal("out of luck")
        return self.original(command, arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("number", [1, 2])
def test_a_refused_function_rolls_back(bcm5719: FakeHost, machine: str, number: int) -> None:
    """A refused function, function 0 included, removes the staged ones, and all are reattached."""
    stage = Stage(bcm5719, machine)
    Refusing(stage, number)
    with pytest.raises(OperationError, match="out of luck") as error:
        stage.attach()
    assert (True, 1) == (error.value.rolled_back, error.value.libvirt_code)
    assert (TG3, [], []) == (stage.drivers(), stage.qemu.ids, stage.guest.definition.hostdevs)
    assert ({}, []) == stage.manager.journal.read()


def test_staged_functions_that_stay(bcm5719: FakeHost) -> None:
    """A guest without an answer keeps them until its reset, a detach or a finish."""
    stage = Stage(bcm5719, guest="deaf")
    Refusing(stage, 2)
    with pytest.raises(OperationError, match="until the guest resets") as error:
        stage.attach(timeout_s=0.1)
    assert (False, VFIO, {"stuck-staged"}) == (error.value.rolled_back, stage.drivers(), stage.phases())
    assert [(UNIT, "pending")] == stage.finish(0.1)
    with pytest.raises(PendingError):
        stage.detach(timeout_s=0.1)
    stage.qemu.reset()
    assert [(UNIT, "given-back")] == stage.finish()
    assert (TG3, {}) == (stage.drivers(), stage.manager.journal.read()[0])


def test_the_limit_of_memory(bcm5719: FakeHost) -> None:
    """The limit is raised before the first function and restored after the last one."""
    stage = Stage(bcm5719, memory=128 << 20)
    assert stage.qemu.host_side is not None
    assert stage.qemu.pid is not None
    stage.qemu.host_side.process.put_limit(65536, 65536)
    stage.attach()
    assert ((128 << 20) + (1 << 30),) * 2 == read_memlock(bcm5719.root, stage.qemu.pid)
    stage.detach()
    assert (65536, 65536) == read_memlock(bcm5719.root, stage.qemu.pid)


def test_qemu_dies_while_plugging(bcm5719: FakeHost) -> None:
    """The attach reattaches nothing: the end of QEMU determines the state."""
    stage = Stage(bcm5719)

    def end(command: str) -> None:
        if command == "device_add":
            stage.qemu.end()
            raise ConnectionResetError

    stage.connection._on_command = end
    with pytest.raises(OperationError, match="connection to QEMU ended") as error:
        stage.attach()
    assert (False, {"plugging"}) == (error.value.rolled_back, stage.phases())
    assert CARD == sorted(map(str, stage.manager.release("vm1")))


# Guests that do not release a device


def test_silence_is_neither_success_nor_failure(bcm5719: FakeHost) -> None:
    """Without an answer from the guest, nothing is reattached; the call can be repeated; a reset completes it."""
    stage = Stage(bcm5719, guest="deaf")
    stage.attach()
    for _ in range(2):
        with pytest.raises(PendingError, match="has not done so within"):
            stage.detach(timeout_s=0.05)
        assert (VFIO, {"unplugging"}, 2) == (stage.drivers(), stage.phases(), len(stage.guest.definition.hostdevs[:2]))
    stage.qemu.reset()
    assert sorted(CARD) == sorted(stage.detach())
    assert TG3 == stage.drivers()


@pytest.mark.parametrize("machine", MACHINES)
def test_a_paused_guest_is_pending(bcm5719: FakeHost, machine: str) -> None:
    """A paused guest releases the device once it runs again; a pending request counts as asked."""
    stage = Stage(bcm5719, machine)
    stage.attach()
    stage.qemu.stop()
    for _ in range(2):
        with pytest.raises(PendingError):
            stage.detach(timeout_s=0.05)
    stage.qemu.cont()
    stage.qemu.machine.advance(10)
    assert [(UNIT, "given-back")] == stage.finish()
    assert TG3 == stage.drivers()


def test_a_slow_guest(bcm5719: FakeHost) -> None:
    """The wait is longer than the five seconds of a blinking port."""
    stage = Stage(bcm5719, "q35-native", delay_s=12)
    stage.attach()
    assert sorted(CARD) == sorted(stage.detach(timeout_s=20))


def test_a_booting_guest_is_busy_first(bcm5719: FakeHost) -> None:
    """QEMU's "busy" counts as asked."""
    stage = Stage(bcm5719, "q35-native", guest="booting")
    stage.attach()
    assert sorted(CARD) == sorted(stage.detach())


def test_a_guest_that_refuses(bcm5719: FakeHost) -> None:
    """On pseries, the guest can refuse: the unit remains plugged."""
    from pyhostdev.testing import SimulatedBus

    stage = Stage(bcm5719, guest="refuses")
    stage.qemu.machine.buses = {"pci.0": SimulatedBus("pci.0", "pseries")}
    stage.attach()
    with pytest.raises(OperationError, match="refused to release device 'hostdev0'") as error:
        stage.detach(timeout_s=1)
    assert (None, {"plugged"}, VFIO) == (error.value.rolled_back, stage.phases(), stage.drivers())


def test_qemu_refuses_to_ask(bcm5719: FakeHost) -> None:
    """During a migration, QEMU refuses the request, and the unit remains plugged."""
    stage = Stage(bcm5719)
    stage.attach()
    stage.qemu.machine.is_migrating = True
    with pytest.raises(OperationError, match="migrating") as error:
        stage.detach()
    assert (None, {"plugged"}) == (error.value.rolled_back, stage.phases())


def test_all_functions_are_named(bcm5719: FakeHost) -> None:
    """A part of a unit is refused, and so is a unit that the guest does not have."""
    stage = Stage(bcm5719)
    stage.attach()
    for named, reason in (([CARD[0], CARD[3]], "partial-unit"), ([CARD[0]], "partial-unit")):
        with pytest.raises(RefusedError) as refusal:
            run(stage.guest.detach([PCIDeviceAddress.parse(address) for address in named]))
        assert (reason, 9) == (refusal.value.reason, refusal.value.libvirt_code)
    with pytest.raises(OperationError) as missing:
        run(stage.guest.detach([PCIDeviceAddress.parse("0001:07:00.0")]))
    assert 99 == missing.value.libvirt_code
    assert ["+", "+"] == [command[0] for command in stage.commands]


def test_unasked(bcm5719: FakeHost) -> None:
    """If the host pulls one function, the whole slot is unplugged and reattached."""
    stage = Stage(bcm5719)
    stage.attach()
    assert [] == stage.finish()
    stage.qemu.pull(CARD[3])
    stage.qemu.machine.advance(1)
    assert [(UNIT, "given-back")] == stage.finish()
    assert TG3 == stage.drivers()


def test_a_card_of_the_start_is_unplugged(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A unit that the guest got at its start is unplugged as one, too."""
    from pyhostdev.qemu import define
    from pyhostdev.qemu.qemu_command import stored_capabilities

    host = Host(bcm5719.root)
    dom = define(seed_domain, stored_capabilities(seed_domain), host)
    stage = Stage(bcm5719, definition=dom)
    stage.manager.prepare(stage.manager.host.plan(dom))
    for function, alias in ((0, "hostdev0"), (3, "hostdev1")):
        stage.qemu.machine.add_cold(alias, "pci.0", f"0x4.{function:#x}", "vfio-pci", host=CARD[function])
    assert [] == stage.finish()
    assert sorted(CARD) == sorted(stage.detach())
    assert (TG3, []) == (stage.drivers(), stage.guest.definition.hostdevs)


def test_kept_functions_are_given_back_last(bcm5719: FakeHost) -> None:
    """Kept functions are reattached last: no host driver can bind to them while QEMU holds their group."""
    stage = Stage(bcm5719)
    stage.attach()
    assert [CARD[0], CARD[3], CARD[1], CARD[2]] == stage.detach()


def test_two_units(fakehost: Callable[[str], FakeHost], tmp_path: Path) -> None:
    """Two units are unplugged independently."""
    fake = fakehost("bcm5719")
    stage = Stage(fake)
    stage.attach()
    nvme = stage.attach([DomainHostdevDef.for_pci("0001:07:00.0", managed=True)])
    assert ["hostdev0", "hostdev1", "hostdev2"] == stage.qemu.ids
    assert ["0001:07:00.0"] == stage.detach(nvme)
    assert ["hostdev0", "hostdev1"] == stage.qemu.ids
    assert VFIO == stage.drivers()
    stage.attach([DomainHostdevDef.for_pci("0001:07:00.0", managed=True)])
    assert ["hostdev0", "hostdev1", "hostdev2"] == stage.qemu.ids


def test_kept_functions_of_a_group_stay_while_the_guest_has_others(bcm5719: FakeHost) -> None:
    """Kept functions are reattached once QEMU no longer holds their group."""
    stage = Stage(bcm5719)
    kept = [DomainHostdevDef.for_pci(address, managed=True, unassigned=True) for address in CARD[1:3]]
    given = [DomainHostdevDef.for_pci(address, managed=True) for address in (CARD[0], CARD[3])]
    run(stage.guest.attach(stage.plan(kept, policy="off")))
    run(stage.guest.attach(stage.plan(given, policy="off")))
    first = [PCIDeviceAddress.parse(address) for address in CARD[1:3]]
    with pytest.raises(OperationError, match="same IOMMU group"):
        run(stage.guest.detach(first))
    assert VFIO == stage.drivers()
    run(stage.guest.detach([PCIDeviceAddress.parse(address) for address in (CARD[0], CARD[3])]))
    assert ["tg3", "vfio-pci", "vfio-pci", "tg3"] == stage.drivers()
    run(stage.guest.detach(first))
    assert TG3 == stage.drivers()


def test_a_qemu_that_lies(bcm5719: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """If QEMU reports the devices as deleted but holds their group, nothing is reattached."""
    from pyhostdev.hypervisor import hostdev_release

    monkeypatch.setattr(hostdev_release, "RELEASE_WAIT_S", 0.1)
    stage = Stage(bcm5719)
    stage.attach()
    honest = stage.qemu.machine.execute
    lies: dict[str, object] = {"qom-list": [], "device_del": {}}
    monkeypatch.setattr(stage.qemu.machine, "execute", lambda c, a=None: lies[c] if c in lies else honest(c, a))
    with pytest.raises(OperationError, match="held open") as error:
        stage.detach()
    assert (False, VFIO) == (error.value.rolled_back, stage.drivers())


def test_live_definition_keeps_its_names(bcm5719: FakeHost, tmp_path: Path) -> None:
    """The live definition keeps QEMU's aliases, unlike a stored definition."""
    from pyhostdev.qemu.qemu_hotplug.livestate import DirectoryState
    from pyhostdev.util.statedir import StateDir

    state = DirectoryState(StateDir(str(tmp_path / "run")))
    dom = live_domain(bcm5719)
    hostdevs = card()
    hostdevs[0].info.alias, hostdevs[3].info.alias = "hostdev9", "hostdev7"
    state.save(dom.with_hostdevs_added(hostdevs))
    state.put_unit(UNIT, hostdevs)
    assert ["hostdev9", None, None, "hostdev7"] == [hostdev.info.alias for hostdev in state.load().hostdevs]
    found = state.read_unit(UNIT)
    assert found is not None
    assert (["hostdev9", None, None, "hostdev7"], [UNIT]) == ([h.info.alias for h in found], state.unit_names())
    state.drop_unit(UNIT)
    assert (None, []) == (state.read_unit(UNIT), state.unit_names())
