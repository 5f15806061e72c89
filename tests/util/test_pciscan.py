# SPDX-License-Identifier: LGPL-2.1-or-later
"""The scanner's promises: its results for odd hosts, the files that it never opens, the descriptors that it closes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhostdev.errors import SysfsError
from pyhostdev.testing.generator import make_tree
from pyhostdev.util import pciscan, pciscan_ref, pcisnapshot
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciscan import ScanRecord, Tuning

MODALIAS = "pci:v00008086d00001521sv00001028sd00000602bc02sc00i00\n"
CROWD = Tuning(crowd=0, share=1)


def make_function(root: HostRoot, address: str, modalias: str = MODALIAS, **links: str) -> Path:
    """Make a function with a directory instead of a link, as in a copied sysfs."""
    top = Path(root.pci_devices, address)
    top.mkdir(parents=True)
    (top / "modalias").write_text(modalias)
    for link, target in links.items():
        (top / link).symlink_to(target)
    return top


@pytest.fixture
def root(tmp_path: Path) -> HostRoot:
    """Make a host with three functions, one of them without any attribute."""
    host = HostRoot(tmp_path)
    make_function(host, "0000:02:00.0", driver="../../drivers/igb", iommu_group="x/14")
    make_function(host, "0000:02:00.1", physfn="../0000:02:00.0", iommu_group="x/14")
    make_function(host, "10000:e1:1f.7", modalias="")
    return host


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> HostRoot:
    """Make a host of 600 functions, among them three PFs with many VFs, that no test changes."""
    top = tmp_path_factory.mktemp("crowd")
    make_tree(top, 600)
    return HostRoot(top)


def test_record_says_what_sysfs_says(root: HostRoot) -> None:
    """Every field equals its attribute, and is None if the host does not have it."""
    assert [
        ScanRecord("0000:02:00.0", 0x8086, 0x1521, 0x1028, 0x602, 0x020000, "igb", 14, None),
        ScanRecord("0000:02:00.1", 0x8086, 0x1521, 0x1028, 0x602, 0x020000, None, 14, "0000:02:00.0"),
        ScanRecord("10000:e1:1f.7", None, None, None, None, None, None, None, None),
    ] == list(pciscan.scan(root))


def test_snapshot_is_a_sequence(root: HostRoot) -> None:
    """A snapshot indexes, slices, counts from the end and refuses what is beyond it."""
    snapshot = pciscan.scan(root)
    assert 3 == len(snapshot)
    assert snapshot[2] == snapshot[-1]
    assert [snapshot[1], snapshot[2]] == snapshot[1:]
    assert snapshot[0] in snapshot
    with pytest.raises(IndexError):
        snapshot[3]


def test_snapshot_finds_by_address_and_group(root: HostRoot) -> None:
    """Addresses and groups lead to positions; absent ones lead to None."""
    snapshot = pciscan.scan(root)
    assert ["0000:02:00.0", "0000:02:00.1", "10000:e1:1f.7"] == snapshot.addresses
    assert [0, 1, 2] == [snapshot.find(PCIDeviceAddress.parse(text)) for text in snapshot.addresses]
    for text in ("0000:00:00.0", "0000:02:00.2", "ffff:00:00.0", "ffffffff:ff:1f.7"):
        assert snapshot.find(PCIDeviceAddress.parse(text)) is None
    assert {14: (0, 1)} == snapshot.groups


def test_snapshot_is_small(crowd: HostRoot) -> None:
    """Until records are asked for, a function costs 40 bytes and its address."""
    snapshot = pciscan.scan(crowd)
    packed = sum(len(part) for part in (snapshot._packed, snapshot._text, snapshot._names))
    assert 600 * 60 > packed


@pytest.mark.parametrize("scan", [pciscan.scan, pciscan_ref.scan])
def test_host_without_pci_is_an_error(tmp_path: Path, scan: Any) -> None:
    """A root without a PCI bus is likely a mistyped one, not a host with nothing in it."""
    with pytest.raises(SysfsError) as refusal:
        scan(HostRoot(tmp_path))
    assert errno.ENOENT == refusal.value.errno
    assert str(tmp_path) in refusal.value.filename


def test_host_without_functions(tmp_path: Path) -> None:
    """An empty bus is an empty snapshot."""
    Path(tmp_path, "sys/bus/pci/devices").mkdir(parents=True)
    assert [] == list(pciscan.scan(HostRoot(tmp_path)))


@pytest.mark.parametrize("target", ["tree", "/tree", "../../tree"])
def test_sys_may_be_a_link(root: HostRoot, tmp_path: Path, target: str) -> None:
    """DIR/sys may be a link to the real tree, which is resolved inside DIR."""
    before = list(pciscan.scan(root))
    (tmp_path / "sys").rename(tmp_path / "tree")
    (tmp_path / "sys").symlink_to(target)
    assert before == list(pciscan.scan(root))


@pytest.mark.parametrize("tuning", [Tuning(), CROWD])
@pytest.mark.parametrize(
    ("attribute", "content"),
    [
        ("vendor", "garbage\n"),
        ("vendor", ""),
        ("device", "0x18086\n"),
        ("class", "0x1020000\n"),
        ("subsystem_vendor", "0x8086" + " " * 40),
        ("subsystem_device", "0x"),
    ],
)
def test_malformed_attribute_is_named(root: HostRoot, attribute: str, content: str, tuning: Tuning) -> None:
    """An attribute with another content than a number is an error that names its file."""
    path = Path(root.pci_devices, "10000:e1:1f.7", attribute)
    path.write_text(content)
    for scan in (lambda: pciscan.scan_with(root, tuning), lambda: pciscan_ref.scan(root)):
        with pytest.raises(SysfsError) as refusal:
            scan()
        assert (errno.EBADMSG, str(path)) == (refusal.value.errno, refusal.value.filename)


@pytest.mark.parametrize("tuning", [Tuning(), CROWD])
@pytest.mark.parametrize(
    ("link", "target"),
    [("iommu_group", "x/group"), ("iommu_group", "x/4294967295"), ("driver", "x/"), ("physfn", "x/y")],
)
def test_malformed_link_is_named(root: HostRoot, link: str, target: str, tuning: Tuning) -> None:
    """A link that ends in something else than its kind of name is an error that names it."""
    if tuning is CROWD and link == "physfn":
        tuning = Tuning()  # a crowd's VFs are found from their PF
    path = Path(root.pci_devices, "10000:e1:1f.7", link)
    path.symlink_to(target)
    for scan in (lambda: pciscan.scan_with(root, tuning), lambda: pciscan_ref.scan(root)):
        with pytest.raises(SysfsError) as refusal:
            scan()
        assert (errno.EBADMSG, str(path)) == (refusal.value.errno, refusal.value.filename)


@pytest.mark.parametrize(
    "text",
    [
        MODALIAS.replace("8086", "8o86"),
        MODALIAS.replace("v0000", "v0001"),
        MODALIAS.strip() + "x\n",
        MODALIAS[:-3],
        "",
    ],
)
def test_modalias_that_does_not_parse(root: HostRoot, text: str) -> None:
    """If modalias is unusable, the single files are read."""
    top = Path(root.pci_devices, "0000:02:00.0")
    (top / "modalias").write_text(text)
    (top / "device").write_text("0x10c9\n")
    record = pciscan.scan(root)[0]
    assert (None, 0x10C9, None) == (record.vendor, record.device, record.class_)
    assert pciscan_ref.scan(root)[0] == record


def test_fifo_for_an_attribute_blocks_nothing(root: HostRoot) -> None:
    """An entry of another kind in place of an attribute cannot stop the scan."""
    os.mkfifo(Path(root.pci_devices, "10000:e1:1f.7", "vendor"))
    for scan in (pciscan.scan, pciscan_ref.scan):
        with pytest.raises(SysfsError):
            scan(root)


def test_function_that_went_away_is_counted(root: HostRoot) -> None:
    """A function that is listed but gone is left out and counted; a file is not a function."""
    Path(root.pci_devices, "0000:03:00.0").symlink_to("../../../devices/gone")
    Path(root.pci_devices, "0000:03:00.1").symlink_to("0000:03:00.1")
    Path(root.pci_devices, "0000:03:00.2").write_text("")
    for tuning in (Tuning(), CROWD):
        snapshot = pciscan.scan_with(root, tuning)
        assert (3, 3) == (len(snapshot), snapshot.vanished)


def test_scan_while_functions_come_and_go(root: HostRoot, tmp_path: Path) -> None:
    """Concurrent changes never make a scan fail, and its results for the remaining functions are correct."""
    top = make_function(HostRoot(tmp_path / "other"), "0000:03:00.0")
    there, stay = Path(root.pci_devices, "0000:03:00.0"), ["0000:02:00.0", "0000:02:00.1", "10000:e1:1f.7"]
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            top.rename(there)
            there.rename(top)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        seen = [pciscan.scan_with(root, (Tuning(), CROWD)[i & 1]) for i in range(1000)]
    finally:
        stop.set()
        thread.join()
    for snapshot in seen:
        assert stay == [address for address in snapshot.addresses if address != "0000:03:00.0"]


class Flicker:
    """VFs of a PF that are removed and added again, link by link, in the kernel's order."""

    def __init__(self, root: HostRoot, pf: str) -> None:
        self.pf = Path(root.pci_devices, pf)
        self.away = Path(root.join("away"))
        self.away.mkdir()
        self.virtfns = sorted(self.pf.glob("virtfn*"), key=lambda link: int(link.name[6:]))
        self.vfs = [(link, Path(root.pci_devices, link.resolve().name)) for link in self.virtfns]

    def take(self) -> None:
        for virtfn, entry in reversed(self.vfs):
            virtfn.rename(self.away / virtfn.name)
            entry.resolve().rename(self.away / f"directory-{entry.name}")
            entry.rename(self.away / entry.name)

    def bring(self) -> None:
        for virtfn, entry in self.vfs:
            place = self.pf.resolve().parent / entry.name
            (self.away / f"directory-{entry.name}").rename(place)
            (self.away / entry.name).rename(entry)
            (self.away / virtfn.name).rename(virtfn)


