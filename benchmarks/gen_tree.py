# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Make a sysfs of many PCI functions: cards of realistic shape behind root ports, over several domains.

As a program: ``gen_tree.py DIR FUNCTIONS [SEED]`` makes DIR/sys.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

SRIOV_CARDS = ("nic2x63", "nvme", "gpu", "nic127", "quad", "nvme", "switch")
PLAIN_CARDS = ("nvme", "gpu", "quad", "switch")
LAST_BUS = 240
ROOT_PORTS = range(0x08, 0x80)


class Identity(NamedTuple):
    """Vendor, device and class of a kind of function; its driver, None for none."""

    vendor: int
    device: int
    class_: int
    driver: str | None


HOST_BRIDGE = Identity(0x8086, 0x29C0, 0x060000, None)
ROOT_PORT = Identity(0x8086, 0x2030, 0x060400, "pcieport")
SWITCH_PORT = Identity(0x10B5, 0x8747, 0x060400, "pcieport")
NVME = Identity(0x144D, 0xA808, 0x010802, "nvme")
GPU = Identity(0x10DE, 0x2231, 0x030000, "vfio-pci")
GPU_AUDIO = Identity(0x10DE, 0x1AEF, 0x040300, "vfio-pci")
QUAD_PORT = Identity(0x8086, 0x1521, 0x020000, "igb")
NIC_PF = Identity(0x15B3, 0x101D, 0x020000, "mlx5_core")
NIC_VF = Identity(0x15B3, 0x101E, 0x020000, None)


class FullError(Exception):
    """The tree has the functions it was asked for."""


class Tree:
    """A sysfs under construction; ``functions`` and ``groups`` say how many there are."""

    def __init__(self, top: Path, wanted: int, seed: int) -> None:
        self.sys = top / "sys"
        self.wanted = wanted
        self.random = random.Random(seed)  # the same tree again
        self.functions = 0
        self.groups = 0
        self.domain = 0
        for name in ("devices", "bus/pci/devices", "bus/pci/drivers", "kernel/iommu_groups"):
            (self.sys / name).mkdir(parents=True)

    def add_group(self) -> int:
        """Make an IOMMU group; its number."""
        self.groups += 1
        (self.sys / f"kernel/iommu_groups/{self.groups - 1}/devices").mkdir(parents=True)
        return self.groups - 1

    def add(
        self,
        parent: str,
        bus: int,
        devfn: int,
        what: Identity,
        group: int,
        *,
        pf: str | None = None,
    ) -> str:
        """
        Make a function in its parent's directory; its own, relative to sys.

        Raises:
            FullError: there are as many as wanted.
        """
        if self.functions == self.wanted:
            raise FullError
        self.functions += 1
        name = f"{self.domain:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"
        path = f"{parent}/{name}"
        (self.sys / path).mkdir()
        self._attributes(path, name, what)
        self._link(path, name, "driver", what.driver and f"bus/pci/drivers/{what.driver}")
        self._link(path, name, "iommu_group", f"kernel/iommu_groups/{group}", "devices/")
        self._link(path, name, "subsystem", "bus/pci", "devices/")
        if pf:
            (self.sys / path / "physfn").symlink_to(f"../{pf.rpartition('/')[2]}")
        return path

    def _attributes(self, path: str, name: str, what: Identity) -> None:
        vendor, device, class_, driver = what
        modalias = (
            f"pci:v{vendor:08X}d{device:08X}sv{vendor:08X}sd{1:08X}"
            f"bc{class_ >> 16:02X}sc{class_ >> 8 & 0xFF:02X}i{class_ & 0xFF:02X}"
        )
        bound = f"DRIVER={driver}\n" if driver else ""
        contents = {
            "vendor": f"0x{vendor:04x}",
            "device": f"0x{device:04x}",
            "subsystem_vendor": f"0x{vendor:04x}",
            "subsystem_device": "0x0001",
            "class": f"0x{class_:06x}",
            "revision": "0x01",
            "modalias": modalias,
            "driver_override": "(null)",
            "numa_node": f"{self.domain & 1}",
            "uevent": f"{bound}PCI_CLASS={class_:X}\nPCI_SLOT_NAME={name}\nMODALIAS={modalias}",
            "config": "",
        }
        for attribute, text in contents.items():
            (self.sys / path / attribute).write_text(text + "\n")

    def _link(self, path: str, name: str, link: str, to: str | None, back: str = "") -> None:
        """Link a function to what it belongs to, and back, as the kernel does."""
        if to is None:
            return
        (self.sys / to / back).mkdir(parents=True, exist_ok=True)
        (self.sys / path / link).symlink_to("../" * (path.count("/") + 1) + to)
        up = "../" * (f"{to}/{back}".rstrip("/").count("/") + 1)
        (self.sys / to / back / name).symlink_to(up + path)

    def add_vfs(self, parent: str, bus: int, devfn: int, pf: str, count: int) -> None:
        """Make a PF's VFs one after the other from devfn on."""
        for number in range(count):
            chance = self.random.random()
            driver = "vfio-pci" if chance < 0.6 else "mlx5_core" if chance < 0.9 else None
            what = NIC_VF._replace(driver=driver)
            vf = self.add(parent, bus, devfn + number, what, self.add_group(), pf=pf)
            (self.sys / pf / f"virtfn{number}").symlink_to(f"../{vf.rpartition('/')[2]}")


