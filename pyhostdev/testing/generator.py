# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Synthetic hosts of any size: cards of realistic shape behind root ports, in as many domains as needed.

    FakeHost(synthetic_host(200, seed=7), directory)     # small: includes a kernel that reacts
    make_tree(directory, 50000)                          # large: the part of sysfs that is read
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from pyhostdev.testing.driverspec import DriverSpec, driver_kind
from pyhostdev.testing.hostspec import EXPRESS_KINDS, FunctionSpec, HostSpec
from pyhostdev.testing.sysfstree import SysfsTree
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

SRIOV_CARDS = ("nic2x63", "nvme", "gpu", "nic127", "quad", "nvme", "switch")
PLAIN_CARDS = ("nvme", "gpu", "quad", "switch")
LAST_BUS = 240
ROOT_PORTS = range(0x08, 0x80)  # as slot and function

_ENDPOINT = EXPRESS_KINDS["endpoint"]
_NOWHERE = PCIDeviceAddress(0, 0, 0, 0)


def _kind(vendor: int, device: int, class_: int, driver: str | None, **fields: object) -> FunctionSpec:
    """Return a function without an address."""
    return FunctionSpec(_NOWHERE, vendor, device, class_, driver, **fields)  # type: ignore[arg-type]


def _port(vendor: int, device: int, express: str) -> FunctionSpec:
    return _kind(vendor, device, 0x060400, "pcieport", express=EXPRESS_KINDS[express], acs="on")


HOST_BRIDGE = _kind(0x8086, 0x29C0, 0x060000, None)
ROOT_PORT = _port(0x8086, 0x2030, "root-port")._replace(multifunction=True)
SWITCH_UP = _port(0x10B5, 0x8747, "upstream-port")._replace(acs=None)
SWITCH_DOWN = _port(0x10B5, 0x8747, "downstream-port")._replace(acs=None)
NVME = _kind(0x144D, 0xA808, 0x010802, "nvme", express=_ENDPOINT, flr=True)
GPU = _kind(0x10DE, 0x2231, 0x030000, "vfio-pci", express=_ENDPOINT, multifunction=True)
GPU_AUDIO = _kind(0x10DE, 0x1AEF, 0x040300, "vfio-pci", express=_ENDPOINT, multifunction=True)
QUAD_PORT = _kind(0x8086, 0x1521, 0x020000, "igb", express=_ENDPOINT, flr=True, multifunction=True)
NIC_PF = _kind(0x15B3, 0x101D, 0x020000, "mlx5_core", express=_ENDPOINT, flr=True, ari=True)
NIC_VF = _kind(0x15B3, 0x101E, 0x020000, None, express=_ENDPOINT, flr=True, nodriver=True)

DRIVERS = (
    ("pcieport", "class:0604"),
    ("nvme", "class:010802"),
    ("igb", "8086:1521"),
    ("mlx5_core", "15b3:101d", "15b3:101e"),
    ("vfio-pci",),
)


