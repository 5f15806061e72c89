# SPDX-License-Identifier: LGPL-2.1-or-later
"""
From a description to a directory that looks like a host: sys, proc, dev and lib/modules.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError
from pyhostdev.testing.drivercore import DriverCore
from pyhostdev.testing.driverfiles import module_aliases, put_driver
from pyhostdev.testing.functionfiles import link_virtual_functions, put_function, put_in_group
from pyhostdev.testing.kernelstate import KernelState, StateFile
from pyhostdev.testing.simdevice import SimDevice, put_file, put_link

if TYPE_CHECKING:
    from pyhostdev.testing.treefile import FunctionSpec, HostSpec
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.pciaddress import PCIDeviceAddress

DEFAULT_RELEASE = "6.1.0-fake"
DEFAULT_BOOT_ID = "1bd2d2c6-3fd5-4b5e-9e0c-5f3a3c9e1d00"


class HostBuilder:
    """Makes one described host in an empty directory."""

    def __init__(self, root: HostRoot, host: HostSpec) -> None:
        self.root = root
        self.host = host
        self.places: dict[PCIDeviceAddress, str] = {}

    def build(self) -> KernelState:
        """
        Make the whole tree and its kernel's state.

        Raises:
            ConfigError: the description contradicts itself.
            FileExistsError: the directory holds a host already.
        """
        self._build_bus()
        for spec in self.host.functions.values():
            self.put(spec)
        self._link_virtual_functions()
        for member in self.host.members:
            path = self.root.join("sys/devices/platform", member.name)
            os.makedirs(path)
            put_in_group(self.root, path, member.group, kind=self.group_type(member.group))
            if member.driver is not None:
                driver = self.root.join("sys/bus/platform/drivers", member.driver)
                os.makedirs(driver, exist_ok=True)
                put_link(os.path.join(path, "driver"), driver)
        self._build_proc()
        self._build_modules()
        return self._bind_all()

    def _build_bus(self) -> None:
        os.makedirs(self.root.pci_devices)
        os.makedirs(self.root.pci_drivers)
        os.makedirs(self.root.iommu_groups)
        os.makedirs(self.root.join("sys/module"))
        put_file(self.root.drivers_probe, b"")
        put_file(self.root.join("sys/bus/pci/rescan"), b"")
        put_file(self.root.join("sys/bus/pci/drivers_autoprobe"), b"1\n")
        for spec in self.host.drivers.values():
            if spec.availability == "loaded":
                put_driver(self.root, spec)

    def group_type(self, group: int) -> str:
        """Return the domain type of a group."""
        return self.host.group_types.get(group, "DMA")

    def bridge_above(self, spec: FunctionSpec) -> FunctionSpec | None:
        """
        Return the bridge that leads to a function's bus; a VF is where its PF is.

        Raises:
            ConfigError: the PF or the parent that the function names is not described, or is no bridge.
        """
        if spec.physfn is not None:
            return self.bridge_above(self._named(spec, spec.physfn))
        if spec.parent is not None:
            parent = self._named(spec, spec.parent)
            if parent.bridge is None:
                raise ConfigError(f"{spec.address}: {spec.parent} is no bridge")
            return parent
        for other in self.host.functions.values():
            same_domain = other.address.domain == spec.address.domain
            if same_domain and other.bridge is not None and other.bridge[0] == spec.address.bus:
                return other
        return None

    def _named(self, spec: FunctionSpec, address: PCIDeviceAddress) -> FunctionSpec:
        if address not in self.host.functions:
            raise ConfigError(f"{spec.address} names {address}, which is not described")
        return self.host.functions[address]

    def place(self, spec: FunctionSpec) -> str:
        """Return the directory that a function's own lies in."""
        above = self.bridge_above(spec)
        if above is not None:
            return os.path.join(self.place(above), str(above.address))
        if spec.physfn is not None:
            spec = self.host.functions[spec.physfn]
        bus = f"pci{spec.address.domain:04x}:{spec.address.bus:02x}"
        return self.root.join("sys/devices", bus)

    def put(self, spec: FunctionSpec) -> SimDevice:
        """Make one function's directory; without driver."""
        above = self.bridge_above(spec)
        virtual_bus = above is not None and above.bridge is not None and above.bridge[0] != spec.address.bus
        return put_function(
            self.root,
            spec,
            self.place(spec),
            directory=self.host.directory,
            numvfs=len(self.virtual_functions(spec)),
            ari=above is not None and above.ari and not virtual_bus,
            alone=above is not None and spec.physfn is None and self._is_first(spec),
        )

    def _is_first(self, spec: FunctionSpec) -> bool:
        bus = spec.address[:2]
        return spec.address == min(a for a in self.host.functions if a[:2] == bus)

    def virtual_functions(self, spec: FunctionSpec) -> list[FunctionSpec]:
        """Return the described VFs of a PF."""
        return [vf for vf in self.host.functions.values() if vf.physfn == spec.address]

    def _link_virtual_functions(self) -> None:
        for spec in self.host.functions.values():
            vfs = [SimDevice(self.root, vf.address) for vf in self.virtual_functions(spec)]
            link_virtual_functions(SimDevice(self.root, spec.address), vfs)

    def _bind_all(self) -> KernelState:
        state = KernelState()
        state.described = True
        state.drivers = dict(self.host.drivers)
        core = DriverCore(self.root, state)
        for spec in self.host.functions.values():
            if spec.driver is not None:
                self.bind(core, spec)
        StateFile(self.root).save(state)
        return state

    def bind(self, core: DriverCore, spec: FunctionSpec) -> None:
        """
        Put a function on the driver its line names.

        Raises:
            ConfigError: that driver is not there.
        """
        assert spec.driver is not None
        if not os.path.isdir(self.root.pci_driver(spec.driver)):
            raise ConfigError(f"{spec.address} is bound to '{spec.driver}', which is not loaded")
        device = SimDevice(self.root, spec.address)
        for name in spec.net:
            _put_net(device, name)
        for name in spec.block:
            os.makedirs(device.join("block", name))
        core.settle_on(device, spec.driver)

    def _build_proc(self) -> None:
        settings = self.host.settings
        files = {
            self.root.boot_id: settings.get("boot-id", DEFAULT_BOOT_ID),
            self.root.join("proc/sys/kernel/osrelease"): settings.get("release", DEFAULT_RELEASE),
        }
        for path, text in files.items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            put_file(path, f"{text}\n".encode())

    def _build_modules(self) -> None:
        release = self.host.settings.get("release", DEFAULT_RELEASE)
        path = self.root.modules_alias(release)
        os.makedirs(os.path.dirname(path))
        lines = [
            line
            for spec in self.host.drivers.values()
            if spec.availability != "missing"
            for line in module_aliases(spec)
        ]
        put_file(path, "".join(f"{line}\n" for line in lines).encode())
        modules = {spec.module for spec in self.host.drivers.values() if spec.availability != "missing"}
        names = sorted(name for name in modules if name is not None)
        put_file(self.root.modules_dep(release), "".join(f"kernel/{name}.ko:\n" for name in names).encode())


def _put_net(device: SimDevice, name: str) -> None:
    directory = device.join("net", name)
    os.makedirs(directory)
    put_file(os.path.join(directory, "uevent"), f"INTERFACE={name}\n".encode())
