# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The locations of a host's files: the only module that spells /sys, /dev, /run, /proc, /etc, /usr/share and /lib/modules.

Every reader takes a HostRoot, so that it works the same on the live host and on a directory that looks like a host.
"""

from __future__ import annotations

import os
import re

from pyhostdev.errors import ConfigError
from pyhostdev.util.pciaddress import PCIDeviceAddress

_DRIVER_NAME = r"[A-Za-z0-9_.+-]{1,64}"


def check_driver_name(name: str) -> str:
    """
    Return name if it is valid as one path component that names a driver or a module.

    Raises:
        ConfigError: it has characters that a driver name cannot have, or is "." or "..".
    """
    if re.fullmatch(_DRIVER_NAME, name) is None or name in (".", ".."):
        raise ConfigError(f"Invalid driver name {name!a}")
    return name


class HostRoot:
    """
    The directory that takes the place of ``/``; every path is a plain string below it.

    Paths are built only from validated integers and names, so unchecked user input never becomes a path component.
    """

    __slots__ = ("_below", "_devices", "path")

    DEV = "/dev/"  # the absolute path of device nodes, as the host sees it
    NVRAM = "/var/lib/libvirt/qemu/nvram"  # how the host itself spells where guests' firmware variables are
    SWTPM = "/var/lib/libvirt/swtpm"  # and where the state of their TPMs is

    def __init__(self, path: str | os.PathLike[str] = "/") -> None:
        self.path = os.path.abspath(os.fspath(path))
        self._below = "" if self.path == "/" else self.path
        self._devices = self.join("sys/bus/pci/devices")

    def __repr__(self) -> str:
        return f"HostRoot({self.path!r})"

    @property
    def is_live(self) -> bool:
        """True for the machine that this process runs on."""
        return self.path == "/"

    def join(self, *parts: str) -> str:
        """Return a path below the root."""
        if len(parts) == 1 and parts[0][:1] != "/":  # most paths; a plan makes hundreds
            return f"{self._below}/{parts[0]}"
        return os.path.join(self.path, *parts)

    def follow(self, link: str, target: str) -> str:
        """Return where a link below the root leads, also below the root; links on the way are not resolved."""
        below = os.path.join("/", os.path.relpath(os.path.dirname(link), self.path), target)
        return self.join(os.path.normpath(below).lstrip("/"))

    @property
    def pci_bus(self) -> str:
        """``sys/bus/pci``"""
        return self.join("sys/bus/pci")

    @property
    def pci_devices(self) -> str:
        """``sys/bus/pci/devices``: one link per function."""
        return self._devices

    def pci_device(self, address: PCIDeviceAddress | str) -> str:
        """
        The function's directory.

        Raises:
            InvalidAddressError: the address is a string that is not a PCI address.
        """
        return f"{self._devices}/{PCIDeviceAddress.of(address)}"

    @property
    def pci_drivers(self) -> str:
        """``sys/bus/pci/drivers``: one directory per registered driver."""
        return self.join("sys/bus/pci/drivers")

    def pci_driver(self, name: str) -> str:
        """
        The driver's directory.

        Raises:
            ConfigError: the name is not valid as one path component.
        """
        return self.join("sys/bus/pci/drivers", check_driver_name(name))

    @property
    def drivers_probe(self) -> str:
        """``sys/bus/pci/drivers_probe``"""
        return self.join("sys/bus/pci/drivers_probe")

    @property
    def iommu_groups(self) -> str:
        """``sys/kernel/iommu_groups``: one directory per group."""
        return self.join("sys/kernel/iommu_groups")

    def iommu_group_devices(self, group: int) -> str:
        """The directory that lists a group's members, PCI functions and others."""
        return self.join(f"sys/kernel/iommu_groups/{int(group)}/devices")

    @property
    def mdev_devices(self) -> str:
        """``sys/bus/mdev/devices``: one link per mediated device."""
        return self.join("sys/bus/mdev/devices")

    def mdev_device(self, uuid: str) -> str:
        """The directory of a mediated device; the caller has parsed the UUID."""
        return self.join("sys/bus/mdev/devices", uuid)

    @property
    def library_directories(self) -> tuple[str, str]:
        """``usr/lib64`` and ``usr/lib``"""
        return self.join("usr/lib64"), self.join("usr/lib")

    @property
    def firmware_descriptors(self) -> tuple[str, str]:
        """``usr/share/qemu/firmware`` and ``etc/qemu/firmware``, the vendor's and the administrator's."""
        return self.join("usr/share/qemu/firmware"), self.join("etc/qemu/firmware")

    @staticmethod
    def tpm_cancel(device: str) -> str:
        """``/sys/class/tpm/NAME/device/cancel`` of a TPM's node, as the host itself spells it."""
        return os.path.join("/sys/class/tpm", os.path.basename(device), "device/cancel")

    def dmi(self, name: str) -> str:
        """``sys/class/dmi/id/NAME``: one value of the host's SMBIOS tables; the name is a constant."""
        return self.join("sys/class/dmi/id", name)

    @property
    def dev_kvm(self) -> str:
        """``dev/kvm``"""
        return self.join("dev/kvm")

    @property
    def dev_vhost_vsock(self) -> str:
        """``dev/vhost-vsock``"""
        return self.join("dev/vhost-vsock")

    @property
    def dev_net_tun(self) -> str:
        """``dev/net/tun``: the node of taps."""
        return self.join("dev/net/tun")

    @property
    def dev_vhost_net(self) -> str:
        """``dev/vhost-net``: the node through which the kernel moves a guest's packets."""
        return self.join("dev/vhost-net")

    def macvtap_node(self, index: int) -> str:
        """``dev/tapINDEX``, the node of the macvtap with this number."""
        return self.join("dev", f"tap{int(index)}")

    @property
    def process_status(self) -> str:
        """``proc/self/status``"""
        return self.join("proc/self/status")

    @property
    def vfio_container(self) -> str:
        """``dev/vfio/vfio``: the container of groups; absent until its module is loaded."""
        return self.join("dev/vfio/vfio")

    @property
    def usb_devices(self) -> str:
        """``sys/bus/usb/devices``: one link per device, and one per interface of a device."""
        return self.join("sys/bus/usb/devices")

    def usb_bind(self, driver: str) -> str:
        """
        ``sys/bus/usb/drivers/DRIVER/bind``

        Raises:
            ConfigError: the name is not valid as one path component.
        """
        return self.join("sys/bus/usb/drivers", check_driver_name(driver), "bind")

    def usb_node(self, bus: int, device: int) -> str:
        """``dev/bus/usb/BUS/DEVICE``"""
        return self.join("dev/bus/usb", f"{bus:03d}", f"{device:03d}")

    @property
    def dev_vfio(self) -> str:
        """``dev/vfio``: the container node and one node per group."""
        return self.join("dev/vfio")

    def vfio_group(self, group: int) -> str:
        """``dev/vfio/GROUP``, the character device of a group."""
        return self.join(f"dev/vfio/{int(group)}")

    @property
    def dev_vfio_devices(self) -> str:
        """``dev/vfio/devices``: one node per function, for iommufd (Linux 6.6)."""
        return self.join("dev/vfio/devices")

    @property
    def dev_dri(self) -> str:
        """``dev/dri``: the nodes of graphics cards."""
        return self.join("dev/dri")

    @property
    def dev_iommu(self) -> str:
        """``dev/iommu``: present if the kernel has iommufd."""
        return self.join("dev/iommu")

    @property
    def class_iommu(self) -> str:
        """``sys/class/iommu``: one link per IOMMU; ``devices`` below it lists the devices that it translates."""
        return self.join("sys/class/iommu")

    def class_vfio(self, group: int) -> str:
        """``sys/class/vfio/GROUP``: a group's node in the kernel's device model."""
        return self.join("sys/class/vfio", str(int(group)))

    def module(self, name: str) -> str:
        """
        ``sys/module/NAME`` of a loaded module; the kernel spells names with underscores.

        Raises:
            ConfigError: the name is not valid as one path component.
        """
        return self.join("sys/module", check_driver_name(name).replace("-", "_"))

    @property
    def modules(self) -> str:
        """``sys/module``: the loaded and built-in modules."""
        return self.join("sys/module")

    def modules_directory(self, release: str) -> str:
        """
        ``lib/modules/RELEASE``

        Raises:
            ConfigError: the release is not valid as one path component.
        """
        return self.join("lib/modules", check_driver_name(release))

    def tables(self) -> list[str]:
        """Return the tables that a snapshot contains: facts about the host, and its use of its devices."""
        names = (
            self.kernel_release,
            self.modprobe,
            self.boot_id,
            self.mounts,
            self.mountinfo,
            self.swaps,
            self.iomem,
            self.route,
            self.ipv6_route,
            self.ipv6_addresses,
            self.online_cpus,
            self.online_nodes,
        )
        return list(names)

    def pci_ids(self) -> list[str]:
        """Return where distributions keep the names of PCI vendors and devices."""
        return [self.join("usr/share", name, "pci.ids") for name in ("misc", "hwdata", "")]

    @property
    def dev_block(self) -> str:
        """``sys/dev/block``: links to block devices by number."""
        return self.join("sys/dev/block")

    @property
    def driverctl_directory(self) -> str:
        """``etc/driverctl.d``: the overrides that driverctl has saved."""
        return self.join("etc/driverctl.d")

    @property
    def installed_kernels(self) -> str:
        """``lib/modules``: one directory per installed kernel."""
        return self.join("lib/modules")

    def modules_dep(self, release: str) -> str:
        """``lib/modules/RELEASE/modules.dep``: all modules that can be loaded."""
        return self.join("lib/modules", release, "modules.dep")

    def modules_alias(self, release: str) -> str:
        """``lib/modules/RELEASE/modules.alias``: the device IDs that each module supports."""
        return self.join("lib/modules", release, "modules.alias")

    @property
    def kernel_release(self) -> str:
        """``proc/sys/kernel/osrelease``"""
        return self.join("proc/sys/kernel/osrelease")

    @property
    def modprobe(self) -> str:
        """``proc/sys/kernel/modprobe``: the program that the kernel uses to load modules."""
        return self.join("proc/sys/kernel/modprobe")

    @property
    def boot_id(self) -> str:
        """``proc/sys/kernel/random/boot_id``"""
        return self.join("proc/sys/kernel/random/boot_id")

    @property
    def proc(self) -> str:
        """``proc``"""
        return self.join("proc")

    def tasks(self, pid: int) -> str:
        """``proc/PID/task``: the threads of a process"""
        return self.join("proc", str(pid), "task")

    @property
    def online_cpus(self) -> str:
        """``sys/devices/system/cpu/online``"""
        return self.join("sys/devices/system/cpu/online")

    @property
    def online_nodes(self) -> str:
        """``sys/devices/system/node/online``"""
        return self.join("sys/devices/system/node/online")

    @property
    def hugepages(self) -> str:
        """``sys/kernel/mm/hugepages``: one directory per size."""
        return self.join("sys/kernel/mm/hugepages")

    def free_hugepages(self, kib: int) -> str:
        """``sys/kernel/mm/hugepages/hugepages-SIZEkB/free_hugepages``"""
        return self.join(f"sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages")

    @property
    def overcommit_memory(self) -> str:
        """``proc/sys/vm/overcommit_memory``"""
        return self.join("proc/sys/vm/overcommit_memory")

    @property
    def locks(self) -> str:
        """``proc/locks``"""
        return self.join("proc/locks")

    @property
    def mounts(self) -> str:
        """``proc/mounts``"""
        return self.join("proc/mounts")

    @property
    def mountinfo(self) -> str:
        """``proc/self/mountinfo``: mounts with the numbers of their devices."""
        return self.join("proc/self/mountinfo")

    def block_device(self, major: int, minor: int) -> str:
        """``sys/dev/block/MAJOR:MINOR``, a link to a block device."""
        return self.join("sys/dev/block", f"{major:d}:{minor:d}")

    def character_device(self, major: int, minor: int) -> str:
        """``sys/dev/char/MAJOR:MINOR``, a link to a character device."""
        return self.join("sys/dev/char", f"{major:d}:{minor:d}")

    @property
    def swaps(self) -> str:
        """``proc/swaps``"""
        return self.join("proc/swaps")

    @property
    def iomem(self) -> str:
        """``proc/iomem``: the owner of each part of the address space, nested by indentation."""
        return self.join("proc/iomem")

    @property
    def route(self) -> str:
        """``proc/net/route``"""
        return self.join("proc/net/route")

    @property
    def ipv6_route(self) -> str:
        """``proc/net/ipv6_route``"""
        return self.join("proc/net/ipv6_route")

    @property
    def unix_sockets(self) -> str:
        """``proc/net/unix``: the UNIX sockets of this network namespace."""
        return self.join("proc/net/unix")

    @property
    def tcp_sockets(self) -> tuple[str, str]:
        """``proc/net/tcp`` and ``proc/net/tcp6``: TCP sockets of this network namespace, listening ones first."""
        return self.join("proc/net/tcp"), self.join("proc/net/tcp6")

    @property
    def first_unprivileged_port(self) -> str:
        """``proc/sys/net/ipv4/ip_unprivileged_port_start``"""
        return self.join("proc/sys/net/ipv4/ip_unprivileged_port_start")

    @property
    def ipv6_addresses(self) -> str:
        """``proc/net/if_inet6``: the IPv6 addresses of all network interfaces."""
        return self.join("proc/net/if_inet6")

    @property
    def class_block(self) -> str:
        """``sys/class/block``: disks, partitions, mappings."""
        return self.join("sys/class/block")

    @property
    def fs_btrfs(self) -> str:
        """``sys/fs/btrfs``: one directory per mounted file system, listing its devices."""
        return self.join("sys/fs/btrfs")

    @property
    def class_graphics(self) -> str:
        """``sys/class/graphics``: framebuffers."""
        return self.join("sys/class/graphics")

    @property
    def class_net(self) -> str:
        """``sys/class/net``: network interfaces."""
        return self.join("sys/class/net")

    def driverctl_override(self, address: PCIDeviceAddress | str) -> str:
        """``etc/driverctl.d/pci-ADDRESS``: the override that driverctl sets whenever the function appears."""
        return self.join(f"etc/driverctl.d/pci-{PCIDeviceAddress.of(address)}")

    @property
    def libvirt_network_states(self) -> str:
        """``run/libvirt/network``: libvirt's status of active networks, and directories of their ports."""
        return self.join("run/libvirt/network")

    @property
    def libvirt_networks(self) -> str:
        """``etc/libvirt/qemu/networks``: the definitions of libvirt's networks."""
        return self.join("etc/libvirt/qemu/networks")

    def libvirt_network_status(self, name: str) -> str:
        """``run/libvirt/network/NAME.xml``: libvirt's status of an active network; the caller has checked the name."""
        return self.join("run/libvirt/network", f"{name}.xml")

    def libvirt_network(self, name: str) -> str:
        """``etc/libvirt/qemu/networks/NAME.xml``: a network's definition; the caller has checked the name."""
        return self.join("etc/libvirt/qemu/networks", f"{name}.xml")

    def libvirt_hook(self, name: str) -> str:
        """``etc/libvirt/hooks/qemu.d/NAME``: a hook that libvirt runs when a guest starts and ends."""
        return self.join("etc/libvirt/hooks/qemu.d", name)

    @property
    def libvirt_status(self) -> str:
        """``run/libvirt/qemu``: libvirtd's status XML of each running domain."""
        return self.join("run/libvirt/qemu")

    @property
    def state_dir(self) -> str:
        """``run/pyhostdev``: does not survive a reboot; neither do the kernel's bindings."""
        return self.join("run/pyhostdev")
