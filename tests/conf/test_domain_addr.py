# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI addresses of a guest: valid slots, the choice of a free slot, and added buses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhostdev import ConfigError, PCIDeviceAddress, XMLError
from pyhostdev.conf.domain_addr import (
    CONNECT_AGGREGATE_SLOT,
    CONNECT_AUTOASSIGN,
    CONNECT_HOTPLUG,
    CONNECT_INTEGRATED,
    CONNECT_PCI_BRIDGE,
    CONNECT_PCI_DEVICE,
    CONNECT_PCIE_DEVICE,
    CONNECT_PCIE_ROOT_PORT,
    CONNECT_PCIE_SWITCH_DOWNSTREAM_PORT,
    CONTROLLER_MODELS,
    DomainPCIAddressBus,
    DomainPCIAddressSet,
)

CONVENTIONAL = CONNECT_PCI_DEVICE | CONNECT_AUTOASSIGN
EXPRESS = CONNECT_PCIE_DEVICE | CONNECT_AUTOASSIGN
ROOT_PORT = CONNECT_PCIE_ROOT_PORT | CONNECT_AGGREGATE_SLOT


def buses(*models: str, dry_run: bool = False, multiple_roots: bool = False) -> DomainPCIAddressSet:
    made = [DomainPCIAddressBus(model) for model in models]
    return DomainPCIAddressSet(made, dry_run=dry_run, multiple_roots=multiple_roots)


def models(addrs: DomainPCIAddressSet) -> list[str]:
    return [bus.model for bus in addrs.buses]


def guest(text: str) -> PCIDeviceAddress:
    return PCIDeviceAddress.parse(text)


@pytest.mark.parametrize(
    ("model", "first", "last"),
    [
        ("pci-root", 1, 31),
        ("pcie-root", 1, 31),
        ("pci-bridge", 1, 31),
        ("pci-expander-bus", 0, 31),
        ("dmi-to-pci-bridge", 0, 31),
        ("pcie-to-pci-bridge", 1, 31),
        ("pcie-root-port", 0, 0),
        ("pcie-switch-upstream-port", 0, 31),
        ("pcie-switch-downstream-port", 0, 0),
        ("pcie-expander-bus", 0, 31),
    ],
)
def test_each_model_has_its_slots(model: str, first: int, last: int) -> None:
    """Bridges keep slot 0 for their hotplug controller, ports have one slot."""
    bus = DomainPCIAddressBus(model)
    assert (first, last) == (bus.min_slot, bus.max_slot)


@pytest.mark.parametrize("slot", ["00", "1f"])
def test_slot_out_of_range_is_the_users_mistake(slot: str) -> None:
    """A user's address that the bus does not have is an XML error."""
    addrs = buses("pcie-root", "pcie-root-port", "pci-bridge")
    with pytest.raises(XMLError) as refusal:
        addrs.reserve(guest(f"0000:{'02' if slot == '00' else '01'}:{slot}.0"), EXPRESS)
    assert 27 == refusal.value.libvirt_code


def test_double_use_is_an_xml_error_for_the_user_and_internal_for_us() -> None:
    """The error number shows whether the user's address or a chosen one was wrong."""
    addrs = buses("pci-root")
    addrs.reserve(guest("0000:00:02.0"), CONVENTIONAL)
    codes = []
    for from_config in (True, False):
        with pytest.raises(ConfigError) as refusal:
            addrs.reserve(guest("0000:00:02.0"), CONVENTIONAL, from_config=from_config)
        codes.append(refusal.value.libvirt_code)
    assert [27, 1] == codes


@pytest.mark.parametrize(
    ("address", "word"),
    [("0001:00:02.0", "domain"), ("0000:07:02.0", "last bus"), ("0000:00:00.0", "slots")],
)
def test_impossible_address_says_what_is_wrong(address: str, word: str) -> None:
    """Domain, bus and slot are each named."""
    with pytest.raises(XMLError, match=word):
        buses("pci-root").reserve(guest(address), CONVENTIONAL)


def test_no_bus_is_an_xml_error() -> None:
    """A guest without PCI has no address at all."""
    with pytest.raises(XMLError, match="no PCI bus"):
        buses().reserve_next(CONVENTIONAL)


def test_user_may_mix_express_and_conventional() -> None:
    """A user may put an Express endpoint into a conventional slot and vice versa; a chosen address never is."""
    addrs = buses("pci-root", "pcie-root-port")
    addrs.reserve(guest("0000:00:02.0"), EXPRESS)
    addrs.reserve(guest("0000:01:00.0"), CONVENTIONAL)
    with pytest.raises(ConfigError) as refusal:
        buses("pcie-root-port").reserve_next(CONVENTIONAL)
    assert 1 == refusal.value.libvirt_code


