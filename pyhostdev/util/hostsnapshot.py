# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A snapshot of a host: all files that pyhostdev reads, so that the snapshot can take the place of the host.

It contains facts about PCI functions, groups, drivers and modules, the tables that show the host's use of its devices,
and what libvirt has: its release, its domains and networks. Files that this user may not read are listed and left out.

Images, emulators and SMBIOS tables stay on the host.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

from pyhostdev.errors import HostdevError, SysfsError
from pyhostdev.util import pciregs
from pyhostdev.util.hostattributes import ATTRIBUTES, CLASS_ATTRIBUTES, TYPE_ATTRIBUTES, USB_ATTRIBUTES
from pyhostdev.util.libvirtlib import library_links
from pyhostdev.util.pciids import PCIIds
from pyhostdev.util.record import SUFFIX, decode
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.vfioholders import read_group_holders
from pyhostdev.util.virfile import is_directory, list_names, read_bytes, read_link, read_status
from pyhostdev.util.virpcivpd import read_vpd

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.statedir import StateDir

WRITE_ONLY = ("reset",)  # only their existence is recorded
CONFIG_SIZE = "config_size"  # in snapshots only: the real size of a config that could not be read completely
_LINKS = re.compile(r"driver|iommu_group|physfn|subsystem|virtfn[0-9]+|(consumer|supplier):pci:.+")
_NOT_OURS = (errno.EACCES, errno.EPERM)
_OWN_DOMAIN = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_PROCESS_FILES = ("comm", "stat")
_NVME_SUBSYSTEM = re.compile(r"(.*/nvme-subsystem/nvme-subsys[0-9]+)/")
_LINKS_MAX = 8  # from the name of a disk in a table to its node
_FILE_MAX = 16 << 20  # bytes; the limit of a directory's readers


class HostSnapshot(NamedTuple):
    """
    The entries of a host by their paths below the root: bytes of a file, target of a link, None for a directory.

    ``unreadable`` lists the files that this user could not read. ``present`` lists the functions with a record that
    was written for the very device that is there.
    """

    entries: dict[str, bytes | str | None]
    unreadable: list[str]
    present: list[str]


def take_snapshot(root: HostRoot, state: StateDir | None = None) -> HostSnapshot:
    """
    Take a snapshot of a host, sorted by path; write nothing.

    Args:
        state: where the records are, if not in the root's usual place; there a snapshot has them in any case.

    Raises:
        SysfsError: the list of PCI functions cannot be read.
        OperationError: another user can write to ``state``.
    """
    taker = _Taker(root)
    for name in sorted(list_names(root, root.pci_devices)):
        taker.add_function(name)
    taker.add_names()
    taker.add_drivers()
    taker.add_groups()
    for directory in (root.class_net, root.class_block, root.class_graphics):
        taker.add_class(directory)
    taker.add_tables()
    taker.add_other_devices()
    taker.add_libvirt()
    taker.add_nodes()
    taker.add_holders()
    taker.add_records(state)
    return HostSnapshot(dict(sorted(taker.entries.items())), sorted(set(taker.unreadable)), sorted(taker.present))


