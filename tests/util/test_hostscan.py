# SPDX-License-Identifier: LGPL-2.1-or-later
"""Indexes and queries of a scan: their results, and the files that they do not read."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import DomainDef, Host
from pyhostdev.errors import ConfigError
from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.generator import PLAIN_CARDS, SRIOV_CARDS, make_tree
from pyhostdev.util import pciscan, pciscan_ref, virfile, virpci
from pyhostdev.util.hostquery import HostFunctions
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.livescan import LiveScan
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virpci import PCIDevice

Fake = Callable[[str], FakeHost]
Ask = Callable[[FakeHost], HostFunctions]
KINDS: list[type[Scan] | type[LiveScan]] = [Scan, LiveScan]


@pytest.fixture(scope="module", params=[SRIOV_CARDS, PLAIN_CARDS], ids=["sriov", "plain"])
def crowd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostRoot:
    """A host of 700 functions that no test changes."""
    top = tmp_path_factory.mktemp("crowd")
    make_tree(top, 700, cards=request.param)
    return HostRoot(top)


@pytest.fixture(params=KINDS, ids=["scan", "live"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """A function that reads a fake host in one of the two ways."""
    return lambda fake: request.param(fake.root, pciscan.scan(fake.root))


def at(text: str) -> PCIDeviceAddress:
    return PCIDeviceAddress.parse(text)


def device(functions: HostFunctions, text: str) -> PCIDevice:
    dev = functions.find(at(text))
    assert dev is not None
    return dev


def addresses(devices: Any) -> list[str]:
    return [str(dev.address) for dev in devices]


def index_by(root: HostRoot, key: Callable[[Any], Any]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for record in pciscan_ref.scan(root):
        found.setdefault(key(record), []).append(record.address)
    found.pop(None, None)
    return found


KEYS: dict[str, Callable[[Any], Any]] = {
    "groups": lambda record: record.iommu_group,
    "slots": lambda record: None if record.physfn else at(record.address)[:3],
    "buses": lambda record: None if record.physfn else at(record.address)[:2],
    "drivers": lambda record: record.driver,
    "virtual_functions": lambda record: record.physfn and at(record.physfn),
    "identities": lambda record: (record.vendor, record.device, record.class_),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", KEYS)
def test_index_holds_every_function_once(crowd: HostRoot, kind: Any, name: str) -> None:
    """An index equals the plain-Python reference, in address order."""
    index = getattr(kind(crowd, pciscan.scan(crowd)), name)
    expected = index_by(crowd, KEYS[name])
    assert expected == {key: addresses(devs) for key, devs in index.items()}
    assert len(expected) == len(index)
    assert all(key in index for key in expected)
    assert (None, False) == (index.get(None), None in index)


def test_index_of_what_is_unknown(tmp_path: Path) -> None:
    """A function without attributes is in the index of identities only, as unknown."""
    root = HostRoot(tmp_path)
    Path(root.pci_devices, "0000:01:00.0").mkdir(parents=True)
    for kind in KINDS:
        scan = kind(root, pciscan.scan(root))
        assert {(None, None, None): ["0000:01:00.0"]} == {k: addresses(d) for k, d in scan.identities.items()}
        assert ({}, {}, {}) == (dict(scan.groups), dict(scan.drivers), dict(scan.virtual_functions))


def test_scan_is_a_sequence(crowd: HostRoot) -> None:
    """A scan supports indexes, slices and negative indexes; each address has one object for all lookups."""
    scan = Scan(crowd, pciscan.scan(crowd))
    assert scan[3] is scan.find(scan[3].address)
    assert scan[699] is scan[-1]
    assert [scan[1], scan[2]] == scan[1:3]
    devices = list(scan)
    assert all(dev is scan[i] for i, dev in enumerate(devices))
    assert devices == list(scan)
    assert scan[3] in scan.groups[scan[3].iommu_group or 0]
    assert sorted(dev.address for dev in devices) == [dev.address for dev in devices]
    with pytest.raises(IndexError):
        scan[700]
    assert scan.find(at("ffff:ff:1f.7")) is None


def test_device_says_what_the_record_says(crowd: HostRoot) -> None:
    """The facts that an object of a scan creates on first use equal the reference's."""
    for record, dev in zip(pciscan_ref.scan(crowd), Scan(crowd, pciscan.scan(crowd)), strict=True):
        ids = (dev.vendor, dev.device, dev.subsystem_vendor, dev.subsystem_device, dev.class_)
        rest = (dev.driver, dev.iommu_group, dev.physfn and str(dev.physfn))
        assert record == (str(dev.address), *ids, *rest)
    with pytest.raises(AttributeError, match="no attribute 'wings'"):
        dev.wings  # type: ignore[attr-defined]  # noqa: B018