def test_user_may_plug_a_bridge_where_a_device_goes() -> None:
    """A user may put a pci-bridge into any slot for a conventional device, even on pcie-root."""
    addrs = buses("pcie-root", "pci-bridge")
    addrs.reserve(guest("0000:00:02.0"), CONNECT_PCI_BRIDGE)
    assert addrs.is_slot_in_use(guest("0000:00:02.0"))


def test_what_is_hotplugged_needs_a_port_that_can() -> None:
    """A port without hot-plug is skipped, and refused in a user's address."""
    ports = [DomainPCIAddressBus("pcie-root-port", hotplug=hotplug) for hotplug in (False, True)]
    addrs = DomainPCIAddressSet(ports)
    assert guest("0000:01:00.0") == addrs.reserve_next(EXPRESS | CONNECT_HOTPLUG)
    with pytest.raises(XMLError, match="hotplug"):
        addrs.reserve(guest("0000:00:00.0"), EXPRESS | CONNECT_HOTPLUG)


def test_nothing_is_put_on_pcie_root_by_itself_but_ports() -> None:
    """Endpoints go to ports, where they can be unplugged; the root only takes devices that request it."""
    addrs = buses("pcie-root", "pcie-root-port")
    assert guest("0000:01:00.0") == addrs.reserve_next(EXPRESS)
    assert guest("0000:00:01.0") == addrs.reserve_next(ROOT_PORT)


def test_integrated_devices_are_on_bus_0() -> None:
    """An integrated device is refused on another bus than 0."""
    with pytest.raises(XMLError, match="bus 0"):
        buses("pcie-root", "pcie-root-port").reserve(guest("0000:01:00.0"), CONNECT_PCIE_DEVICE | CONNECT_INTEGRATED)


def test_root_ports_share_a_slot_and_endpoints_do_not() -> None:
    """Eight root ports fill one slot; an endpoint always takes a free one."""
    addrs = buses("pcie-root")
    ports = [addrs.reserve_next(ROOT_PORT) for _ in range(9)]
    assert [(1, f) for f in range(8)] + [(2, 0)] == [(p.slot, p.function) for p in ports]
    addrs = buses("pci-root")
    assert [1, 2] == [addrs.reserve_next(CONVENTIONAL).slot for _ in range(2)]


def test_root_port_does_not_join_a_slot_that_an_endpoint_took_first() -> None:
    """Only a slot whose first function is a port is shared."""
    addrs = buses("pcie-root")
    addrs.reserve(guest("0000:00:01.0"), EXPRESS)
    assert guest("0000:00:02.0") == addrs.reserve_next(ROOT_PORT)


@pytest.mark.parametrize(
    ("have", "flags", "grown", "address"),
    [
        (["pcie-root"], EXPRESS, ["pcie-root", "pcie-root-port"], "0000:01:00.0"),
        (["pcie-root"], CONVENTIONAL, ["pcie-root", "pcie-root-port", "pcie-to-pci-bridge"], "0000:02:01.0"),
        (["pcie-root", "pcie-root-port"], CONNECT_PCI_BRIDGE, None, "0000:02:00.0"),
    ],
)
def test_growth_depends_on_what_is_needed(have: list[str], flags: int, grown: list[str] | None, address: str) -> None:
    """An Express device brings a port, a conventional one a bridge and the port it needs."""
    addrs = buses(*have, dry_run=True)
    assert guest(address) == addrs.reserve_next(flags)
    assert (grown or [*have, "dmi-to-pci-bridge"]) == models(addrs)


def test_full_conventional_bus_grows_by_a_bridge() -> None:
    """When 31 slots are taken the next device goes behind a bridge."""
    addrs = buses("pci-root", dry_run=True)
    taken = [addrs.reserve_next(CONVENTIONAL) for _ in range(32)]
    assert guest("0000:01:01.0") == taken[-1]
    assert ["pci-root", "pci-bridge"] == models(addrs)


def test_pseries_grows_by_host_bridges() -> None:
    """On pseries, an added conventional bus is a host bridge."""
    addrs = buses("pci-root", dry_run=True, multiple_roots=True)
    addrs.reserve(guest("0000:02:01.0"), CONVENTIONAL)
    assert ["pci-root"] * 3 == models(addrs)


