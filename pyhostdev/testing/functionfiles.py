# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The sysfs directory of one described function: attributes, links, and its entries on the bus and in its group.

Source: Documentation/ABI/testing/sysfs-bus-pci; the attributes of a function and their form were measured on
Linux 6.1
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.testing.configspace import apply_patches, build_config, read_dump
from pyhostdev.testing.simdevice import UNSET_OVERRIDE, SimDevice
from pyhostdev.util import pciregs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyhostdev.testing.hostspec import FunctionSpec
    from pyhostdev.testing.tree import Tree


def modalias(spec: FunctionSpec) -> str:
    """Return the text that the patterns of modules.alias are matched against."""
    vendor, device = spec.subsystem or (spec.vendor, spec.device)
    base, sub, interface = spec.class_ >> 16, spec.class_ >> 8 & 0xFF, spec.class_ & 0xFF
    return (
        f"pci:v{spec.vendor:08X}d{spec.device:08X}sv{vendor:08X}sd{device:08X}bc{base:02X}sc{sub:02X}i{interface:02X}"
    )


def _uevent(spec: FunctionSpec) -> str:
    vendor, device = spec.subsystem or (spec.vendor, spec.device)
    return (
        f"PCI_CLASS={spec.class_:X}\n"
        f"PCI_ID={spec.vendor:04X}:{spec.device:04X}\n"
        f"PCI_SUBSYS_ID={vendor:04X}:{device:04X}\n"
        f"PCI_SLOT_NAME={spec.address}\n"
        f"MODALIAS={modalias(spec)}\n"
    )


def reset_methods(spec: FunctionSpec, *, alone: bool) -> list[str]:
    """
    Return the names in ``reset_method``.

    Args:
        alone: the bus was otherwise empty when the kernel found the function.

    Source: pci_reset_fn_methods (drivers/pci/pci.c), Linux 6.1
    """
    if spec.bridge is not None:
        return []
    has = {"flr": spec.flr, "af_flr": spec.af, "pm": spec.pm == "on", "bus": alone}
    return [name for name, there in has.items() if there]


def _identity(spec: FunctionSpec) -> dict[str, str]:
    vendor, device = spec.subsystem or (spec.vendor, spec.device)
    return {
        "vendor": f"0x{spec.vendor:04x}",
        "device": f"0x{spec.device:04x}",
        "subsystem_vendor": f"0x{vendor:04x}",
        "subsystem_device": f"0x{device:04x}",
        "class": f"0x{spec.class_:06x}",
        "revision": f"0x{spec.revision:02x}",
        "numa_node": f"{spec.numa_node}",
        "modalias": modalias(spec),
        "enable": "0",
        "power_state": "unknown",
        "irq": "0",
        "resource": "\n".join(["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 13),
    }


def _sriov(spec: FunctionSpec, numvfs: int) -> dict[str, str]:
    return {
        "sriov_totalvfs": f"{spec.sriov}",
        "sriov_numvfs": f"{numvfs}",
        "sriov_offset": f"{spec.vf_offset}",
        "sriov_stride": f"{spec.vf_stride}",
        "sriov_vf_device": f"{spec.vf_device:x}",
        "sriov_drivers_autoprobe": f"{spec.autoprobe}",
    }


def attributes(spec: FunctionSpec, *, numvfs: int, ari: bool, alone: bool) -> dict[str, str]:
    """Return the text attributes of an unbound function."""
    found = {name: f"{text}\n" for name, text in _identity(spec).items()}
    found |= {"uevent": _uevent(spec), "remove": "", "rescan": ""}
    if spec.express is not None:
        found["ari_enabled"] = f"{int(ari)}\n"
    methods = reset_methods(spec, alone=alone)
    if methods:
        found |= {"reset": "", "reset_method": " ".join(methods) + "\n"}
    if spec.class_ >> 16 == pciregs.CLASS_DISPLAY:
        found["boot_vga"] = f"{int(spec.boot_vga)}\n"
    if spec.sriov is not None:
        found |= {name: f"{text}\n" for name, text in _sriov(spec, numvfs).items()}
    return found


def config_space(spec: FunctionSpec, directory: str, *, numvfs: int) -> bytes:
    """
    Return the function's configuration space, from its dump if it names one.

    Host: reads ``directory/NAME.hex``
    """
    if spec.dump is None:
        return build_config(spec, numvfs=numvfs)
    return apply_patches(read_dump(directory, spec.dump), spec)


def put_function(
    tree: Tree,
    spec: FunctionSpec,
    place: str,
    *,
    directory: str = "",
    numvfs: int = 0,
    ari: bool = False,
    alone: bool = False,
) -> SimDevice:
    """
    Create a function's directory in ``place`` and list it on the bus; put_in_group() adds it to its group.

    Host: writes ``sys/devices``, ``sys/bus/pci/devices``
    """
    path = os.path.join(place, str(spec.address))
    tree.make_dirs(path, exist_ok=False)
    tree.put_file(os.path.join(path, "config"), config_space(spec, directory, numvfs=numvfs))
    override = UNSET_OVERRIDE if spec.override is None else f"{spec.override}\n".encode()
    tree.put_file(os.path.join(path, "driver_override"), override)
    for name, text in attributes(spec, numvfs=numvfs, ari=ari, alone=alone).items():
        tree.put_file(os.path.join(path, name), text.encode())
    tree.put_link(os.path.join(path, "subsystem"), tree.root.pci_bus)
    put_on_bus(tree, path)
    return SimDevice(tree, spec.address)


def put_on_bus(tree: Tree, path: str) -> None:
    """List a device's directory on the bus."""
    tree.make_dirs(tree.root.pci_devices)
    tree.put_link(os.path.join(tree.root.pci_devices, os.path.basename(path)), path)


def put_in_group(tree: Tree, path: str, group: int, *, kind: str = "DMA") -> None:
    """List a device's directory in an IOMMU group; a new group gets its type."""
    members = tree.root.iommu_group_devices(group)
    top = os.path.dirname(members)
    if not tree.is_directory(members):
        tree.make_dirs(members)
        tree.put_file(os.path.join(top, "type"), f"{kind}\n".encode())
        tree.put_file(os.path.join(top, "reserved_regions"), b"")
    tree.put_link(os.path.join(members, os.path.basename(path)), path)
    tree.put_link(os.path.join(path, "iommu_group"), top)


def link_virtual_functions(pf: SimDevice, vfs: Iterable[SimDevice]) -> None:
    """Create the links between a PF and its VFs, in the order of their index."""
    for index, vf in enumerate(vfs):
        pf.tree.put_link(pf.join(f"virtfn{index}"), vf.path)
        pf.tree.put_link(vf.join("physfn"), pf.path)