def test_record_is_the_same_however_it_is_asked_for(crowd: HostRoot) -> None:
    """Records made one by one, by slices and all at once are the same."""
    snapshot = pciscan.scan(crowd)
    singles = [snapshot[index] for index in range(700)]
    assert list(snapshot) == singles
    assert singles[5:9] == pciscan.scan(crowd)[5:9]
    assert singles[-1] == pciscan.scan(crowd)[-1]
    assert singles == pciscan.scan(crowd)[:]
    with pytest.raises(IndexError):
        snapshot[700]


def test_index_makes_the_objects_asked_for(crowd: HostRoot) -> None:
    """A lookup of a group creates the objects of its members and no others."""
    scan = Scan(crowd, pciscan.scan(crowd))
    members = scan.groups[3]
    assert members == [dev for dev in scan._devices if dev is not None]


def test_scan_is_small_until_objects_are_asked_for(crowd: HostRoot) -> None:
    """The packed functions with the index of their groups need at most 120 bytes each."""
    pciscan.scan(crowd)
    gc.collect()
    tracemalloc.start()
    scan = Scan(crowd, pciscan.scan(crowd))
    assert 3 in scan.groups
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 120 * 700 >= size


def test_scan_crosses_into_c_three_times(crowd: HostRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan with all objects and indexes makes three calls into C."""
    calls: list[str] = []

    class Library:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(library, name)

    library, ffi = pciscan._c.lib, pciscan._c.ffi
    monkeypatch.setattr(pciscan, "_c", type("Module", (), {"lib": Library(), "ffi": ffi}))
    scan = Scan(crowd, pciscan.scan(crowd))
    for dev in scan:
        assert dev.address is not None
    assert 700 == sum(len(devices) for devices in scan.identities.values())
    assert ["phd_list", "phd_fill", "phd_format"] == calls


# One device


@pytest.mark.parametrize("name", named_hosts())
def test_siblings_are_what_the_device_says(fakehost: Fake, ask: Ask, name: str) -> None:
    """A scan knows siblings without listing a directory; they equal the siblings that PCIDevice lists."""
    functions = ask(fakehost(name))
    for dev in functions:
        assert addresses(dev.read_siblings()) == addresses(functions.siblings(dev))


@pytest.mark.parametrize("name", named_hosts())
def test_multifunction_is_what_the_device_says(fakehost: Fake, ask: Ask, name: str) -> None:
    """S6: for a device with several functions, a scan reports multifunction as PCIDevice does."""
    functions = ask(fakehost(name))
    for dev in functions:
        alone = len(dev.read_siblings()) == 1
        assert functions.is_multifunction(dev) is (False if alone else dev.is_multifunction())


@pytest.mark.parametrize("name", named_hosts())
def test_multifunction_reads_little(fakehost: Fake, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ari_enabled is read at most once per bus, and the header type once per device with several functions."""
    read: list[tuple[Any, ...]] = []
    number, config = virfile.read_number, pciscan.read_config

    def read_number(root: HostRoot, path: str) -> int | None:
        read.append(("ari", Path(path).parent.name[:-5]))
        return number(root, path)

    def read_config(root: HostRoot, address: PCIDeviceAddress, offset: int, size: int) -> bytes | None:
        read.append(("config", *address, size))
        return config(root, address, offset, size)

    fake = fakehost(name)
    scan = Scan(fake.root, pciscan.scan(fake.root))
    shared = {dev.function_zero for dev in scan if len(dev.read_siblings()) > 1}
    scan = Scan(fake.root, pciscan.scan(fake.root))
    monkeypatch.setattr(virpci, "read_number", read_number)
    monkeypatch.setattr(pciscan, "read_config", read_config)
    for _ in range(2):
        for dev in scan:
            scan.is_multifunction(dev)
    assert len(set(read)) == len(read)
    assert {("config", *address, 1) for address in shared} == {entry for entry in read if entry[0] == "config"}


def test_multifunction_without_function_0(fakehost: Fake, ask: Ask) -> None:
    """Where function 0 is absent, a function's own bit decides."""
    fake = fakehost("bcm5719")
    fake.remove_function(at("0001:09:00.0"))
    functions = ask(fake)
    assert functions.is_multifunction(device(functions, "0001:09:00.2")) is True


def test_path_to_the_root_port(fakehost: Fake, ask: Ask) -> None:
    """The bridges above a function, root port first; a VF takes the place of its PF; a root bus has none."""
    functions = ask(fakehost("bridge-group"))
    path = functions.path_to_root_port(device(functions, "0000:02:01.2"))
    assert ["0000:00:03.0", "0000:01:00.0", "0000:02:01.2"] == addresses(path)
    assert functions.root_port(path[-1]) is path[0]
    assert functions.root_port(device(functions, "0000:00:00.0")) is None
    functions = ask(fakehost("sriov"))
    vf = device(functions, "0000:03:10.2")
    assert ["0000:00:03.0", "0000:03:10.2"] == addresses(functions.path_to_root_port(vf))


def test_path_in_a_tree_without_links(tmp_path: Path) -> None:
    """In a copy of sysfs without links, the bridges are unknown."""
    root = HostRoot(tmp_path)
    Path(root.pci_devices, "0000:01:00.0").mkdir(parents=True)
    scan = Scan(root, pciscan.scan(root))
    assert [scan[0]] == scan.path_to_root_port(scan[0])


def test_free_virtual_functions(fakehost: Fake, ask: Ask) -> None:
    """A VF is free without a driver or on vfio-pci, unless it is already claimed."""
    fake = fakehost("sriov")
    vfs = [at(f"0000:03:10.{function}") for function in (0, 2, 4, 6)]
    for vf in vfs[1:]:
        fake.kernel.write(f"{fake.root.pci_driver('ixgbevf')}/unbind", str(vf).encode(), device=vf)
    fake.kernel.write(f"{fake.root.pci_device(vfs[2])}/driver_override", b"vfio-pci", device=vfs[2])
    fake.kernel.write(f"{fake.root.pci_driver('vfio-pci')}/bind", str(vfs[2]).encode(), device=vfs[2])
    functions = ask(fake)
    pf = device(functions, "0000:03:00.0")
    assert vfs[1:] == [vf.address for vf in functions.free_virtual_functions(pf)]
    assert [vfs[1]] == [vf.address for vf in functions.free_virtual_functions(pf, taken={vfs[2], vfs[3]})]
    assert [vfs[1]] == [vf.address for vf in functions.free_virtual_functions(pf, taken=[str(vfs[2]), vfs[3]])]
    assert [] == functions.free_virtual_functions(device(functions, "0000:02:00.0"))


def test_group_members(fakehost: Fake, ask: Ask) -> None:
    """All functions of the group, including the function itself; empty without a group."""
    functions = ask(fakehost("bcm5719"))
    card = [f"0001:09:00.{function}" for function in range(4)]
    assert card == addresses(functions.iommu_group_members(device(functions, card[2])))
    fake = fakehost("0000:00:01.0 8086:1521 020000\n")
    functions = ask(fake)
    assert [] == functions.iommu_group_members(functions[0])


# Which ones


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("8086:", ["00:00.0", "00:02.0", "00:03.0", "03:00.0", "03:10.0", "03:10.2", "03:10.4", "03:10.6"]),
        ("8086:1563", ["03:00.0"]),
        (":A808", ["02:00.0"]),
        ("*:*:0604", ["00:02.0", "00:03.0"]),
        ("::06", ["00:00.0", "00:02.0", "00:03.0"]),
        ("::200", ["03:00.0", "03:10.0", "03:10.2", "03:10.4", "03:10.6"]),
        ("::0108:02", ["02:00.0"]),
        ("::010802", ["02:00.0"]),
        ("::0108:01", []),
        (":::02", ["02:00.0"]),
        ("144d:a808:02", []),
        (":a808:", ["02:00.0"]),
        ("144d:*:*:*", ["02:00.0"]),
    ],
)
def test_filter(fakehost: Fake, ask: Ask, pattern: str, expected: list[str]) -> None:
    """A filter is lspci's -d: vendor, device, class or base class, interface."""
    assert [f"0000:{address}" for address in expected] == addresses(ask(fakehost("sriov")).filter(pattern))


