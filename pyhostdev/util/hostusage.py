# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the host itself needs a device for: its console, its disks, its way to the network.

Taking such a device away is somebody's decision, never a consequence. What a host does not show is not in use.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virfile import list_names, read_attribute, read_lines, read_link

BOOT_VGA, MOUNTED, DEFAULT_ROUTE = "boot-vga", "mounted", "default-route"
DEFAULT_DESTINATION = "00000000"  # of /proc/net/route and, eight times, of ipv6_route
# Who has the firmware's screen before a driver of its own takes the device: sysfb, efifb, vesafb, simplefb, simpledrm
FIRMWARE_SCREENS = frozenset({"BOOTFB", "efifb", "vesafb", "simplefb", "simple-framebuffer", "simpledrm"})
# Namespaces that several controllers can reach lie below none of them (drivers/nvme/host/multipath.c)
_NVME_SUBSYSTEM = re.compile(r".*/nvme-subsystem/nvme-subsys[0-9]+(?=/)")
_NVME_CONTROLLER = re.compile(r"nvme[0-9]+")
_STACK_MAX = 64  # devices below one mount: partitions, mappings, RAID members
_DEVICE_NUMBER = re.compile(r"([0-9]{1,4}):([0-9]{1,7})")
_BOOT_ROOT = "root"  # what the kernel itself mounted at boot has this name and no node
_DEVICES_MAX = 1 << 12  # that are mounted or swapped to
_PARTS_MAX = 1 << 11  # of a device: a bridge has up to 1,024 ports
_PATHS_MAX = 1 << 14  # of all devices of a class that are in use, with what they are made of
_LINKS_MAX = 8  # from a name of a device node to the node


class Use(NamedTuple):
    """One use by the host: the reason code of a finding, and the end of its sentence."""

    reason: str
    text: str


class HostUsage:
    """What a host uses its devices for, read once."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self._block_names = _block_names(root)
        self._blocks = _all_below(root, root.class_block, self._block_names, _block_parts)
        self._screens = _all_below(root, root.class_graphics, _screen_names(root), _no_parts)
        self._firmware_screens = _firmware_screens(root)
        self._nets = _all_below(root, root.class_net, _route_names(root), _net_parts)

    def of(self, address: PCIDeviceAddress) -> list[Use]:
        """Return what the host uses one function for."""
        part = f"/{address}/"
        uses = []
        if read_attribute(self.root, os.path.join(self.root.pci_device(address), "boot_vga")) == "1":
            uses.append(Use(BOOT_VGA, "shows the host's console"))
        if str(address) in self._firmware_screens:
            uses.append(Use(BOOT_VGA, "has the screen that the firmware left to the host"))
        for name in self._screens:
            if any(part in path for path in self._screens[name]):
                uses.append(Use(BOOT_VGA, f"has framebuffer '{name}' of the host's consoles"))
        for name, where in self._block_names.items():
            if any(part in path for path in self._blocks[name]):
                uses.append(Use(MOUNTED, f"holds '{name}', which is in use as {where}"))
        for name in self._nets:
            if any(part in path for path in self._nets[name]):
                uses.append(Use(DEFAULT_ROUTE, f"has interface '{name}', which has the default route"))
        return uses


def _lines(root: HostRoot, path: str) -> Iterator[list[str]]:
    """Yield the words of each line of a table."""
    return (line.split() for line in read_lines(root, path))


def _block_names(root: HostRoot) -> dict[str, str]:
    """Return the block devices that are mounted or swapped to, and as what."""
    found: dict[str, str] = {}
    known = _BlockNames(root)
    for words in _lines(root, root.mounts):
        if len(words) > 1 and words[0].startswith(root.DEV):
            name = known.of(words[0], root.mounts)
            if name == _BOOT_ROOT:
                name = known.of_mount(words[1]) or name
            found[name] = f"the file system at '{words[1]}'"
    for words in islice(_lines(root, root.swaps), 1, None):
        if words and words[0].startswith(root.DEV):
            found[known.of(words[0], root.swaps)] = "swap"
    for names in _btrfs_devices(root):
        where = next((found[name] for name in names if name in found), None)
        if where is not None:
            found.update(dict.fromkeys(names, where))
    return found


class _BlockNames:
    """The kernel's names of device nodes; a node that is mounted in many places is looked at once."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self._names: dict[str, str] = {}
        self._numbers: dict[str, str] | None = None

    def of(self, device: str, table: str) -> str:
        """
        Return the kernel's name of a device node of a table.

        Raises:
            SysfsError: a link cannot be read, or there are too many devices (EFBIG).
        """
        if device not in self._names:
            if len(self._names) == _DEVICES_MAX:
                raise SysfsError(errno.EFBIG, table, f"tell what more than {_DEVICES_MAX} devices are")
            self._names[device] = _block_name(self.root, device)
        return self._names[device]

    def of_mount(self, where: str) -> str | None:
        """Return the block device of a mount by its number; None where the table of mounts does not have it."""
        if self._numbers is None:
            lines = _lines(self.root, self.root.mountinfo)
            self._numbers = {words[4]: words[2] for words in lines if len(words) > 4}
        found = _DEVICE_NUMBER.fullmatch(self._numbers.get(where, ""))
        target = None if found is None else _target(self.root, self.root.block_device(int(found[1]), int(found[2])))
        return None if target is None else os.path.basename(target)