def test_scan_while_virtual_functions_come_and_go(tmp_path: Path) -> None:
    """A PF whose VFs are added and removed never makes a scan fail, and the results for the others are unchanged."""
    make_tree(tmp_path, 600)
    root = HostRoot(tmp_path)
    before = {record.address: record for record in pciscan.scan(root)}
    pf = next(record.physfn for record in before.values() if record.physfn)
    flicker, stop = Flicker(root, pf), threading.Event()
    theirs = {entry.name for _, entry in flicker.vfs}

    def come_and_go() -> None:
        while not stop.is_set():
            flicker.take()
            flicker.bring()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        seen = [pciscan.scan(root) for _ in range(100)]
    finally:
        stop.set()
        thread.join()
    assert list(before.values()) == list(pciscan.scan(root))
    for snapshot in seen:
        now = {record.address: record for record in snapshot if record.address not in theirs}
        assert {name: record for name, record in before.items() if name not in theirs} == now
    assert len({len(snapshot) for snapshot in seen}) > 1  # they did come and go


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_scan_leaks_no_descriptor(root: HostRoot) -> None:
    """A scan closes all its descriptors, even if it fails."""
    broken = HostRoot(root.join("broken"))
    Path(broken.path).mkdir()
    shutil.copytree(root.pci_bus, broken.pci_bus, symlinks=True)
    Path(broken.pci_devices, "0000:02:00.1", "modalias").unlink()
    Path(broken.pci_devices, "0000:02:00.1", "class").write_text("no class\n")
    address = PCIDeviceAddress.parse("0000:02:00.0")
    before = open_descriptors()
    for tuning in (Tuning(), CROWD) * 20:
        pciscan.scan_with(root, tuning)
        assert pciscan.read_config(root, address, 0, 64) is None
        with pytest.raises(SysfsError):
            pciscan.scan_with(broken, tuning)
    assert before == open_descriptors()


