# SPDX-License-Identifier: LGPL-2.1-or-later
"""The C scanner and the plain-Python reference give the same results for every host, in every mode."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sizes import examples

from pyhostdev.testing.generator import PLAIN_CARDS, SRIOV_CARDS, make_tree
from pyhostdev.util import pciscan, pciscan_ref
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciscan import Tuning

EVERYTHING_SHARED = Tuning(crowd=0, share=1)
NOTHING_SHARED = Tuning(crowd=1 << 30, share=1 << 30)
TUNINGS = (Tuning(), EVERYTHING_SHARED, Tuning(crowd=0, share=1 << 30), NOTHING_SHARED)

IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device")
DRIVERS = ("nvme", "vfio-pci", "mlx5_core", "a.b+c-d")
JUNK = (
    "junk",
    ".hidden",
    "0000:00:00",
    "0000:00:20.0",
    "0000:00:00.8",
    "00000:00:00.0",
    "0000:0A:00.0",
    "000000000:00:00.0",
    "0000:00:00.0 ",
)


class Function(NamedTuple):
    """A function to create; ``form`` is the kind of its entry in devices/."""

    key: int
    ids: tuple[int, int, int, int, int]
    attributes: frozenset[str]
    driver: str | None
    is_driver_listed: bool
    group: int | None
    form: str
    is_bridge: bool
    vfs: tuple[int, ...] = ()
    pf: int | None = None


def text_of(key: int) -> str:
    return f"{key >> 16:04x}:{key >> 8 & 0xFF:02x}:{key >> 3 & 0x1F:02x}.{key & 7}"


def domains() -> st.SearchStrategy[int]:
    return st.sampled_from([0, 1, 0xFFFF, 0x10000, 0x12345, 0xFFFFFFFF])


@st.composite
def functions(draw: st.DrawFn, /, key: int, **fixed: Any) -> Function:
    optional = ("modalias", "class", *IDS)
    attributes = draw(st.sets(st.sampled_from(optional))) if draw(st.booleans()) else set(optional)
    ids = draw(st.tuples(*[st.integers(0, 0xFFFF)] * 4, st.integers(0, 0xFFFFFF)))
    is_bridge = fixed.pop("is_bridge", draw(st.booleans()))
    if is_bridge:
        ids = (*ids[:4], 0x060400)
    elif ids[4] >> 16 == 6:
        ids = (*ids[:4], 0x020000)
    forms = ["link", "link", "link", "directory", "dangling"]
    made = Function(
        key,
        ids,
        frozenset(attributes),
        driver=draw(st.none() | st.sampled_from(DRIVERS)),
        is_driver_listed=draw(st.booleans()),
        group=draw(st.none() | st.sampled_from([0, 7, 14, 4294967294])),
        form=draw(st.sampled_from(forms)),
        is_bridge=is_bridge,
    )
    return made._replace(**fixed)


@st.composite
def virtual_functions(draw: st.DrawFn, pf: Function, taken: set[int]) -> list[Function]:
    """Draw the VFs of a PF, with one identity, at free addresses."""
    first = pf.key + draw(st.sampled_from([1, 2, 3, 0x80, 0x100, 0x1FF]))
    stride = draw(st.integers(1, 3))
    keys = [first + number * stride for number in range(draw(st.integers(1, 6)))]
    if taken & set(keys) or keys[-1] >> 16 != pf.key >> 16:
        return []
    model = draw(functions(0, is_bridge=False, pf=pf.key))
    hidden = draw(st.sets(st.sampled_from(keys))) if draw(st.booleans()) else set()
    return [
        draw(functions(key, is_bridge=False, pf=pf.key))._replace(
            ids=model.ids,
            attributes=model.attributes,
            form="unlisted" if key in hidden else draw(st.sampled_from(["link", "link", "directory", "dangling"])),
        )
        for key in keys
    ]


@st.composite
def hosts(draw: st.DrawFn) -> list[Function]:
    keys: set[int] = set()
    for _ in range(draw(st.integers(0, 4))):
        slot = draw(domains()) << 16 | draw(st.integers(0, 0xFE)) << 8 | draw(st.integers(0, 0x1F)) << 3
        keys |= {slot | draw(st.integers(0, 7)) for _ in range(draw(st.integers(1, 4)))}
    made = [draw(functions(key)) for key in sorted(keys)]
    for index, pf in enumerate(made.copy()):
        if pf.is_bridge or pf.form == "dangling" or not draw(st.booleans()):
            continue
        vfs = draw(virtual_functions(pf, keys))
        keys |= {vf.key for vf in vfs}
        made[index] = pf._replace(vfs=tuple(vf.key for vf in vfs))
        made += vfs
    return made


def modalias(ids: tuple[int, int, int, int, int]) -> str:
    vendor, device, subvendor, subdevice, class_ = ids
    return (
        f"pci:v{vendor:08X}d{device:08X}sv{subvendor:08X}sd{subdevice:08X}"
        f"bc{class_ >> 16:02X}sc{class_ >> 8 & 0xFF:02X}i{class_ & 0xFF:02X}\n"
    )


def write_attributes(top: str, function: Function) -> None:
    texts = {"modalias": modalias(function.ids), "class": f"0x{function.ids[4]:06x}\n"}
    texts |= {name: f"0x{value:04x}\n" for name, value in zip(IDS, function.ids, strict=False)}
    for name in function.attributes:
        Path(top, name).write_text(texts[name])


def is_kernel_like(bus: int, host: list[Function]) -> bool:
    """Tell whether the buses of the VFs of a bus' PFs are otherwise empty."""
    pfs = [function for function in host if function.key >> 8 == bus and function.pf is None]
    reach = max([vf >> 8 for pf in pfs for vf in pf.vfs], default=bus)
    return {pf.key for pf in pfs} >= {
        function.key if function.pf is None else function.pf for function in host if bus <= function.key >> 8 <= reach
    }


