# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Functions that leave the bus and come back: surprise removal, ``remove`` and ``rescan``.

A function that comes back is a new kernel object at the old address: with a new directory, no override, no VFs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.testing.answers import Blocked
from pyhostdev.testing.functionfiles import put_in_group, put_on_bus
from pyhostdev.testing.kernelstate import REMOVED
from pyhostdev.testing.simdevice import (
    UNSET_OVERRIDE,
    SimDevice,
    find_device,
    list_devices,
)
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.testing.protocols import Bus


Above = tuple["PCIDeviceAddress", ...]  # the functions being removed, outermost first


def _dependents(core: Bus, device: SimDevice, above: Above) -> Iterator[SimDevice]:
    """Yield the existing VFs of a PF and the functions behind a bridge; a bad tree may put a bridge behind itself."""
    vfs = device.virtual_functions
    behind = [other.address for other in list_devices(core.tree) if _is_behind(device, other)]
    for address in vfs + behind:
        other = find_device(core.tree, str(address))
        if other is not None and address not in above:  # it may have been removed with an earlier one
            yield other


def _is_behind(device: SimDevice, other: SimDevice) -> bool:
    """True below the bridge's directory, or, if all directories are in one place, on one of the bridge's buses."""
    if other.place.startswith(f"{device.place}/"):
        return True
    config = device.read("config") or b""
    is_bridge = pciconfig.header_type(config) == pciregs.HEADER_TYPE_BRIDGE
    if not is_bridge or len(config) < pciregs.CONFIG_SIZE_UNPRIVILEGED:
        return False
    first, last = config[pciregs.SECONDARY_BUS], config[pciregs.SUBORDINATE_BUS]
    return other.address.domain == device.address.domain and 0 < first <= other.address.bus <= last


def remove(core: Bus, device: SimDevice, above: Above = ()) -> None:
    """
    Unbind a function, its VFs and the functions behind it, and remove them from the bus.

    Raises:
        Blocked: a driver does not release its function; the rest of the removal waits for it.
    """
    above = (*above, device.address)
    for other in _dependents(core, device, above):
        remove(core, other, above)
    if device.driver is not None:
        try:
            core.detach(device)
        except Blocked:
            core.waiting_for = str(device.address)
            raise
    drop(core, device)


def drop(core: Bus, device: SimDevice) -> None:
    """Remove an unbound function from the bus, and keep its directory for a rescan."""
    name, group, place, physfn = str(device.address), device.group, device.place, device.physfn
    relative = os.path.relpath(place, core.root.path)
    _unlink_from_pf(core, device)
    core.state.pending = [entry for entry in core.state.pending if entry.device != name]
    core.state.moved.pop(name, None)
    if core.tree.link_name(device.path) is not None:
        core.tree.drop_file(device.path)
    if group is not None:
        _leave_group(core, name, group)
    core.tell("remove", device)
    kept = core.root.join(REMOVED, name)
    core.tree.drop_tree(kept)
    if core.tree.is_directory(place):
        core.tree.make_dirs(os.path.dirname(kept))
        core.tree.move(place, kept)
    if physfn is None:
        core.state.removed[name] = (relative, group)


def _unlink_from_pf(core: Bus, device: SimDevice) -> None:
    if device.physfn is None:
        return
    parent = SimDevice(core.tree, device.physfn)
    for name in core.tree.list_dir(parent.path):
        link = parent.join(name)
        if name.startswith("virtfn") and core.tree.place(link) == device.place:
            core.tree.drop_file(link)


def _leave_group(core: Bus, name: str, group: int) -> None:
    directory = core.root.iommu_group_devices(group)
    core.tree.drop_file(os.path.join(directory, name))
    if not core.tree.list_dir(directory):
        core.tree.drop_tree(os.path.dirname(directory))


def vanish(core: Bus, device: SimDevice, above: Above = ()) -> None:
    """Remove a function from the bus at once, without waiting for its driver."""
    above = (*above, device.address)
    for other in _dependents(core, device, above):
        vanish(core, other, above)
    name = str(device.address)
    leaving = [entry.driver for entry in core.state.pending if entry.device == name]  # unbinding: the link is gone
    core.state.pending = [entry for entry in core.state.pending if entry.device != name]
    driver = device.driver or next(iter(leaving), None)
    if driver is not None:
        core.force_off(device, driver)
    drop(core, device)


def forget(core: Bus, address: PCIDeviceAddress) -> None:
    """Keep a rescan from finding a removed function."""
    core.state.removed.pop(str(address), None)
    core.tree.drop_tree(core.root.join(REMOVED, str(address)))


def remove_domain(core: Bus, maker: SimDevice) -> None:
    """
    Remove the PCI domain of a volume management device from the bus, with all its functions.

    Raises:
        Blocked: the driver of one function does not release it.

    Source: vmd_remove (drivers/pci/controller/vmd.c)
    """
    for other in list_devices(core.tree):
        if other.place.startswith(f"{maker.place}/pci") and find_device(core.tree, str(other.address)) is not None:
            remove(core, other)


def bring_back_domain(core: Bus, maker: SimDevice) -> None:
    """
    Bring back the functions below a volume management device, as its driver does.

    Raises:
        Blocked: a probe has not returned.
    """
    below = os.path.relpath(maker.place, core.root.path) + "/pci"
    _bring_back(core, [name for name, (relative, _) in core.state.removed.items() if relative.startswith(below)])


def rescan(core: Bus) -> None:
    """
    Bring removed functions back and offer them to the drivers.

    Raises:
        Blocked: a probe has not returned.
    """
    _bring_back(core, list(core.state.removed))


def _bring_back(core: Bus, names: list[str]) -> None:
    depths = {name: core.state.removed[name][0].count("/") for name in names}
    for name in sorted(depths, key=depths.__getitem__):  # a bridge before the functions behind it
        relative, group = core.state.removed.pop(name)
        device = _restore(core, name, relative, group)
        core.tell("add", device)
        core.attach_new(device)


def _restore(core: Bus, name: str, relative: str, group: int | None) -> SimDevice:
    tree = core.tree
    kept, path = core.root.join(REMOVED, name), core.root.join(relative)
    tree.copy_tree(kept, path)  # a copy, so that the directory gets a new inode
    tree.drop_tree(kept)
    if tree.place(core.root.pci_devices) != tree.place(os.path.dirname(path)):
        put_on_bus(tree, path)
    if group is not None:
        put_in_group(tree, path, group)
    device = SimDevice(tree, PCIDeviceAddress.parse(name))
    device.update("driver_override", UNSET_OVERRIDE)
    device.update("sriov_numvfs", b"0\n")
    for entry in tree.list_dir(path):
        if entry.startswith("virtfn"):
            tree.drop_file(device.join(entry))
    return device