@pytest.mark.parametrize(
    "pattern", ["", "8086", "80867:", "8o86:", "::1234567", ":::123", "1:2:3:4:5", "-1:", "0x8086:"]
)
def test_invalid_filter_is_refused(fakehost: Fake, ask: Ask, pattern: str) -> None:
    """An invalid filter is refused, not treated as a filter that matches nothing."""
    with pytest.raises(ConfigError):
        ask(fakehost("sriov")).filter(pattern)


def test_with_driver(fakehost: Fake, ask: Ask) -> None:
    """Functions by their driver's name, without a driver, and by an unused name."""
    functions = ask(fakehost("sriov"))
    assert ["0000:02:00.0"] == addresses(functions.with_driver("nvme"))
    assert ["0000:00:00.0"] == addresses(functions.with_driver(None))
    assert [] == functions.with_driver("tg3")


# Who can be given to a guest

REASONS = {"not-endpoint", "pf-with-vfs", "no-iommu-group", "group-not-viable", "boot-vga", "mounted", "default-route"}


def test_why_not_assignable(fakehost: Fake, ask: Ask) -> None:
    """Every finding names its cause: a bridge, a PF with VFs, the other ports and their drivers."""
    fake = fakehost("sriov")
    functions = ask(fake)
    why = {
        str(dev.address): [(o.reason, str(o.address)) for o in functions.obstacles(dev) if o.severity == "error"]
        for dev in functions
    }
    assert [("not-endpoint", "0000:00:03.0")] == why["0000:00:03.0"]
    assert [("pf-with-vfs", "0000:03:00.0")] == why["0000:03:00.0"]
    assert [] == why["0000:03:10.0"] == why["0000:02:00.0"]
    functions = ask(fakehost("bcm5719"))
    found = functions.obstacles(device(functions, "0001:09:00.1"))
    assert [("group-not-viable", at(f"0001:09:00.{n}")) for n in (0, 2, 3)] == [(o.reason, o.address) for o in found]
    assert "'tg3' keeps the group's DMA" in found[0].message


