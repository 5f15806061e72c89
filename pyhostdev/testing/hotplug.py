# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Functions that leave the bus and come back: surprise removal, ``remove`` and ``rescan``.

What comes back is a new kernel object at the old address: another directory, no override, no VFs.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from pyhostdev.testing.faults import Blocked
from pyhostdev.testing.functionfiles import put_in_group, put_on_bus
from pyhostdev.testing.kernelstate import REMOVED
from pyhostdev.testing.simdevice import (
    UNSET_OVERRIDE,
    SimDevice,
    drop_file,
    drop_tree,
    list_dir,
)
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from pyhostdev.testing.drivercore import DriverCore


def remove(core: DriverCore, device: SimDevice) -> None:
    """
    Take a function and its VFs off the bus, from their drivers first.

    Raises:
        Blocked: a driver does not let go; the rest of the removal waits for it.
    """
    for address in device.virtual_functions:
        remove(core, SimDevice(core.root, address))
    if device.driver is not None:
        try:
            core.detach(device)
        except Blocked:
            core.waiting_for = str(device.address)
            raise
    drop(core, device)


def drop(core: DriverCore, device: SimDevice) -> None:
    """Take a function without a driver off the bus and keep its directory for a rescan."""
    name, group, place, physfn = str(device.address), device.group, device.place, device.physfn
    relative = os.path.relpath(place, os.path.realpath(core.root.path))
    _unlink_from_pf(core, device)
    core.state.pending = [entry for entry in core.state.pending if entry.device != name]
    core.state.moved.pop(name, None)
    if os.path.islink(device.path):
        drop_file(device.path)
    if group is not None:
        _leave_group(core, name, group)
    kept = core.root.join(REMOVED, name)
    drop_tree(kept)
    if os.path.isdir(place):
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        os.rename(place, kept)
    if physfn is None:
        core.state.removed[name] = (relative, group)


def _unlink_from_pf(core: DriverCore, device: SimDevice) -> None:
    if device.physfn is None:
        return
    parent = SimDevice(core.root, device.physfn)
    for name in list_dir(parent.path):
        link = parent.join(name)
        if name.startswith("virtfn") and os.path.realpath(link) == device.place:
            drop_file(link)


def _leave_group(core: DriverCore, name: str, group: int) -> None:
    directory = core.root.iommu_group_devices(group)
    drop_file(os.path.join(directory, name))
    if not list_dir(directory):
        drop_tree(os.path.dirname(directory))


def vanish(core: DriverCore, device: SimDevice) -> None:
    """Take a function off the bus at once, whatever its driver says."""
    for address in device.virtual_functions:
        vanish(core, SimDevice(core.root, address))
    driver = device.driver
    if driver is not None:
        core.force_off(device, driver)
    drop(core, device)


def forget(core: DriverCore, address: PCIDeviceAddress) -> None:
    """Let no rescan find a removed function."""
    core.state.removed.pop(str(address), None)
    drop_tree(core.root.join(REMOVED, str(address)))


def rescan(core: DriverCore) -> None:
    """
    Bring removed functions back and offer them to the drivers.

    Raises:
        Blocked: a probe has not come back.
    """
    for name in sorted(core.state.removed):
        relative, group = core.state.removed.pop(name)
        device = _restore(core, name, relative, group)
        core.attach_new(device)


def _restore(core: DriverCore, name: str, relative: str, group: int | None) -> SimDevice:
    kept, path = core.root.join(REMOVED, name), core.root.join(relative)
    shutil.copytree(kept, path, symlinks=True)  # a copy: the directory gets another inode
    drop_tree(kept)
    if os.path.realpath(core.root.pci_devices) != os.path.realpath(os.path.dirname(path)):
        put_on_bus(core.root, path)
    if group is not None:
        put_in_group(core.root, path, group)
    device = SimDevice(core.root, PCIDeviceAddress.parse(name))
    device.update("driver_override", UNSET_OVERRIDE)
    device.update("sriov_numvfs", b"0\n")
    for entry in list_dir(path):
        if entry.startswith("virtfn"):
            drop_file(device.join(entry))
    return device