def parent_of(function: Function, host: list[Function]) -> str:
    """Name the directory: below a bridge together with the VFs as the kernel has it, else one for each bus."""
    bus = (function.key if function.pf is None else function.pf) >> 8
    if is_kernel_like(bus, host):
        return f"devices/pci{bus >> 8:04x}:00/{text_of(bus << 8 | 0xFF)}"
    return f"devices/pci{function.key >> 8:08x}"


def make_function(sysfs: str, function: Function, host: list[Function]) -> None:
    name = text_of(function.key)
    entry = f"{sysfs}/bus/pci/devices/{name}"
    parent = f"{sysfs}/{parent_of(function, host)}"
    top = entry if function.form == "directory" else f"{parent}/{name}"
    if function.form in ("link", "dangling"):
        os.makedirs(parent, exist_ok=True)
        os.symlink(os.path.relpath(top, f"{sysfs}/bus/pci/devices"), entry)
    if function.form == "dangling":
        return
    os.makedirs(top)
    write_attributes(top, function)
    if function.driver:
        os.makedirs(f"{sysfs}/bus/pci/drivers/{function.driver}", exist_ok=True)
        os.symlink(f"{sysfs}/bus/pci/drivers/{function.driver}", f"{top}/driver")
        if function.is_driver_listed:
            os.symlink(top, f"{sysfs}/bus/pci/drivers/{function.driver}/{name}")
    if function.group is not None:
        os.symlink(f"{sysfs}/kernel/iommu_groups/{function.group}", f"{top}/iommu_group")
    if function.pf is not None:
        os.symlink(f"../{text_of(function.pf)}", f"{top}/physfn")
    for number, vf in enumerate(function.vfs):
        os.symlink(f"../{text_of(vf)}", f"{top}/virtfn{number}")


@contextmanager
def made(host: list[Function], junk: set[str]) -> Iterator[HostRoot]:
    with tempfile.TemporaryDirectory() as top:
        os.makedirs(f"{top}/sys/bus/pci/devices")
        for function in host:
            make_function(f"{top}/sys", function, host)
        for name in junk:
            Path(top, "sys/bus/pci/devices", name).mkdir()
        yield HostRoot(top)


