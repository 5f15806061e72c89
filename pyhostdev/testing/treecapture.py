# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A real host, or a snapshot of one, as a ``.tree`` description: a production host becomes a test case.

The simulated kernel then behaves as that host would, as far as the description goes: functions with their groups,
drivers, resets and VFs, the disks and interfaces that the host uses, and its other group members.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import SysfsError
from pyhostdev.testing.driverspec import DriverSpec, driver_kind
from pyhostdev.testing.hostspec import EXPRESS_KINDS, FunctionSpec, HostSpec, MemberSpec
from pyhostdev.testing.treeformat import format_host
from pyhostdev.util import pciconfig, pciregs, pciscan
from pyhostdev.util.hostroot import check_driver_name
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.hostusage import DEFAULT_DESTINATION
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.vfiodriver import VFIO_PCI_MODULE, VFIODrivers, find_driver, identity_of, read_kernel_release
from pyhostdev.util.virfile import list_names, read_attribute, read_lines, read_link, read_number, read_status
from pyhostdev.util.virpci import PCIDevice, read_iommu_group_members

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def describe_host(root: HostRoot, *, redact: bool = False) -> str:
    """
    Return the description of a host.

    Args:
        redact: leave out the boot id, and count mounts instead of naming them.

    Raises:
        SysfsError: an attribute exists but cannot be read.
    """
    capture = _Capture(root)
    capture.add_functions()
    capture.add_drivers()
    capture.add_vfio_drivers()
    capture.add_iommufd()
    capture.add_groups()
    capture.spec.drivers = dict(sorted(capture.spec.drivers.items()))
    capture.add_uses()
    release = read_attribute(root, root.kernel_release)
    if release:
        capture.spec.settings["release"] = check_driver_name(release)
    boot_id = read_attribute(root, root.boot_id)
    if boot_id and not redact:
        capture.spec.settings["boot-id"] = boot_id
    if redact:
        capture.spec.mounts = [(d, f"/mount-{n}", fs) for n, (d, _, fs) in enumerate(capture.spec.mounts)]
    return f"# The host with kernel {release or 'unknown'}, described from its sysfs.\n{format_host(capture.spec)}"