class _Layout:
    """A host under construction: the position of the next card, and the groups in use."""

    def __init__(self, seed: int, cards: Sequence[str]) -> None:
        self.random = random.Random(seed)
        self.cards = itertools.cycle(cards)
        self.groups = itertools.count()
        self.domain = 0

    def functions(self) -> Iterator[FunctionSpec]:
        """Yield functions without end, a bridge before the functions behind it."""
        for self.domain in itertools.count():
            yield self._place(HOST_BRIDGE, 0, 0)
            bus = 1
            for devfn in ROOT_PORTS:
                if bus > LAST_BUS:
                    break
                group = next(self.groups)
                card = _CARDS[next(self.cards)](self, bus)
                last = max(spec.address.bus for spec in card)
                port = ROOT_PORT._replace(bridge=(bus, last), ari=card[0].ari)
                yield self._place(port, 0, devfn, group)
                yield from card
                bus = last + 1

    def _place(self, kind: FunctionSpec, bus: int, devfn: int, group: int | None = None) -> FunctionSpec:
        return kind._replace(
            address=PCIDeviceAddress(self.domain, bus, devfn >> 3, devfn & 7),
            group=next(self.groups) if group is None else group,
            numa_node=self.domain & 1,
        )

    def endpoints(self, bus: int, *kinds: FunctionSpec) -> list[FunctionSpec]:
        """Return a card whose functions share one group."""
        group = next(self.groups)
        return [self._place(kind, bus, devfn, group) for devfn, kind in enumerate(kinds)]

    def nic(self, bus: int, pfs: int, vfs: int) -> list[FunctionSpec]:
        """Return a card with its PFs first, then the VFs of each; every function has its own group."""
        pf = NIC_PF._replace(sriov=vfs, vf_device=NIC_VF.device, multifunction=pfs > 1)
        card = []
        for number in range(pfs):
            offset = pfs + number * (vfs - 1)  # counted from the PF itself
            card.append(self._place(pf._replace(vf_offset=offset), bus, number))
        for parent in tuple(card):
            first = parent.address.devfn + parent.vf_offset
            card += [self._vf(parent, bus, first + number) for number in range(vfs)]
        return card

    def _vf(self, parent: FunctionSpec, bus: int, devfn: int) -> FunctionSpec:
        chance = self.random.random()
        driver = "vfio-pci" if chance < 0.6 else "mlx5_core" if chance < 0.9 else None
        kind = NIC_VF._replace(driver=driver, nodriver=driver is None, physfn=parent.address)
        return self._place(kind, bus, devfn)

    def switch(self, bus: int) -> list[FunctionSpec]:
        """Return a switch with a drive behind each of its four ports, all in one group because it lacks ACS."""
        group = next(self.groups)
        card = [self._place(SWITCH_UP._replace(bridge=(bus + 1, bus + 5)), bus, 0, group)]
        for port in range(4):
            behind = bus + 2 + port
            down = SWITCH_DOWN._replace(bridge=(behind, behind))
            card.append(self._place(down, bus + 1, port << 3, group))
            card.append(self._place(NVME, behind, 0, group))
        return card


_CARDS: dict[str, Callable[[_Layout, int], list[FunctionSpec]]] = {
    "nic2x63": lambda layout, bus: layout.nic(bus, 2, 63),
    "nic127": lambda layout, bus: layout.nic(bus, 1, 127),
    "nvme": lambda layout, bus: layout.endpoints(bus, NVME),
    "gpu": lambda layout, bus: layout.endpoints(bus, GPU, GPU_AUDIO),
    "quad": lambda layout, bus: layout.endpoints(bus, *[QUAD_PORT] * 4),
    "switch": lambda layout, bus: layout.switch(bus),
}


def synthetic_host(functions: int, *, seed: int = 1, cards: Sequence[str] = SRIOV_CARDS) -> HostSpec:
    """
    Describe a host with exactly this many functions; the same arguments give the same host.

    Args:
        cards: used in turn; PLAIN_CARDS gives a host without VFs.
    """
    host = HostSpec(f"synthetic-{functions}")
    for name, *ids in DRIVERS:
        module = None if name == "pcieport" else name.replace("-", "_")
        host.drivers[name] = DriverSpec(name, tuple(ids), driver_kind(name), module)
    for spec in itertools.islice(_Layout(seed, cards).functions(), functions):
        host.functions[spec.address] = spec
    return host


def make_tree(
    directory: str | os.PathLike[str],
    functions: int,
    *,
    seed: int = 1,
    cards: Sequence[str] = SRIOV_CARDS,
) -> HostSpec:
    """
    Create the ``sys`` of such a host in a directory, as far as it is read: fast, without a kernel that reacts.

    Raises:
        FileExistsError: the directory already has a ``sys``.
    """
    host = synthetic_host(functions, seed=seed, cards=cards)
    SysfsTree(directory).write(host)
    return host
