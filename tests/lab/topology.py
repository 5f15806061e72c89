# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The PCI devices of the lab's host, as QEMU's ``-device`` words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EARLIER_SLOT = 1
NIC_SLOT = 4
NVME_SLOT = 5
IGB_SLOT = 0xA
VIRTIO_SLOT = 0xB
USB_SLOT = 0xC
FARM_SLOTS = range(8, 0x1F)  # of pcie.0; what is below is taken
NIC_FUNCTIONS = 4
DISK = "disk"  # name of what is behind a namespace


class TooManyFunctionsError(Exception):
    """The root complex has no slot left for another root port."""


def device(driver: str, **properties: object) -> str:
    """Return one ``-device`` value; QEMU reads the slot and function of addr as hexadecimal."""
    return ",".join([driver, *(f"{key}={value}" for key, value in properties.items())])


def _function(number: int) -> dict[str, str]:
    """Function 0 announces that there are others."""
    return {"multifunction": "on"} if number == 0 else {}


def _ports_of(model: str, bus: str, slot: int, card: int = 0) -> list[str]:
    return [
        device(
            model, id=f"nic{card or ''}{number}", bus=bus, addr=f"{slot:x}.{number}", **_function(number),
            mac=f"52:54:00:00:{card:02x}:{number:02x}",
        )
        for number in range(NIC_FUNCTIONS)
    ]  # fmt: skip


def _nic_root_port() -> str:
    return device("pcie-root-port", id="rpnic", bus="pcie.0", chassis=NIC_SLOT, addr=NIC_SLOT)


def onegroup(model: str) -> list[str]:
    """One IOMMU group of four: the root port has ACS, the functions behind it do not."""
    return [_nic_root_port(), *_ports_of(model, "rpnic", 0)]


def bridge(model: str) -> list[str]:
    """Four functions on a conventional bus: their group holds the bridge too."""
    bridged = device("pcie-pci-bridge", id="pcibr", bus="rpnic", addr="0.0")
    return [_nic_root_port(), bridged, *_ports_of(model, "pcibr", 1)]


def acs(model: str) -> list[str]:
    """
    Four groups of one: endpoints of Intel's root complexes count as isolated.

    Source: pci_dev_specific_acs_enabled (kernel, drivers/pci/quirks.c)
    """
    return _ports_of(model, "pcie.0", NIC_SLOT)


def ports(model: str) -> list[str]:
    """Four cards of one function, each behind a root port of its own."""
    devices = []
    for number in range(NIC_FUNCTIONS):
        port = device(
            "pcie-root-port", id=f"rpnic{number}", bus="pcie.0", chassis=NIC_SLOT + number,
            addr=f"{NIC_SLOT:x}.{number}", **_function(number),
        )  # fmt: skip
        mac = f"52:54:00:00:00:{number:02x}"
        devices += [port, device(model, id=f"nic{number}", bus=f"rpnic{number}", mac=mac)]
    return devices


def earlier(model: str) -> list[str]:
    """A card of the same model behind a root port below the card's slot: firmware gives it the first bus number."""
    port = device("pcie-root-port", id="rpearlier", bus="pcie.0", chassis=1, addr=EARLIER_SLOT)
    return [port, *_ports_of(model, "rpearlier", 0, card=1)]


def no_nic(model: str) -> list[str]:
    """A host without the card."""
    return []


NICS: dict[str, Callable[[str], list[str]]] = {
    "onegroup": onegroup,
    "bridge": bridge,
    "acs": acs,
    "ports": ports,
    "none": no_nic,
}


def nvme(vfs: int) -> list[str]:
    """An NVMe controller with up to this many virtual functions; none for 0."""
    if vfs == 0:
        return []
    controller = device(
        "nvme", id="nvme0", serial="lab0", bus="rpnvme", subsys="subsys0",
        max_ioqpairs=2 + 2 * vfs, msix_qsize=3 + vfs,
        sriov_max_vfs=vfs, sriov_vq_flexible=2 * vfs, sriov_vi_flexible=vfs,
    )  # fmt: skip
    port = device("pcie-root-port", id="rpnvme", bus="pcie.0", chassis=2, addr=NVME_SLOT)
    return [port, device("nvme-subsys", id="subsys0"), controller]


