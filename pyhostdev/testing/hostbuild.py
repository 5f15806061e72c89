# SPDX-License-Identifier: LGPL-2.1-or-later
"""
From a description to a directory that looks like a host: sys, proc, dev and lib/modules.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.testing.drivercore import DriverCore
from pyhostdev.testing.driverfiles import put_driver, put_modules
from pyhostdev.testing.functionfiles import link_virtual_functions, put_function, put_in_group
from pyhostdev.testing.kernelstate import KernelState, StateFile
from pyhostdev.testing.procfiles import put_proc
from pyhostdev.testing.simdevice import SimDevice, put_file, put_link

if TYPE_CHECKING:
    from pyhostdev.testing.hostspec import FunctionSpec, HostSpec, MemberSpec
    from pyhostdev.util.hostroot import HostRoot


def build_host(root: HostRoot, host: HostSpec) -> None:
    """
    Make the whole tree and its kernel's state.

    Raises:
        FileExistsError: the directory holds a host already.
    """
    _put_bus(root, host)
    for spec in host.functions.values():
        put_described(root, host, spec)
    for spec in host.functions.values():
        link_described(root, host, spec)
    for member in host.members:
        _put_member(root, host, member)
    put_proc(root, host)
    put_modules(root, host)
    state = KernelState()
    state.described = True
    state.drivers = dict(host.drivers)
    core = DriverCore(root, state)
    for spec in host.functions.values():
        bind_described(core, spec)
    StateFile(root).save(state)


def _put_bus(root: HostRoot, host: HostSpec) -> None:
    for directory in (root.pci_devices, root.pci_drivers, root.iommu_groups):
        os.makedirs(directory)
    for name in ("module", "class/net", "class/block", "dev/block"):
        os.makedirs(root.join("sys", name))
    put_file(root.drivers_probe, b"")
    put_file(root.join("sys/bus/pci/rescan"), b"")
    put_file(root.join("sys/bus/pci/drivers_autoprobe"), b"1\n")
    for spec in host.drivers.values():
        if spec.availability == "loaded":
            put_driver(root, spec)


def _place(root: HostRoot, host: HostSpec, spec: FunctionSpec) -> str:
    """Return the directory that a function's own lies in."""
    above = host.bridge_above(spec)
    if above is not None:
        return os.path.join(_place(root, host, above), str(above.address))
    top = spec if spec.physfn is None else host.functions[spec.physfn]
    bus = f"pci{top.address.domain:04x}:{top.address.bus:02x}"
    maker = host.domain_maker(top.address.domain)
    if maker is not None:
        return os.path.join(_place(root, host, maker), str(maker.address), bus)
    return root.join("sys/devices", bus)


def put_described(root: HostRoot, host: HostSpec, spec: FunctionSpec) -> SimDevice:
    """Make one function's directory; links to VFs and the driver come after all functions."""
    above = host.bridge_above(spec)
    device = put_function(
        root,
        spec,
        _place(root, host, spec),
        directory=host.directory,
        numvfs=len(host.virtual_functions(spec)),
        # the bus that the kernel adds for VFs beyond the PF's has no bridge of its own
        ari=above is not None and above.ari and above.bridge_to(spec.address.bus),
        alone=above is not None and spec.physfn is None and host.is_first_on_bus(spec),
    )
    if spec.group is not None:
        put_in_group(root, device.path, spec.group, kind=host.group_type(spec.group))
    return device


def link_described(root: HostRoot, host: HostSpec, spec: FunctionSpec) -> None:
    """Make the links between a PF and its described VFs."""
    vfs = [SimDevice(root, vf.address) for vf in host.virtual_functions(spec)]
    link_virtual_functions(SimDevice(root, spec.address), vfs)


def bind_described(core: DriverCore, spec: FunctionSpec) -> None:
    """Put a function on the driver its line names, with what that driver makes below it."""
    if spec.driver is None:
        return
    device = SimDevice(core.root, spec.address)
    for name in spec.net:
        os.makedirs(device.join("net", name))
        put_file(device.join("net", name, "uevent"), f"INTERFACE={name}\n".encode())
    for name in spec.block:
        os.makedirs(device.join("block", name))
        number = len(os.listdir(core.root.join("sys/class/block")))
        put_file(device.join("block", name, "dev"), f"259:{number}\n".encode())
        put_file(device.join("block", name, "uevent"), f"DEVNAME={name}\n".encode())
    core.settle_on(device, spec.driver)


def _put_member(root: HostRoot, host: HostSpec, member: MemberSpec) -> None:
    path = root.join("sys/devices/platform", member.name)
    os.makedirs(path)
    put_in_group(root, path, member.group, kind=host.group_type(member.group))
    if member.driver is not None:
        driver = root.join("sys/bus/platform/drivers", member.driver)
        os.makedirs(driver, exist_ok=True)
        put_link(os.path.join(path, "driver"), driver)