def test_group_blocked_by_a_platform_device(fakehost: Fake, ask: Ask) -> None:
    """A platform device in the group is also an obstacle, although no scan lists it."""
    functions = ask(fakehost("non-pci-member"))
    found = functions.obstacles(functions[0])
    assert [("group-not-viable", "HISI0131:00")] == [(o.reason, o.address) for o in found]


def test_function_without_group(fakehost: Fake, ask: Ask) -> None:
    """If the host has groups, a function without a group cannot be assigned."""
    functions = ask(fakehost("0000:00:01.0 8086:1521 020000\n0000:00:02.0 8086:1521 020000 group=1\n"))
    assert ["no-iommu-group"] == [o.reason for o in functions.obstacles(functions[0])]
    assert ["0000:00:02.0"] == addresses(functions.assignable())


@pytest.mark.parametrize("name", named_hosts())
def test_scan_and_plan_agree(fakehost: Fake, ask: Ask, domain: Callable[..., DomainDef], name: str) -> None:
    """A scan reports the same obstacles for a function as a plan for a domain with only that function."""
    fake = fakehost(name)
    functions = ask(fake)
    for dev in functions:
        plan = Host(fake.root).plan(domain("vm1", str(dev.address)), policy="group")
        said = [
            ("group-not-viable" if f.reason == "incomplete-device" else f.reason, str(f.address)) for f in plan.findings
        ]
        obstacles = [(o.reason, str(o.address)) for o in functions.obstacles(dev)]
        assert sorted(entry for entry in said if entry[0] in REASONS) == sorted(obstacles)