def _btrfs_devices(root: HostRoot) -> Iterator[list[str]]:
    """Yield the block devices of each btrfs, of which the table of mounts names one only."""
    for name in list_names(root, root.fs_btrfs, _DEVICES_MAX):
        yield sorted(list_names(root, os.path.join(root.fs_btrfs, name, "devices"), _PARTS_MAX))


def _block_name(root: HostRoot, device: str) -> str:
    """Return the kernel's name of a device node; udev's names, and those of the device mapper, are links to it."""
    for _ in range(_LINKS_MAX):
        target = _target(root, root.join(device.lstrip("/")))
        if target is None:
            break
        device = os.path.join(os.path.dirname(device), target)
    return os.path.basename(device)


def _target(root: HostRoot, path: str) -> str | None:
    """Return a link's target; None when there is no link, or something else."""
    try:
        return read_link(root, path)
    except SysfsError as err:
        if err.errno == errno.EINVAL:
            return None
        raise


def _screen_names(root: HostRoot) -> list[str]:
    """Return the framebuffers; what else is in their class are the consoles on them."""
    names = list_names(root, root.class_graphics, _DEVICES_MAX)
    return sorted(name for name in names if name.removeprefix("fb").isdigit())


def _firmware_screens(root: HostRoot) -> set[str]:
    """Return the functions in whose memory the firmware's screen lies; who may not see addresses sees names here."""
    above: list[str] = []
    found: set[str] = set()
    try:
        for line in read_lines(root, root.iomem):
            name = line.partition(" : ")[2]
            depth = (len(line) - len(line.lstrip())) // 2
            above = [*above[:depth], name]
            if name in FIRMWARE_SCREENS:
                found.update(above)
    except SysfsError as err:
        if err.errno not in (errno.EACCES, errno.EPERM):
            raise  # hardened hosts keep the table from who plans without rights
    return found


def _route_names(root: HostRoot) -> list[str]:
    """Return the interfaces that a default route goes through, in both protocols."""
    names = dict.fromkeys(words[0] for words in _lines(root, root.route) if words[1:2] == [DEFAULT_DESTINATION])
    for words in _lines(root, root.ipv6_route):
        is_default = words[:2] == [DEFAULT_DESTINATION * 4, "00"]
        if is_default and words[-1] != "lo":
            names[words[-1]] = None
    return list(names)


def _all_below(
    root: HostRoot, directory: str, names: Iterable[str], parts_of: Callable[[HostRoot, str], list[str]]
) -> dict[str, list[str]]:
    """
    Return, for each device of a class, its sysfs path and those of all that it is made of.

    Raises:
        SysfsError: they cannot be read; a name is not one (EBADMSG); all together are too many (EFBIG).
    """
    found: dict[str, list[str]] = {}
    left = _PATHS_MAX
    for name in names:
        if "/" in name:
            raise SysfsError(errno.EBADMSG, directory, f"look for a device called {name!a}")
        found[name] = _below(root, directory, name, parts_of)
        left -= len(found[name])
        if left < 0:
            raise SysfsError(errno.EFBIG, directory, f"follow more than {_PATHS_MAX} devices")
    return found


def _below(root: HostRoot, directory: str, name: str, parts_of: Callable[[HostRoot, str], list[str]]) -> list[str]:
    """Return the sysfs paths of a device of a class and of all that it is made of; parts_of returns a path's parts."""
    found: list[str] = []
    todo = [os.path.join(directory, name)]
    while todo and len(found) < _STACK_MAX:
        path = _resolved(root, todo.pop())
        if f"{path}/" not in found:
            found.append(f"{path}/")
            todo += parts_of(root, path)
    return found


def _resolved(root: HostRoot, path: str) -> str:
    target = _target(root, path)
    return path if target is None else root.follow(path, target)


def _block_parts(root: HostRoot, path: str) -> list[str]:
    """Return the slaves of a mapping or an array, those of a partition's disk, the controllers of an NVMe subsystem."""
    parts = [os.path.join(top, "slaves", name) for top in (path, os.path.dirname(path)) for name in _slaves(root, top)]
    subsystem = _NVME_SUBSYSTEM.match(path)
    if subsystem is not None:
        names = sorted(list_names(root, subsystem[0], _PARTS_MAX))
        parts += [os.path.join(subsystem[0], name) for name in names if _NVME_CONTROLLER.fullmatch(name)]
    return parts


def _slaves(root: HostRoot, top: str) -> list[str]:
    return sorted(list_names(root, os.path.join(top, "slaves"), _PARTS_MAX))


def _net_parts(root: HostRoot, path: str) -> list[str]:
    """Return the lower interfaces of a bridge, a bond or a VLAN."""
    names = sorted(list_names(root, path, _PARTS_MAX))
    return [os.path.join(path, name) for name in names if name.startswith("lower_")]


def _no_parts(root: HostRoot, path: str) -> list[str]:
    return []
