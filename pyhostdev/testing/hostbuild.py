# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Builds a directory that looks like a host from a description: sys, proc, dev and lib/modules.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.testing.drivercore import DriverCore
from pyhostdev.testing.driverfiles import put_driver, put_modules
from pyhostdev.testing.functionfiles import link_virtual_functions, put_function, put_in_group
from pyhostdev.testing.kernelstate import KernelState, StateFile
from pyhostdev.testing.procfiles import put_proc
from pyhostdev.testing.simdevice import SimDevice
from pyhostdev.testing.topology import Topology
from pyhostdev.testing.tree import Tree
from pyhostdev.testing.treeimage import Image, read_image, write_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.testing.hostspec import FunctionSpec, HostSpec, MemberSpec
    from pyhostdev.util.hostroot import HostRoot


_IMAGES: dict[str, Image] = {}  # by description, the latest last
_IMAGES_MAX = 32


def build_once(root: HostRoot, host: HostSpec) -> None:
    """
    Create the tree of a host that was just read; a process builds each description once and then copies the tree.

    Raises:
        FileExistsError: the directory already holds a host.
    """
    os.makedirs(root.path, exist_ok=True)
    is_empty = not os.listdir(root.path)
    if is_empty and host.text in _IMAGES:
        write_image(root.path, _IMAGES[host.text])
        return
    build_host(root, host)
    if is_empty:
        _IMAGES[host.text] = read_image(root.path)
        if len(_IMAGES) > _IMAGES_MAX:
            del _IMAGES[next(iter(_IMAGES))]


def build_host(root: HostRoot, host: HostSpec) -> None:
    """
    Create the whole tree and the state of its kernel.

    Raises:
        FileExistsError: the directory already holds a host.
    """
    os.makedirs(root.path, exist_ok=True)
    with Tree(root) as tree:
        _build(tree, host)


def _build(tree: Tree, host: HostSpec) -> None:
    _put_bus(tree, host)
    topology = Topology(host)
    for spec in _from_the_top(topology):
        put_described(tree, topology, spec)
    for spec in host.functions.values():
        link_described(tree, topology, spec)
    for member in host.members:
        _put_member(tree, host, member)
    put_proc(tree, host)
    put_modules(tree, host)
    state = KernelState()
    state.described = True
    state.drivers = dict(host.drivers)
    state.vfio_free = [0]
    core = DriverCore(tree, state)
    for spec in host.functions.values():
        bind_described(core, spec)
    StateFile(tree.root).save(tree, state)


def _put_bus(tree: Tree, host: HostSpec) -> None:
    root = tree.root
    for directory in (root.pci_devices, root.pci_drivers, root.iommu_groups):
        tree.make_dirs(directory, exist_ok=False)
    for name in ("module", "class/net", "class/block", "dev/block"):
        tree.make_dirs(root.join("sys", name), exist_ok=False)
    tree.put_file(root.drivers_probe, b"")
    tree.put_file(root.join("sys/bus/pci/rescan"), b"")
    tree.put_file(root.join("sys/bus/pci/drivers_autoprobe"), b"1\n")
    for spec in host.drivers.values():
        if spec.availability == "loaded":
            put_driver(tree, spec)


def _from_the_top(topology: Topology) -> Iterator[FunctionSpec]:
    """Yield the functions in the order of their lines, but each after the one whose directory it is in."""
    made = set()
    for described in topology.host.functions.values():
        spec: FunctionSpec | None = described
        chain = []
        while spec is not None and spec.address not in made:
            made.add(spec.address)
            chain.append(spec)
            spec = topology.bridge_above(spec) or topology.domain_maker(spec.address.domain)
        yield from reversed(chain)


def _place(root: HostRoot, topology: Topology, spec: FunctionSpec) -> str:
    """Return the directory that a function's own lies in."""
    above = topology.bridge_above(spec)
    if above is not None:
        return os.path.join(_place(root, topology, above), str(above.address))
    top = spec if spec.physfn is None else topology.host.functions[spec.physfn]
    bus = f"pci{top.address.domain:04x}:{top.address.bus:02x}"
    maker = topology.domain_maker(top.address.domain)
    if maker is not None:
        return os.path.join(_place(root, topology, maker), str(maker.address), bus)
    return root.join("sys/devices", bus)


def put_described(tree: Tree, topology: Topology, spec: FunctionSpec) -> SimDevice:
    """Make one function's directory; links to VFs and the driver come after all functions."""
    above = topology.bridge_above(spec)
    device = put_function(
        tree,
        spec,
        _place(tree.root, topology, spec),
        directory=topology.host.directory,
        numvfs=len(topology.virtual_functions(spec)),
        # a bus that the kernel adds for further VFs of a PF has no bridge
        ari=above is not None and above.ari and above.bridge_to(spec.address.bus),
        alone=above is not None and spec.physfn is None and topology.is_first_on_bus(spec),
    )
    if spec.group is not None:
        put_in_group(tree, device.path, spec.group, kind=topology.host.group_type(spec.group))
    return device


def link_described(tree: Tree, topology: Topology, spec: FunctionSpec) -> None:
    """Make the links between a PF and its described VFs."""
    vfs = [SimDevice(tree, vf.address) for vf in topology.virtual_functions(spec)]
    link_virtual_functions(SimDevice(tree, spec.address), vfs)


def bind_described(core: DriverCore, spec: FunctionSpec) -> None:
    """Bind a function to the driver in its description, and create that driver's directories below it."""
    if spec.driver is None:
        return
    tree = core.tree
    device = SimDevice(tree, spec.address)
    for name in spec.net:
        tree.make_dirs(device.join("net", name))
        tree.put_file(device.join("net", name, "uevent"), f"INTERFACE={name}\n".encode())
    for name in spec.block:
        tree.make_dirs(device.join("block", name))
        number = len(tree.list_dir(core.root.class_block))
        tree.put_file(device.join("block", name, "dev"), f"259:{number}\n".encode())
        tree.put_file(device.join("block", name, "uevent"), f"DEVNAME={name}\n".encode())
    core.bind_as_described(device, spec.driver)


def _put_member(tree: Tree, host: HostSpec, member: MemberSpec) -> None:
    path = tree.root.join("sys/devices/platform", member.name)
    tree.make_dirs(path, exist_ok=False)
    put_in_group(tree, path, member.group, kind=host.group_type(member.group))
    if member.driver is not None:
        driver = tree.root.join("sys/bus/platform/drivers", member.driver)
        tree.make_dirs(driver)
        tree.put_link(os.path.join(path, "driver"), driver)
