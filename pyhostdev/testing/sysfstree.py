# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The sysfs of a described host, written in one pass: for hosts too large for FakeHost, which resolves every link.

Configuration space is empty here, and nothing reacts to a write. The ``sys`` directory is new and held open, so
everything is created inside it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.testing.functionfiles import attributes
from pyhostdev.testing.simdevice import UNSET_OVERRIDE
from pyhostdev.util.hostroot import check_driver_name

if TYPE_CHECKING:
    from pyhostdev.testing.hostspec import FunctionSpec, HostSpec

_BUS = "bus/pci/devices"
_DRIVERS = "bus/pci/drivers"
_GROUPS = "kernel/iommu_groups"
_IOMMU = "devices/virtual/iommu/dmar0"  # a host with groups has one that translates all of it
_ROOMS = ("devices", "bus", "bus/pci", _BUS, "kernel", _GROUPS)
_IOMMU_ROOMS = ("devices/virtual", "devices/virtual/iommu", _IOMMU, f"{_IOMMU}/devices", "class", "class/iommu")
_ATTRIBUTES = (  # that a program listing functions reads, or must not read
    "vendor",
    "device",
    "subsystem_vendor",
    "subsystem_device",
    "class",
    "revision",
    "modalias",
    "numa_node",
    "ari_enabled",
    "sriov_totalvfs",
    "sriov_offset",
    "sriov_stride",
    "driver_override",
    "uevent",
    "config",
)


class SysfsTree:
    """A ``sys`` below a directory; paths are kept relative to it, so that a link can be made without reading it."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.sys = os.path.join(os.fspath(directory), "sys")
        self._fd = -1
        self._behind: dict[tuple[int, int], str] = {}  # bus to the directory of its functions
        self._paths: dict[object, str] = {}  # address to the function's directory
        self._vfs: dict[object, int] = {}
        self._made: set[str] = set()
        self._ari_buses: set[tuple[int, int]] = set()

    def write(self, host: HostSpec) -> None:
        """
        Create the tree; the host's functions must be described with bridges and PFs first.

        Raises:
            FileExistsError: the ``sys`` directory already exists.
        """
        os.makedirs(os.path.dirname(self.sys), exist_ok=True)
        os.mkdir(self.sys, 0o755)
        self._fd = os.open(self.sys, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._write(host)
        finally:
            os.close(self._fd)

    def _write(self, host: HostSpec) -> None:
        for name in _ROOMS:
            self._make_dir(name)
        if host.drivers:
            self._make_dir(_DRIVERS)
        for name in host.drivers:
            self._make_dir(f"{_DRIVERS}/{check_driver_name(name)}")
        if any(spec.group is not None for spec in host.functions.values()):
            self._make_iommu()
        for spec in host.functions.values():
            self._put_function(spec)
        for address, count in self._vfs.items():
            self._put(f"{self._paths[address]}/sriov_numvfs", f"{count}\n")

    def _make_iommu(self) -> None:
        for name in _IOMMU_ROOMS:
            self._make_dir(name)
        self._link(f"class/iommu/{os.path.basename(_IOMMU)}", _IOMMU)

    def _place(self, spec: FunctionSpec) -> str:
        if spec.physfn is not None:
            return os.path.dirname(self._paths[spec.physfn])
        bus = spec.address[:2]
        if bus not in self._behind:
            self._behind[bus] = f"devices/pci{bus[0]:04x}:{bus[1]:02x}"
            self._make_dir(self._behind[bus])
        return self._behind[bus]

    def _put_function(self, spec: FunctionSpec) -> None:
        name = str(spec.address)
        path = f"{self._place(spec)}/{name}"
        self._paths[spec.address] = path
        self._make_dir(path)
        for attribute, text in self._attributes(spec).items():
            self._put(f"{path}/{attribute}", text)
        self._link(f"{_BUS}/{name}", path)
        self._link(f"{path}/subsystem", "bus/pci")
        self._put_driver(spec, path)
        self._put_group(spec, path)
        self._put_sriov(spec, path)
        if spec.bridge is not None:
            bus = spec.address.domain, spec.bridge[0]
            self._behind[bus] = path
            if spec.ari:
                self._ari_buses.add(bus)

    def _attributes(self, spec: FunctionSpec) -> dict[str, str]:
        found = attributes(spec, numvfs=0, ari=spec.address[:2] in self._ari_buses, alone=False)
        found["driver_override"] = UNSET_OVERRIDE.decode()
        found["config"] = ""
        if spec.driver is not None:
            found["uevent"] = f"DRIVER={spec.driver}\n{found['uevent']}"
        return {name: found[name] for name in _ATTRIBUTES if name in found}

    def _put_driver(self, spec: FunctionSpec, path: str) -> None:
        if spec.driver is not None:
            self._link(f"{path}/driver", f"{_DRIVERS}/{spec.driver}")
            self._link(f"{_DRIVERS}/{spec.driver}/{spec.address}", path)

    def _put_group(self, spec: FunctionSpec, path: str) -> None:
        if spec.group is None:
            return
        group = f"{_GROUPS}/{spec.group}"
        if group not in self._made:
            self._made.add(group)
            self._make_dir(group)
            self._make_dir(f"{group}/devices")
        self._link(f"{path}/iommu_group", group)
        self._link(f"{group}/devices/{spec.address}", path)
        self._link(f"{_IOMMU}/devices/{spec.address}", path)

    def _put_sriov(self, spec: FunctionSpec, path: str) -> None:
        if spec.sriov is not None:
            self._vfs[spec.address] = 0
        if spec.physfn is not None:
            pf = self._paths[spec.physfn]
            self._link(f"{path}/physfn", pf)
            self._link(f"{pf}/virtfn{self._vfs[spec.physfn]}", path)
            self._vfs[spec.physfn] += 1

    def _make_dir(self, path: str) -> None:
        os.mkdir(path, 0o755, dir_fd=self._fd)

    def _put(self, path: str, text: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._fd)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def _link(self, path: str, target: str) -> None:
        """Create a link with a target relative to the link's directory, as the kernel does."""
        os.symlink("../" * path.count("/") + target, path, dir_fd=self._fd)