def disk() -> list[str]:
    """An NVMe controller with a namespace that other controllers of its subsystem could reach too."""
    port = device("pcie-root-port", id="rpdisk", bus="pcie.0", chassis=2, addr=NVME_SLOT)
    controller = device("nvme", id="nvme0", serial="lab0", bus="rpdisk", subsys="subsys0")
    return [port, device("nvme-subsys", id="subsys0"), controller, device("nvme-ns", drive=DISK, shared="on")]


def igb() -> list[str]:
    """A network card whose model has seven virtual functions, and keeps their MAC and VLAN in its PF."""
    port = device("pcie-root-port", id="rpigb", bus="pcie.0", chassis=IGB_SLOT, addr=f"{IGB_SLOT:x}")
    return [port, device("igb", id="igb0", bus="rpigb", addr="0.0", mac="52:54:00:00:01:00")]


def usb() -> list[str]:
    """A USB controller with a tablet."""
    controller = device("qemu-xhci", id="xhci", bus="pcie.0", addr=f"{USB_SLOT:x}")
    return [controller, device("usb-tablet", id="tablet", bus="xhci.0")]


def virtio_sriov(vfs: int) -> list[str]:
    """A virtio network card with virtual functions, which a variant driver knows; QEMU wants them before their PF."""
    port = device("pcie-root-port", id="rpvio", bus="pcie.0", chassis=VIRTIO_SLOT, addr=f"{VIRTIO_SLOT:x}")
    functions = [
        device(
            "virtio-net-pci", id=f"vio{number}", bus="rpvio", addr=f"0.{number}", iommu_platform="on",
            mac=f"52:54:00:00:02:{number:02x}", **({"sriov-pf": "vio0"} if number else {}),
        )
        for number in range(vfs, -1, -1)
    ]  # fmt: skip
    return [port, *functions]


def others() -> list[str]:
    """A device without a driver, and one with a small driver."""
    return [device("edu", bus="pcie.0", addr=6), device("pvpanic-pci", bus="pcie.0", addr=7)]


def _farm_ports() -> Iterator[tuple[int, int]]:
    return ((slot, function) for slot in FARM_SLOTS for function in range(8))


def farm(total: int, model: str, shape: str) -> list[str]:
    """
    Many functions of a cheap device, below root ports of pcie.0.

    Shapes: "pcie" is groups of 8; "conv" is conventional buses of 248 and their bridge, which share
    one address space in QEMU's IOMMU (pcie groups cost memory by the square of their number);
    "mixed" is 64 functions as pcie, the rest as conv.

    Raises:
        TooManyFunctionsError: they need more root ports than there are.
    """
    express = {"pcie": total, "conv": 0, "mixed": min(total, 64)}[shape]
    places = _farm_ports()
    devices: list[str] = []
    done = 0
    while done < total:
        place = next(places, None)
        if place is None:
            raise TooManyFunctionsError(f"{total} functions of shape {shape} find no root port")
        number = min(8 if done < express else 31 * 8, total - done)
        devices += _farm_bus(place, number, model, conventional=done >= express)
        done += number
    return devices


def _farm_bus(place: tuple[int, int], number: int, model: str, *, conventional: bool) -> list[str]:
    slot, function = place
    name = f"{slot}_{function}"
    port = device(
        "pcie-root-port", id=f"fp{name}", bus="pcie.0", chassis=slot * 8 + function, hotplug="off",
        addr=f"{slot:x}.{function}", **_function(function),
    )  # fmt: skip
    if not conventional:
        return [port, *_farm_functions(f"fp{name}", 0, number, model)]
    bridged = device("pcie-pci-bridge", id=f"fc{name}", bus=f"fp{name}", addr="0.0")
    return [port, bridged, *_farm_functions(f"fc{name}", 1, number, model)]


def _farm_functions(bus: str, first_slot: int, number: int, model: str) -> list[str]:
    """A conventional bus has its bridge's hot-plug controller in slot 0, so it starts at 1."""
    return [device(model, bus=bus, addr=f"{first_slot + n // 8:x}.{n % 8}", **_function(n % 8)) for n in range(number)]