class _Taker:
    """Collects entries; every read is bounded, and a file that cannot be read is listed."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self.entries: dict[str, bytes | str | None] = {}
        self.unreadable: list[str] = []
        self.present: list[str] = []

    def _key(self, path: str) -> str:
        return os.path.relpath(path, self.root.path)

    def add_file(self, path: str, limit: int = _FILE_MAX) -> None:
        """Take a file, if it exists."""
        try:
            data = read_bytes(self.root, path, limit)
        except SysfsError:
            self.unreadable.append(self._key(path))
            return
        if data is not None:
            self.entries[self._key(path)] = data

    def add_link(self, path: str) -> str | None:
        """Take a link, and return where it leads, below the root; None if it is not a link."""
        try:
            target = read_link(self.root, path)
        except SysfsError:
            return None
        if target is None:
            return None
        where = self.root.follow(path, target)
        # an archive has no links that start at the root
        is_absolute = target.startswith("/")
        self.entries[self._key(path)] = os.path.relpath(where, os.path.dirname(path)) if is_absolute else target
        return where

    def add_directory(self, path: str) -> list[str]:
        """Take a directory without its contents, and return the names in it."""
        try:
            if not is_directory(self.root, path):
                return []
            names = sorted(list_names(self.root, path))
        except SysfsError:
            self.unreadable.append(self._key(path))
            return []
        self.entries[self._key(path)] = None
        return names

    def add_function(self, name: str) -> None:
        """Take a PCI function."""
        path = os.path.join(self.root.pci_devices, name)
        top = self.add_link(path) or path
        names = self.add_directory(top)
        for attribute in (*ATTRIBUTES, "uevent"):
            if attribute in names:
                self.add_file(os.path.join(top, attribute))
        for attribute in WRITE_ONLY:
            if attribute in names:
                self.entries[self._key(os.path.join(top, attribute))] = b""
        for link in names:
            if _LINKS.fullmatch(link):
                self.add_link(os.path.join(top, link))
            elif _OWN_DOMAIN.fullmatch(link):
                self.add_directory(os.path.join(top, link))
        self._add_parts(top, names)
        if "config" in names:
            self._add_config(os.path.join(top, "config"))
        if "vpd" in names:
            self._add_vpd(os.path.join(top, "vpd"))

    def _add_parts(self, top: str, names: Collection[str]) -> None:
        """Take a function's interfaces, VFIO device and types of mediated devices."""
        for group in ("net", "vfio-dev"):
            for part in self.add_directory(os.path.join(top, group)) if group in names else ():
                self._add_class_device(os.path.join(top, group, part))
        types = os.path.join(top, "mdev_supported_types")
        for kind in self.add_directory(types) if os.path.basename(types) in names else ():
            self._add_attributes(os.path.join(types, kind), TYPE_ATTRIBUTES)

    def _add_attributes(self, top: str, attributes: Iterable[str]) -> list[str]:
        """Take a directory with some of its files, and return the names in it."""
        names = self.add_directory(top)
        for attribute in attributes:
            if attribute in names:
                self.add_file(os.path.join(top, attribute))
        return names

    def _add_vpd(self, path: str) -> None:
        """Take a function's Vital Product Data up to its end; a device that does not answer has none."""
        try:
            data = read_vpd(self.root, path)
        except SysfsError as err:
            if err.errno in _NOT_OURS:
                self.unreadable.append(self._key(path))
            return
        if data:
            self.entries[self._key(path)] = data

    def _add_config(self, path: str) -> None:
        self.add_file(path, pciregs.CONFIG_SIZE_EXPRESS)
        data = self.entries.get(self._key(path))
        status = read_status(self.root, path)
        if isinstance(data, bytes) and status is not None and len(data) < status.st_size:
            size = os.path.join(os.path.dirname(path), CONFIG_SIZE)
            self.entries[self._key(size)] = f"{status.st_size}\n".encode()
            self.unreadable.append(self._key(path))

    def _add_class_device(self, top: str) -> None:
        """Take a network interface, a disk or a framebuffer: a few attributes, and the devices below it."""
        names = self._add_attributes(top, CLASS_ATTRIBUTES)
        for name in names:
            if name.startswith("lower_") or name in ("device", "master"):
                self.add_link(os.path.join(top, name))
        if "bridge" in names:
            self.entries[self._key(os.path.join(top, "bridge"))] = None
        if "slaves" in names:
            for name in self.add_directory(os.path.join(top, "slaves")):
                self.add_link(os.path.join(top, "slaves", name))

    def add_class(self, directory: str) -> None:
        """Take the devices of a class: the links to them, and the devices."""
        for name in self.add_directory(directory):
            top = self.add_link(os.path.join(directory, name))
            if top is None:
                continue
            self._add_class_device(top)
            if self._key(os.path.join(top, "partition")) in self.entries:
                self._add_class_device(os.path.dirname(top))
            subsystem = _NVME_SUBSYSTEM.match(f"{top}/")
            if subsystem is not None:
                for controller in self.add_directory(subsystem[1]):
                    self.add_link(os.path.join(subsystem[1], controller))

    def add_drivers(self) -> None:
        """Take the drivers and modules, with the module of each driver."""
        for name in self.add_directory(self.root.pci_drivers):
            top = os.path.join(self.root.pci_drivers, name)
            for entry in self.add_directory(top):
                if entry == "module" or entry.count(":") == 2:
                    self.add_link(os.path.join(top, entry))
        for name in self.add_directory(self.root.modules):
            top = os.path.join(self.root.modules, name)
            self.entries[self._key(top)] = None
            drivers = os.path.join(top, "drivers")
            for entry in self.add_directory(drivers):
                if entry.startswith("pci:"):
                    self.add_link(os.path.join(drivers, entry))

    def add_groups(self) -> None:
        """Take the IOMMU groups with their members."""
        for name in self.add_directory(self.root.iommu_groups):
            top = os.path.join(self.root.iommu_groups, name)
            self.entries[self._key(top)] = None
            self.add_file(os.path.join(top, "type"))
            for member in self.add_directory(os.path.join(top, "devices")):
                self._add_member(os.path.join(top, "devices", member))

    def _add_member(self, path: str) -> None:
        top = self.add_link(path)
        if top is not None and os.path.basename(top).count(":") != 2:
            self.add_directory(top)
            self.add_link(os.path.join(top, "driver"))

    def add_tables(self) -> None:
        """Take the tables of the kernel, of the module tools and of driverctl."""
        root = self.root
        for path in root.tables():
            self.add_file(path)
        release = self.entries.get(self._key(root.kernel_release))
        if isinstance(release, bytes):
            for name in ("modules.dep", "modules.alias", "modules.builtin"):
                self.add_file(os.path.join(root.modules_directory(release.decode().strip()), name))
        self._add_files(root.driverctl_directory)
        for name in self.add_directory(root.hugepages):
            self.add_file(os.path.join(root.hugepages, name, os.path.basename(root.free_hugepages(0))))
        for name in self.add_directory(root.dev_block):
            self.add_link(os.path.join(root.dev_block, name))
        for name in self.add_directory(root.fs_btrfs):
            devices = os.path.join(root.fs_btrfs, name, "devices")
            for disk in self.add_directory(devices):
                self.add_link(os.path.join(devices, disk))

    def _add_files(self, directory: str, suffix: str = "") -> list[str]:
        """Take the files of a directory whose names have an end, and return all names."""
        names = self.add_directory(directory)
        for name in names:
            if name.endswith(suffix):
                self.add_file(os.path.join(directory, name))
        return names

    def add_names(self) -> None:
        """Take the names that this host has for its vendors and devices."""
        names = PCIIds.read(self.root).excerpt(self._ids())
        if names:
            self.entries[self._key(self.root.pci_ids()[0])] = names

    def _ids(self) -> Iterator[tuple[int, int]]:
        """Yield vendor and device of each function that was taken."""
        for path, content in self.entries.items():
            if os.path.basename(path) == "vendor" and isinstance(content, bytes):
                device = self.entries.get(os.path.join(os.path.dirname(path), "device"))
                if isinstance(device, bytes):
                    yield int(content, 16), int(device, 16)

    def add_other_devices(self) -> None:
        """Take the USB devices and the mediated devices."""
        root = self.root
        for name in self.add_directory(root.usb_devices):
            if ":" not in name:
                top = os.path.join(root.usb_devices, name)
                self._add_attributes(self.add_link(top) or top, USB_ATTRIBUTES)
        for name in self.add_directory(root.mdev_devices):
            top = os.path.join(root.mdev_devices, name)
            where = self.add_link(top) or top
            self.add_directory(where)
            self.add_link(os.path.join(where, "iommu_group"))

    def add_libvirt(self) -> None:
        """Take libvirt's release, its domains and networks, and the descriptors of the firmware that it offers."""
        root = self.root
        for path in library_links(root):
            self.add_link(path)
        self._add_files(root.libvirt_status, ".xml")
        self._add_files(root.libvirt_networks, ".xml")
        for name in self._add_files(root.libvirt_network_states, ".xml"):
            if name.endswith(".ports"):
                self._add_files(os.path.join(root.libvirt_network_states, name))
        for directory in root.firmware_descriptors:
            self._add_files(directory, ".json")

    def add_nodes(self) -> None:
        """Take the nodes of VFIO, KVM and graphics cards as empty files, and the links that name mounted disks."""
        root = self.root
        for path in (root.dev_kvm, root.dev_iommu, root.dev_vhost_vsock):
            self._add_node(path)
        for directory in (root.dev_vfio, root.dev_vfio_devices, root.dev_dri):
            for name in self.add_directory(directory):
                self._add_node(os.path.join(directory, name))
        for table in (root.mounts, root.swaps):
            for device in self._devices_in(table):
                link: str | None = root.join(device.lstrip("/"))
                for _ in range(_LINKS_MAX):
                    link = None if link is None else self.add_link(link)

    def _add_node(self, path: str) -> None:
        try:
            status = read_status(self.root, path)
        except SysfsError:
            self.unreadable.append(self._key(path))
            return
        if status is not None and not is_directory(self.root, path):
            self.entries[self._key(path)] = b""

    def _devices_in(self, table: str) -> Iterable[str]:
        data = self.entries.get(self._key(table))
        lines = data.decode("utf-8", "surrogateescape").splitlines() if isinstance(data, bytes) else []
        return sorted({line.split()[0] for line in lines if line.startswith(self.root.DEV)})

    def add_holders(self) -> None:
        """Take the processes that have a group open, each with one descriptor for a group."""
        root = self.root
        groups = [int(name) for name in list_names(root, root.iommu_groups) if name.isdigit()]
        for group, processes in sorted(read_group_holders(root, groups).items()):
            for process in processes:
                top = os.path.join(root.proc, str(process.pid))
                for name in _PROCESS_FILES:
                    self.add_file(os.path.join(top, name))
                shown = f"{root.DEV}{os.path.relpath(root.vfio_group(group), root.join(root.DEV.strip('/')))}"
                self.entries[self._key(os.path.join(top, "fd", str(group)))] = shown
                self.entries.setdefault(self._key(root.vfio_group(group)), b"")

    def add_records(self, state: StateDir | None) -> None:
        """Take pyhostdev's records, and the functions whose record is about the present device."""
        top = self.root.state_dir
        if state is not None:
            self.entries[self._key(top)] = None
        for name in self.add_directory(top) if state is None else state.names():
            path = os.path.join(top, name)
            if not name.endswith(SUFFIX) or name.startswith("."):
                continue
            if state is None:
                self.add_file(path)
            else:
                self._add_record(state, name, path)
            data = self.entries.get(self._key(path))
            if isinstance(data, bytes):
                self._add_present(name, data)

    def _add_record(self, state: StateDir, name: str, path: str) -> None:
        try:
            data = state.read(name)
        except (SysfsError, ValueError):
            self.unreadable.append(self._key(path))
            return
        if data is not None:
            self.entries[self._key(path)] = data

    def _add_present(self, name: str, data: bytes) -> None:
        try:
            record = decode(data, name)
            status = read_status(self.root, self.root.pci_device(record.address))
        except (ValueError, HostdevError):
            return  # a reader reports it
        if status is not None and status.st_ino == record.original.incarnation:
            self.present.append(str(record.address))