def add_nic(tree: Tree, parent: str, bus: int, pfs: int, vfs: int) -> int:
    """Add a card whose PFs come first, then the VFs of each."""
    paths = [tree.add(parent, bus, f, NIC_PF, tree.add_group()) for f in range(pfs)]
    for number, pf in enumerate(paths):
        for name, text in (("totalvfs", vfs), ("numvfs", vfs), ("stride", 1)):
            (tree.sys / pf / f"sriov_{name}").write_text(f"{text}\n")
        first = pfs + number * vfs
        (tree.sys / pf / "sriov_offset").write_text(f"{first - number}\n")
        tree.add_vfs(parent, bus, first, pf, vfs)
    return bus


def add_switch(tree: Tree, parent: str, bus: int, group: int) -> int:
    """Add a switch with a drive behind each of its four ports; its last bus."""
    up = tree.add(parent, bus, 0, SWITCH_PORT, group)
    for port in range(4):
        down = tree.add(up, bus + 1, port << 3, SWITCH_PORT, group)
        tree.add(down, bus + 2 + port, 0, NVME, group)
    return bus + 5


def add_card(tree: Tree, kind: str, parent: str, bus: int) -> int:
    """Add a card on a bus; the last bus it took."""
    if kind == "nic2x63":
        return add_nic(tree, parent, bus, 2, 63)
    if kind == "nic127":
        return add_nic(tree, parent, bus, 1, 127)
    group = tree.add_group()
    if kind == "switch":
        return add_switch(tree, parent, bus, group)
    functions = {"nvme": [NVME], "gpu": [GPU, GPU_AUDIO], "quad": [QUAD_PORT] * 4}[kind]
    for number, what in enumerate(functions):
        tree.add(parent, bus, number, what, group)
    return bus


def add_domain(tree: Tree, cards: tuple[str, ...], first_card: int) -> int:
    """Add a host bridge and cards behind its root ports; the number of the next card."""
    top = f"devices/pci{tree.domain:04x}:00"
    (tree.sys / top).mkdir()
    tree.add(top, 0, 0, HOST_BRIDGE, tree.add_group())
    bus, card = 1, first_card
    for devfn in ROOT_PORTS:
        if bus > LAST_BUS:
            break
        port = tree.add(top, 0, devfn, ROOT_PORT, tree.add_group())
        bus = add_card(tree, cards[card % len(cards)], port, bus) + 1
        card += 1
    return card


def make_tree(
    top: Path, functions: int, *, seed: int = 1, cards: tuple[str, ...] = SRIOV_CARDS
) -> Tree:
    """
    Make ``top/sys`` with that many functions.

    Args:
        cards: dealt one after the other; PLAIN_CARDS makes a host without VFs.
    """
    tree = Tree(top, functions, seed)
    card = 0
    try:
        while True:
            card = add_domain(tree, cards, card)
            tree.domain += 1
    except FullError:
        return tree


def main() -> None:
    """Make the tree the arguments ask for."""
    top, functions, *seed = sys.argv[1:]
    os.umask(0o022)
    make_tree(Path(top), int(functions), seed=int(seed[0]) if seed else 1)


if __name__ == "__main__":
    main()