class _Capture:
    """Fills a HostSpec from a host."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self.spec = HostSpec("host")
        self.scan = Scan(root, pciscan.scan(root))
        self.disks = self._below(root.class_block)
        self.interfaces = self._below(root.class_net)
        self.modules = set(_module_names(root))

    def _below(self, directory: str) -> dict[str, str]:
        """Return each device of a class that is below a PCI function, with the function's address."""
        found = {}
        for name in sorted(list_names(self.root, directory)):
            target = self._target(os.path.join(directory, name))
            below = _ADDRESS.findall(target or "")
            if below:
                found[name] = below[-1]
        return found

    def _target(self, path: str) -> str | None:
        try:
            return read_link(self.root, path)
        except SysfsError:
            return None

    def add_functions(self) -> None:
        """Describe all functions; a PF stands before its VFs, which are in the order of their numbers."""
        order: dict[PCIDeviceAddress, PCIDevice] = {}
        for dev in self.scan:
            if not dev.is_virtual_function:
                order[dev.address] = dev
        for pf in list(order.values()):
            for address in pf.read_virtual_functions():
                vf = self.scan.find(address)
                if vf is not None:
                    order[address] = vf
        self.spec.functions = {address: self._function(dev) for address, dev in order.items()}
        for dev in order.values():
            self._add_parent(dev)

    def _function(self, dev: PCIDevice) -> FunctionSpec:
        own = (dev.vendor or 0, dev.device or 0)
        subsystem = (dev.subsystem_vendor or 0, dev.subsystem_device or 0)
        driver = dev.driver
        fields: dict[str, Any] = {
            "driver": driver,
            "nodriver": driver is None,
            "override": dev.read_driver_override(),
            "group": dev.iommu_group,
            "subsystem": subsystem if subsystem not in (own, (0, 0)) else None,
            "revision": dev.revision or 0,
            "numa_node": -1 if dev.numa_node is None else dev.numa_node,
            "multifunction": bool(dev.has_multifunction_bit) and not dev.is_virtual_function,
            "physfn": dev.physfn,
            "boot_vga": read_attribute(self.root, dev.path("boot_vga")) == "1",
            "net": _names_of(self.interfaces, dev) if driver else (),
            "block": _names_of(self.disks, dev) if driver else (),
        }
        fields.update(self._from_config(dev), **self._sriov(dev))
        return FunctionSpec(dev.address, *own, dev.class_ or 0, **fields)

    def _from_config(self, dev: PCIDevice) -> dict[str, Any]:
        config = dev.read_config(pciregs.CONFIG_SIZE_EXPRESS)
        kind = pciconfig.express_type(config)
        if kind is None and dev.is_pci_express():
            kind = EXPRESS_KINDS["root-port" if dev.is_bridge else "endpoint"]
        found: dict[str, Any] = {"express": kind if kind in EXPRESS_KINDS.values() else None}
        methods = dev.read_reset_methods()
        found["flr"] = bool(pciconfig.has_flr(config) or "flr" in methods) and kind is not None
        found["af"] = "af_flr" in methods or (bool(pciconfig.has_flr(config)) and kind is None)
        if pciconfig.find_capability(config, pciregs.CAP_ID_PM):
            found["pm"] = "on" if pciconfig.has_pm_reset(config) else "noreset"
        if dev.is_bridge and len(config) > pciregs.SUBORDINATE_BUS and config[pciregs.SECONDARY_BUS]:
            found["bridge"] = (config[pciregs.SECONDARY_BUS], config[pciregs.SUBORDINATE_BUS])
        found["ari"] = bool(pciconfig.find_extended_capability(config, pciregs.EXT_CAP_ID_ARI)) and not dev.is_bridge
        acs = pciconfig.acs_state(config)
        found["acs"] = None if acs == "absent" else acs
        return found

    def _sriov(self, dev: PCIDevice) -> dict[str, Any]:
        if dev.sriov_totalvfs is None:
            return {}
        names = {"vf_offset": "sriov_offset", "vf_stride": "sriov_stride", "autoprobe": "sriov_drivers_autoprobe"}
        numbers = {field: read_number(self.root, dev.path(name)) for field, name in names.items()}
        device = read_attribute(self.root, dev.path("sriov_vf_device"))
        found: dict[str, Any] = {field: number for field, number in numbers.items() if number is not None}
        return {**found, "sriov": dev.sriov_totalvfs, "vf_device": int(device, 16) if device else 0}

    def _add_parent(self, dev: PCIDevice) -> None:
        """Name the bridge above, and let it forward ARI, where the bus numbers do not show it."""
        path = dev.read_path()
        above = self.spec.functions.get(path[-2]) if len(path) > 1 else None
        if above is None or above.bridge is None or dev.is_virtual_function:
            return  # below a volume management device, which is not a bridge
        if not above.bridge_to(dev.address.bus):
            here = self.spec.functions[dev.address]
            self.spec.functions[dev.address] = here._replace(parent=above.address)
        if dev.is_ari and not above.ari:
            self.spec.functions[above.address] = above._replace(ari=True)

    def add_drivers(self) -> None:
        """Describe the drivers: with the ids of what is bound to them, built in or from a module."""
        names = set(list_names(self.root, self.root.pci_drivers))
        names |= {spec.driver for spec in self.spec.functions.values() if spec.driver is not None}
        for name in sorted(names):
            bound = [s for s in self.spec.functions.values() if s.driver == name]
            ids = sorted({f"{s.vendor:04x}:{s.device:04x}" for s in bound})
            link = self._target(os.path.join(self.root.pci_driver(name), "module"))
            module = os.path.basename(link) if link else None
            is_special = driver_kind(name) == "vfio"
            self.spec.drivers[name] = DriverSpec(name, () if is_special else tuple(ids), driver_kind(name), module)

    def add_vfio_drivers(self) -> None:
        """Describe the VFIO drivers that can be loaded, and the devices that a variant is for."""
        choices = VFIODrivers(self.root)
        if VFIO_PCI not in self.spec.drivers and VFIO_PCI_MODULE in self.modules:
            self._add_vfio_driver(VFIO_PCI, VFIO_PCI_MODULE)
        kinds = {identity_of(dev): dev for dev in self.scan}
        for dev in kinds.values():
            alias = choices.best_alias(dev)
            if alias is None or alias.module == VFIO_PCI_MODULE:
                continue
            name = find_driver(self.root, alias.module) or alias.module
            if name not in self.spec.drivers:
                self._add_vfio_driver(name, alias.module)
            spec = self.spec.drivers[name]
            ids = {*spec.ids, f"{dev.vendor:04x}:{dev.device:04x}"}
            self.spec.drivers[name] = spec._replace(kind="vfio", ids=tuple(sorted(ids)))

    def _add_vfio_driver(self, name: str, module: str) -> None:
        """Describe a driver that is not registered; the driver of a module is assumed to have its name."""
        availability = "available" if module in self.modules else "missing"
        self.spec.drivers[name] = DriverSpec(name, (), "vfio", module, availability)

    def add_iommufd(self) -> None:
        """Describe whether the kernel has iommufd, or can load it."""
        if read_status(self.root, self.root.dev_iommu) is not None:
            self.spec.settings["iommufd"] = "loaded"
        elif "iommufd" in self.modules:
            self.spec.settings["iommufd"] = "available"

    def add_groups(self) -> None:
        """Describe the types of the groups, and members that are not PCI functions."""
        for name in sorted(list_names(self.root, self.root.iommu_groups), key=lambda n: (len(n), n)):
            kind = read_attribute(self.root, os.path.join(self.root.iommu_groups, name, "type"))
            if kind not in (None, "", "DMA"):
                self.spec.group_types[int(name)] = str(kind)
            for member in read_iommu_group_members(self.root, int(name)):
                if member.address is None:
                    self.spec.members.append(MemberSpec(int(name), member.name, member.driver))
                    if member.driver is not None and member.driver not in self.spec.drivers:
                        driver = DriverSpec(member.driver, (), driver_kind(member.driver), None)
                        self.spec.drivers[member.driver] = driver

    def add_uses(self) -> None:
        """Describe mounts, swap and default routes of devices below a described function."""
        for words in (line.split() for line in read_lines(self.root, self.root.mounts)):
            name = os.path.basename(words[0]) if words else ""
            if len(words) > 2 and words[0].startswith(self.root.DEV) and name in self.disks:
                self.spec.mounts.append((name, words[1], words[2]))
        for words in (line.split() for line in read_lines(self.root, self.root.swaps)):
            name = os.path.basename(words[0]) if words else ""
            if name in self.disks:
                self.spec.swaps.append(name)
        known = {name for spec in self.spec.functions.values() for name in spec.net}
        for words in (line.split() for line in read_lines(self.root, self.root.route)):
            if words[1:2] == [DEFAULT_DESTINATION] and words[0] in known and words[0] not in self.spec.routes:
                self.spec.routes.append(words[0])


def _module_names(root: HostRoot) -> Iterator[str]:
    """Yield the modules that the host's kernel can load, with underscores."""
    release = read_kernel_release(root)
    for line in read_lines(root, root.modules_dep(release)) if release else ():
        yield os.path.basename(line.partition(":")[0]).partition(".ko")[0].replace("-", "_")


def _names_of(found: dict[str, str], dev: PCIDevice) -> tuple[str, ...]:
    return tuple(name for name, address in found.items() if address == str(dev.address))