@settings(
    max_examples=examples(80),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(host=hosts(), junk=st.sets(st.sampled_from(JUNK), max_size=2))
def test_any_host(host: list[Function], junk: set[str]) -> None:
    """The results are equal with missing attributes, directories instead of links, wide domains, ARI, VFs and junk."""
    with made(host, junk) as root:
        expected = pciscan_ref.scan(root)
        for tuning in TUNINGS:
            assert expected == list(pciscan.scan_with(root, tuning)), tuning


@pytest.mark.parametrize("cards", [SRIOV_CARDS, PLAIN_CARDS], ids=["sriov", "plain"])
def test_crowded_host(tmp_path: Path, cards: tuple[str, ...]) -> None:
    """Shared results on a large host equal the results of each function's own files."""
    make_tree(tmp_path, 700, cards=cards)
    root = HostRoot(tmp_path)
    expected = pciscan_ref.scan(root)
    assert 700 == len(expected)
    for tuning in TUNINGS:
        assert expected == list(pciscan.scan_with(root, tuning)), tuning
    files = [pciscan_ref.read_identity_files(root, f"{root.pci_devices}/{r.address}") for r in expected]
    assert [record[1:6] for record in expected] == files


@pytest.mark.parametrize("tuning", TUNINGS)
def test_live_host(tuning: Tuning) -> None:
    """The results are equal on the machine that runs the tests."""
    root = HostRoot("/")
    if not Path(root.pci_devices).is_dir():
        pytest.skip("this machine has no PCI bus")
    assert pciscan_ref.scan(root) == list(pciscan.scan_with(root, tuning))


@pytest.mark.parametrize("listed", [12, 8])
def test_vfs_of_neighbours(listed: int) -> None:
    """VFs that directly follow those of another PF are distinguished, listed or not."""
    ids = (0x8086, 0x1572, 0x8086, 1, 0x020000)
    whole = frozenset({"modalias"})
    plain = Function(0, ids, whole, "nvme", True, None, "link", False)
    pfs = [
        plain._replace(key=key, vfs=tuple(range(first, first + 6))) for key, first in ((0x100, 0x108), (0x101, 0x10E))
    ]
    vfs = [
        plain._replace(key=key, pf=pf.key, form="link" if key < 0x108 + listed else "unlisted")
        for pf in pfs
        for key in pf.vfs
    ]
    with made(pfs + vfs, set()) as root:
        expected = pciscan_ref.scan(root)
        assert 2 + listed == len(expected)
        assert expected == list(pciscan.scan_with(root, EVERYTHING_SHARED))


def test_vfs_that_run_into_their_neighbour() -> None:
    """A function right after the last VF does not count as a VF."""
    ids = (0x144D, 0xA808, 0, 0, 0x010802)
    plain = Function(0, ids, frozenset({"modalias"}), None, True, 3, "link", False)
    pf = plain._replace(key=0x20, vfs=(0x21, 0x22, 0x23))
    vfs = [plain._replace(key=key, pf=0x20) for key in pf.vfs]
    with made([pf, *vfs, plain._replace(key=0x24), plain._replace(key=0x28)], set()) as root:
        records = list(pciscan.scan_with(root, EVERYTHING_SHARED))
        assert pciscan_ref.scan(root) == records
        assert [None, *["0000:00:04.0"] * 3, None, None] == [record.physfn for record in records]


def test_large_groups_are_listed(tmp_path: Path) -> None:
    """Where VFs share their PF's group, its listing says so for most of them, and the answers stay the same."""
    make_tree(tmp_path, 200, cards=SRIOV_CARDS)
    root = HostRoot(tmp_path)
    groups = {record.address: record.iommu_group for record in pciscan.scan(root)}
    vfs = [record for record in pciscan.scan(root) if record.physfn]
    for record in vfs:
        group, link = groups[record.physfn or ""], f"{root.pci_device(record.address)}/iommu_group"
        os.unlink(link)
        os.symlink(f"../../../../kernel/iommu_groups/{group}", link)
        os.symlink("x", f"{root.iommu_group_devices(group or 0)}/{record.address}")
    linked = Tuning(crowd=0, linked=True)
    assert list(pciscan.scan_with(root, NOTHING_SHARED)) == list(pciscan.scan_with(root, linked))
    last = max(vfs, key=lambda record: record.address)
    os.unlink(f"{root.pci_device(last.address)}/iommu_group")
    of_last = {r.address: r.iommu_group for r in pciscan.scan_with(root, linked)}[last.address]
    assert groups[last.physfn or ""] == of_last