class CountingLib:
    """Counts the calls into C."""

    def __init__(self, lib: Any) -> None:
        self.lib = lib
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("phd_"):
            self.calls.append(name)
        return getattr(self.lib, name)


class CountingModule:
    """The C module with a lib that counts."""

    def __init__(self, module: Any) -> None:
        self.ffi = module.ffi
        self.lib = CountingLib(module.lib)


def test_scan_is_three_calls(root: HostRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan makes three calls into C (list, fill, format) for any number of functions."""
    module = CountingModule(pciscan._c)  # type: ignore[attr-defined]
    monkeypatch.setattr(pciscan, "_c", module)
    pciscan.scan(root)
    assert ["phd_list", "phd_fill", "phd_format"] == module.lib.calls


def test_host_with_more_functions_than_room(root: HostRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with more functions than the buffer is listed again with more room, never truncated."""
    expected = list(pciscan.scan(root))
    monkeypatch.setattr(pciscan, "_CAPACITY", 1)
    assert expected == list(pciscan.scan(root))


def traced(root: HostRoot, trace: Path, tuning: str = "Tuning()") -> str:
    """Scan in a separate process, and return its system calls that take a path."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    code = "from pyhostdev.util import hostroot, pciscan\n"
    code += f"pciscan.scan_with(hostroot.HostRoot({root.path!r}), pciscan.{tuning})"
    command = ["strace", "-f", "-e", "trace=%file", "-o", str(trace), sys.executable, "-c"]
    done = subprocess.run([*command, code], capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()}")
    assert 0 == done.returncode, done.stderr
    calls = trace.read_text()
    return calls[calls.index('/devices"' if '/devices", {' in calls else '"devices"') :]


def test_entries_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing has a key and an inode number for each entry, in the order of the keys, and is never truncated."""
    monkeypatch.setattr(pciscan, "_CAPACITY", 3)
    numbers = [0, 7, 10, 255, 256, 70_000, 4_294_967_295]
    groups = {number: tmp_path / "sys/kernel/iommu_groups" / str(number) for number in numbers}
    for path in reversed(groups.values()):
        path.mkdir(parents=True)
    Path(tmp_path, "sys/bus/pci").mkdir(parents=True)
    root = HostRoot(tmp_path)
    reader = pciscan.FunctionReader(root)
    entries = reader.entries(root.iommu_groups, are_numbers=True)
    reader.close()
    expected = [word for number, path in groups.items() for word in (number, path.stat().st_ino)]
    assert memoryview(entries).cast("Q").tolist() == expected


def packed_entries(inodes: dict[int, int]) -> bytes:
    """Return a sorted listing as the scanner makes it."""
    return b"".join(struct.pack("=QQ", *entry) for entry in sorted(inodes.items()))


LISTINGS = st.dictionaries(st.sampled_from([0, 1, 2, 3, 8, 256, 1 << 47]), st.integers(1, 3))


@given(LISTINGS, LISTINGS)
def test_entries_that_another_listing_lacks(before: dict[int, int], after: dict[int, int]) -> None:
    """An entry whose inode number is another one was replaced."""
    expected = {key for key, inode in before.items() if after.get(key) != inode}
    assert pciscan.only_in(packed_entries(before), packed_entries(after)) == expected


def test_scan_never_opens_what_can_wait(crowd: HostRoot, tmp_path: Path) -> None:
    """The scan never opens config, uevent, driver_override or sriov_numvfs, which wait for a stuck device."""
    for root in (crowd, HostRoot("/")):
        if not Path(root.pci_devices).is_dir():
            continue
        calls = traced(root, tmp_path / "trace")
        assert re.search(r'"[^"]*modalias", (\{flags=)?O_RDONLY', calls)
        found = re.findall(r'"[^"]*\b(?:config|uevent|driver_override|sriov_numvfs)"', calls)
        assert [] == found


def test_crowd_costs_few_calls(crowd: HostRoot, tmp_path: Path) -> None:
    """For many VFs, only the group is read; for their PF, the first and the last virtfn link; physfn is never read."""
    calls = traced(crowd, tmp_path / "trace")
    assert 0 == calls.count('physfn"')
    assert 600 == calls.count('iommu_group"')
    pfs = {record.physfn for record in pciscan.scan(crowd)} - {None}
    ours = [line for line in calls.splitlines() if "/virtfn" in line]
    assert 0 < len(pfs)
    assert 2 * len(pfs) == sum(any(f'"{pf}/' in line for pf in pfs) for line in ours)


def test_drivers_of_a_linked_directory_are_not_read_singly(crowd: HostRoot, tmp_path: Path) -> None:
    """A directory asserted to be linked is read like sysfs: a function that no driver lists has no driver."""
    expected = list(pciscan.scan(crowd))
    unbound = sum(record.driver is None for record in expected)
    vouched = pciscan.scan_with(crowd, Tuning(linked=True))
    assert 0 < unbound
    assert expected == list(vouched)
    assert unbound == traced(crowd, tmp_path / "asked").count('driver"')
    assert 0 == traced(crowd, tmp_path / "vouched", "Tuning(linked=True)").count('driver"')


def test_only_a_group_larger_than_a_device_is_listed(tmp_path: Path) -> None:
    """The links of a device's eight functions are read; of a larger group, twelve, and its list tells the others."""
    host = HostRoot(tmp_path / "host")
    for group, functions in ((2, 8), (3, 40)):
        members = host.join(f"sys/kernel/iommu_groups/{group}/devices")
        os.makedirs(members)
        for number in range(functions):
            address = f"0000:0{group}:{number // 8:02x}.{number % 8}"
            make_function(host, address, iommu_group=f"x/{group}")
            os.symlink("x", f"{members}/{address}")
    text = "Tuning(crowd=0, linked=True)"
    assert [2] * 8 + [3] * 40 == [record.iommu_group for record in pciscan.scan_with(host, Tuning(0, linked=True))]
    calls = traced(host, tmp_path / "trace", text)
    assert 8 + 12 == calls.count('iommu_group"')
    assert 0 == calls.count("iommu_groups/2/")
    assert 1 == calls.count("iommu_groups/3/")


def make_config(root: HostRoot, size: int = 256) -> bytes:
    content = bytes(i & 0xFF for i in range(size))
    Path(root.pci_devices, "0000:02:00.0", "config").write_bytes(content)
    return content


@pytest.mark.parametrize(("offset", "size"), [(0, 64), (14, 1), (0, 256), (0x40, 4), (0, 0)])
def test_config_range(root: HostRoot, offset: int, size: int) -> None:
    """Any range of configuration space can be read."""
    content = make_config(root)
    address = PCIDeviceAddress.parse("0000:02:00.0")
    assert content[offset : offset + size] == pciscan.read_config(root, address, offset, size)


@pytest.mark.parametrize(("offset", "size", "expected"), [(0, 4096, 64), (60, 8, 4), (0x100, 4, 0)])
def test_config_is_short_for_an_unprivileged_reader(root: HostRoot, offset: int, size: int, expected: int) -> None:
    """An unprivileged reader gets the readable bytes, and no zeros for the rest."""
    make_config(root, 64)
    config = pciscan.read_config(root, PCIDeviceAddress.parse("0000:02:00.0"), offset, size)
    assert config is not None
    assert expected == len(config)


def test_config_that_is_not_there(root: HostRoot) -> None:
    """A missing function, or one without config, gives None; that is not an error."""
    for text in ("0000:02:00.1", "0000:1f:00.0"):
        assert pciscan.read_config(root, PCIDeviceAddress.parse(text), 0, 64) is None


def test_config_that_cannot_be_read(root: HostRoot) -> None:
    """A config that exists and cannot be read is an error with its path and its device."""
    address = PCIDeviceAddress.parse("0000:02:00.0")
    path = Path(root.pci_device(address), "config")
    path.mkdir()
    with pytest.raises(SysfsError) as refusal:
        pciscan.read_config(root, address, 0, 64)
    assert (errno.EISDIR, str(path), address) == (
        refusal.value.errno,
        refusal.value.filename,
        refusal.value.address,
    )


def test_bits_are_the_c_code_s() -> None:
    """The Python constants for the bits of ``have`` equal those of the C code."""
    library = pciscan._c.lib  # type: ignore[attr-defined]
    names = [name for name in vars(pcisnapshot) if name.lstrip("_").startswith("HAVE_") and name != "_HAVE_IDS"]
    assert 8 == len(names)
    expected = {name: getattr(library, f"PHD_{name.lstrip('_')}") for name in names}
    assert expected == {name: getattr(pcisnapshot, name) for name in names}