def test_downstream_port_is_never_added_for() -> None:
    """A switch is never added automatically: as in libvirt, this is an internal error."""
    with pytest.raises(ConfigError, match="pcie-switch-downstream-port") as refusal:
        buses("pcie-root", dry_run=True).reserve_next(CONNECT_PCIE_SWITCH_DOWNSTREAM_PORT)
    assert 1 == refusal.value.libvirt_code


def test_real_run_does_not_grow() -> None:
    """Only the dry run adds buses."""
    addrs = buses("pcie-root", "pcie-root-port")
    addrs.reserve_next(EXPRESS)
    with pytest.raises(ConfigError):
        addrs.reserve_next(EXPRESS)
    assert 2 == len(addrs.buses)


def test_first_device_decides_a_buss_isolation_group() -> None:
    """A device of another group goes to another, empty bus."""
    addrs = buses("pci-root", "pci-root", "pci-root", multiple_roots=True)
    addrs.buses[0].locked = True
    found = [addrs.reserve_next(CONVENTIONAL, group).bus for group in (5, 6, 5, 0)]
    assert [1, 2, 1, 0] == found


def test_user_who_mixes_groups_ends_isolation() -> None:
    """Placing a device of another group by hand opens the bus for all groups."""
    addrs = buses("pci-root", "pci-root", multiple_roots=True)
    addrs.reserve(guest("0000:01:01.0"), CONVENTIONAL, 5)
    addrs.reserve(guest("0000:01:02.0"), CONVENTIONAL, 6)
    assert 0 == addrs.buses[1].isolation_group


def test_release_frees_one_function() -> None:
    """Freeing a function keeps the others of its slot; freeing a free one is not an error."""
    addrs = buses("pci-root")
    for function in (0, 3):
        addrs.reserve(guest(f"0000:00:04.{function}"), CONVENTIONAL)
    for function in (3, 3):
        addrs.release(guest(f"0000:00:04.{function}"))
    assert {4: 1} == addrs.buses[0].slots
    addrs.release(guest("0000:00:04.0"))
    assert addrs.buses[0].is_empty


@given(
    wanted=st.lists(st.sampled_from([EXPRESS, CONVENTIONAL, ROOT_PORT]), max_size=60),
    root=st.sampled_from(["pci-root", "pcie-root"]),
)
def test_every_address_found_is_new_and_valid(wanted: list[int], root: str) -> None:
    """For any requests, no address is assigned twice, and its bus accepts each of them."""
    addrs = buses(root, dry_run=True)
    if root == "pci-root":
        wanted = [flags for flags in wanted if flags == CONVENTIONAL]
    found = [addrs.reserve_next(flags) for flags in wanted]
    assert len(found) == len(set(found))
    for flags, address in zip(wanted, found, strict=True):
        bus = addrs.buses[address.bus]
        assert bus.accepts(flags, from_config=False) is None
        assert bus.min_slot <= address.slot <= bus.max_slot


def next_or_error(addrs: DomainPCIAddressSet, flags: int, group: int, function: int | None) -> PCIDeviceAddress | str:
    try:
        return addrs.reserve_next(flags, group, function)
    except ConfigError as err:
        return str(err)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([EXPRESS, CONVENTIONAL, ROOT_PORT]), st.integers(0, 1), st.sampled_from([None, None, 0, 3])
        ),
        max_size=30,
    )
)
def test_search_goes_on_where_the_last_one_ended(wanted: list[tuple[int, int, int | None]]) -> None:
    """A search that starts after the full slots finds what one from the first slot finds, in any isolation groups."""
    resumed, restarted = (buses("pcie-root", dry_run=True) for _ in range(2))
    for flags, group, function in wanted:
        restarted.release(guest("0000:00:00.7"))  # which nothing uses
        assert next_or_error(restarted, flags, group, function) == next_or_error(resumed, flags, group, function)


def test_every_model_says_what_it_plugs_into() -> None:
    """Each model except the roots is accepted by another one."""
    for name, model in CONTROLLER_MODELS.items():
        homes = [other for other, bus in CONTROLLER_MODELS.items() if bus.offers & model.plug]
        assert (name in ("pci-root", "pcie-root")) == (homes == [])


def test_an_integrated_device_is_only_on_bus_0() -> None:
    """A part of the chipset does not get a free slot of another bus."""
    addrs = buses("pci-root", "pci-bridge")
    integrated = CONNECT_PCI_DEVICE | CONNECT_INTEGRATED
    assert [(0, slot) for slot in range(1, 32)] == [addrs.reserve_next(integrated)[1:3] for _ in range(31)]
    with pytest.raises(ConfigError, match="must be on bus 0"):
        addrs.reserve_next(integrated)
    assert guest("0000:01:01.0") == addrs.reserve_next(CONVENTIONAL)
