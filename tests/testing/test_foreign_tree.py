# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees from other sources: flat, sparse, without a description. Only the bindings show the state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyhostdev.errors import SysfsError
from pyhostdev.testing.fakehost import snapshot_tree
from pyhostdev.testing.faults import NotSimulated
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress

# address: ids, driver, group
DEVICES = {
    "0000:03:00.0": ("14e4:1657", "tg3", 13),
    "0000:03:00.1": ("14e4:1657", "tg3", 13),
    "0000:05:00.0": ("1af4:1041", None, 3),
    "0000:0a:00.0": ("10de:1e87", "vfio-pci", 31),
    "0000:0a:00.1": ("10de:10f8", "vfio-pci", 31),
    "0000:0b:00.0": ("8086:1572", "vfio-pci", 32),
}
F0 = "0000:03:00.0"


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add_device(bus: Path, root: Path, address: str) -> None:
    ids, driver, group = DEVICES[address]
    top = bus / "devices" / address
    vendor, device = ids.split(":")
    # the last device is on vfio-pci by a dynamic id: it has no override
    override = "vfio-pci" if driver == "vfio-pci" and group == 31 else "(null)"
    files = {"vendor": f"0x{vendor}", "device": f"0x{device}", "class": "0x020000", "remove": ""}
    for name, text in (files | {"driver_override": override, "uevent": f"PCI_SLOT_NAME={address}"}).items():
        put(top / name, text + "\n")
    if driver == "tg3":
        (top / "net" / f"net{address[-1]}").mkdir(parents=True)
    if driver is not None:
        put(bus / "drivers" / driver / "bind")
        (top / "driver").symlink_to(f"../../drivers/{driver}")
        (bus / "drivers" / driver / address).symlink_to(f"../../devices/{address}")
    members = root / f"sys/kernel/iommu_groups/{group}/devices"
    members.mkdir(parents=True, exist_ok=True)
    (members / address).symlink_to(f"../../../../bus/pci/devices/{address}")
    (top / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")
    if driver == "vfio-pci":
        put(root / f"dev/vfio/{group}")


@pytest.fixture
def tree(tmp_path: Path) -> HostRoot:
    """A tree as a shell script would make it: directories where sysfs has links, few attributes."""
    put(tmp_path / "dev/vfio/vfio")
    for address in DEVICES:
        add_device(tmp_path / "sys/bus/pci", tmp_path, address)
    return HostRoot(tmp_path)


def move(root: HostRoot, address: str, before: str | None, driver: str, override: str) -> None:
    kernel = SimulatedKernel(root)  # a new one each time, as another process would have
    device = PCIDeviceAddress.parse(address)
    kernel.write(f"{root.pci_device(device)}/driver_override", override.encode(), device=device)
    if before is not None:
        kernel.write(f"{root.pci_driver(before)}/unbind", address.encode(), device=device)
    kernel.write(f"{root.pci_driver(driver)}/bind", address.encode(), device=device)


def driver_of(root: HostRoot, address: str) -> str:
    return os.path.basename(os.readlink(f"{root.pci_devices}/{address}/driver"))


def test_there_and_back_leaves_no_trace(tree: HostRoot) -> None:
    """Writes by several processes in turn restore every byte, and leave no file of the simulation."""
    before = snapshot_tree(tree.path)
    names = sorted(os.listdir(tree.path))
    for address in ("0000:03:00.0", "0000:03:00.1"):
        move(tree, address, "tg3", "vfio-pci", "vfio-pci")
    assert "fakehost.state" in os.listdir(tree.path)
    assert os.path.exists(tree.vfio_group(13))
    for address in ("0000:03:00.0", "0000:03:00.1"):
        move(tree, address, "vfio-pci", "tg3", "\n")
    assert before == snapshot_tree(tree.path)
    assert names == sorted(os.listdir(tree.path))


def test_looking_makes_no_file(tree: HostRoot) -> None:
    """A kernel that only reads does not change the tree."""
    before = sorted(os.listdir(tree.path))
    assert not SimulatedKernel(tree).is_in_flight(PCIDeviceAddress.parse(F0))
    assert before == sorted(os.listdir(tree.path))


def test_driver_takes_the_ids_it_was_seen_with(tree: HostRoot) -> None:
    """tg3 matches its functions even if all are unbound, and no other device."""
    device = PCIDeviceAddress.parse(F0)
    for address in ("0000:03:00.0", "0000:03:00.1"):
        move(tree, address, "tg3", "vfio-pci", "vfio-pci")
    kernel = SimulatedKernel(tree)
    kernel.write(f"{tree.pci_device(device)}/driver_override", b"\n", device=device)
    kernel.write(f"{tree.pci_driver('vfio-pci')}/unbind", F0.encode(), device=device)
    kernel.write(tree.drivers_probe, F0.encode(), device=device)
    assert "tg3" == driver_of(tree, F0)
    other = PCIDeviceAddress.parse("0000:05:00.0")
    kernel.write(tree.drivers_probe, str(other).encode(), device=other)
    assert not os.path.exists(f"{tree.pci_device(other)}/driver")


def test_vfio_without_override_shows_a_dynamic_id(tree: HostRoot) -> None:
    """So drivers_probe gives that function back to vfio-pci, and not the two that an override brought there."""
    for address, bound in (("0000:0b:00.0", True), ("0000:0a:00.0", False)):
        device = PCIDeviceAddress.parse(address)
        kernel = SimulatedKernel(tree)
        kernel.write(f"{tree.pci_device(device)}/driver_override", b"\n", device=device)
        kernel.write(f"{tree.pci_driver('vfio-pci')}/unbind", address.encode(), device=device)
        kernel.write(tree.drivers_probe, address.encode(), device=device)
        assert bound == os.path.exists(f"{tree.pci_device(device)}/driver")


def test_group_node_stays_for_the_neighbour(tree: HostRoot) -> None:
    """The tree's own vfio members count."""
    device = PCIDeviceAddress.parse("0000:0a:00.0")
    kernel = SimulatedKernel(tree)
    kernel.write(f"{tree.pci_driver('vfio-pci')}/unbind", str(device).encode(), device=device)
    assert os.path.exists(tree.vfio_group(31))


def test_driverless_function_comes_back_driverless(tree: HostRoot) -> None:
    """To vfio-pci and off it again: no state is left."""
    before = snapshot_tree(tree.path)
    address = "0000:05:00.0"
    device = PCIDeviceAddress.parse(address)
    move(tree, address, None, "vfio-pci", "vfio-pci")
    kernel = SimulatedKernel(tree)
    kernel.write(f"{tree.pci_driver('vfio-pci')}/unbind", address.encode(), device=device)
    kernel.write(f"{tree.pci_device(device)}/driver_override", b"\n", device=device)
    assert before == snapshot_tree(tree.path)
    assert "fakehost.state" not in os.listdir(tree.path)


def test_sys_may_be_a_link(tree: HostRoot, tmp_path: Path) -> None:
    """The room is where the link leads."""
    os.rename(tmp_path / "sys", tmp_path / "elsewhere")
    (tmp_path / "sys").symlink_to("elsewhere")
    before = snapshot_tree(tree.path)
    move(tree, F0, "tg3", "vfio-pci", "vfio-pci")
    assert "vfio-pci" == driver_of(tree, F0)
    move(tree, F0, "vfio-pci", "tg3", "\n")
    assert before == snapshot_tree(tree.path)


def test_vfs_without_a_description_cannot_be_made(tree: HostRoot) -> None:
    """The addresses of undescribed VFs are not guessed."""
    device = PCIDeviceAddress.parse(F0)
    for name, text in {"sriov_totalvfs": "4\n", "sriov_numvfs": "0\n"}.items():
        Path(tree.pci_device(device), name).write_text(text)
    with pytest.raises(NotSimulated, match="tree does not show"):
        SimulatedKernel(tree).write(f"{tree.pci_device(device)}/sriov_numvfs", b"2", device=device)


def test_removed_directory_comes_back_as_another(tree: HostRoot) -> None:
    """Where the bus has directories and no links, remove and rescan work too."""
    before = snapshot_tree(tree.path)
    device = PCIDeviceAddress.parse(F0)
    shell = SimulatedKernel(tree, raw=True)
    inode = os.stat(tree.pci_device(device)).st_ino
    shell.write(f"{tree.pci_device(device)}/remove", b"1", device=device)
    assert not os.path.exists(tree.pci_device(device))
    shell.write(f"{tree.pci_bus}/rescan", b"1", device=device)
    assert inode != os.stat(tree.pci_device(device)).st_ino
    assert before == snapshot_tree(tree.path)


def test_refused_bind_leaves_no_trace(tree: HostRoot) -> None:
    """vfio-pci without a group: the failed bind leaves no trace."""
    device = PCIDeviceAddress.parse("0000:05:00.0")
    os.unlink(f"{tree.pci_device(device)}/iommu_group")
    before = snapshot_tree(tree.path)
    with pytest.raises(SysfsError):
        move(tree, str(device), None, "vfio-pci", "vfio-pci")
    kernel = SimulatedKernel(tree)
    kernel.write(f"{tree.pci_device(device)}/driver_override", b"\n", device=device)
    assert before == snapshot_tree(tree.path)
    assert "fakehost.state" not in os.listdir(tree.path)
