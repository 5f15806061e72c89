# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Host devices in use by the host itself: consoles, disks, the default route.

Taking such a device needs an explicit decision, so a plan asks for consent. A use that the host does not show is not
reported.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import islice

from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import list_names, read_attributes, read_lines, read_link, read_link_name

BOOT_VGA, MOUNTED, DEFAULT_ROUTE = "boot-vga", "mounted", "default-route"
DEFAULT_DESTINATION = "00000000"  # in /proc/net/route and, four times, in ipv6_route
# Owners of the firmware's screen until a native driver binds: sysfb, efifb, vesafb, simplefb, simpledrm
FIRMWARE_SCREENS = frozenset({"BOOTFB", "efifb", "vesafb", "simplefb", "simple-framebuffer", "simpledrm"})
# A namespace shared by several controllers is not below any of them in sysfs (drivers/nvme/host/multipath.c)
_NVME_SUBSYSTEM = r".*/nvme-subsystem/nvme-subsys[0-9]+(?=/)"
_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_NVME_CONTROLLER = r"nvme[0-9]+"
_STACK_MAX = 64  # devices below one mount: partitions, mappings, RAID members
_DEVICE_NUMBER = r"([0-9]{1,4}):([0-9]{1,7})"
_BOOT_ROOT = "root"  # the name of the device that the kernel mounted at boot; it has no node
_LINK_SCOPE = "20"  # in /proc/net/if_inet6: IPV6_ADDR_LINKLOCAL (net/ipv6.h)
_DEVICES_MAX = 1 << 12  # mounted or swap devices
_PARTS_MAX = 1 << 11  # per device: a bridge has up to 1,024 ports
_PATHS_MAX = 1 << 14  # all devices of a class in use, with their parts
_LINKS_MAX = 8  # links from the name of a device node to the node


class HostUse(NamedTuple):
    """One use by the host: the reason code of a finding, and the predicate of its sentence."""

    reason: str
    text: str


class HostUsage:
    """The host's use of its devices, read once."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self._block_names = _block_names(root)
        self._blocks = _all_below(root, root.class_block, self._block_names, _block_parts)
        self._screens = _all_below(root, root.class_graphics, _screen_names(root), _without_parts)
        self._firmware_screens = _firmware_screens(root)
        self._nets = _all_below(root, root.class_net, _route_names(root), _net_parts)
        self._uses = self._uses_by_part()

    def _uses_by_part(self) -> dict[str, list[HostUse]]:
        """Return the uses by each directory that a path of a device in use has."""
        found_uses = [
            (self._screens[name], BOOT_VGA, f"has framebuffer '{name}' of the host's consoles")
            for name in self._screens
        ]
        found_uses += [
            (self._blocks[name], MOUNTED, f"holds '{name}', which is in use as {_words(where)}")
            for name, where in self._block_names.items()
        ]
        found_uses += [
            (self._nets[name], DEFAULT_ROUTE, f"has interface '{name}', which has the default route")
            for name in self._nets
        ]
        found: dict[str, list[HostUse]] = {}
        for paths, reason, text in found_uses:
            for part in {part for path in paths for part in path.split("/")[1:-1]}:
                found.setdefault(part, []).append(HostUse(reason, text))
        return found

    @property
    def addresses(self) -> set[str]:
        """
        The names of all that is in use, addresses of functions among them.

        For other functions, ``of`` only reports a firmware screen, which the function's own directory shows.
        """
        return {*self._uses, *self._firmware_screens}

    def mounts(self) -> dict[str, list[str]]:
        """Return the mount points of the disks below each directory that a path of one has; swap is named so."""
        found: dict[str, list[str]] = {}
        for name, where in self._block_names.items():
            for part in {part for path in self._blocks[name] for part in path.split("/")[1:-1]}:
                found.setdefault(part, []).append(where or "swap")
        return {part: list(dict.fromkeys(places)) for part, places in found.items()}

    def of(self, address: PCIDeviceAddress) -> list[HostUse]:
        """Return what the host uses a function for."""
        return self.of_all([address])[0]

    def of_all(
        self, addresses: Sequence[PCIDeviceAddress], vfs: Container[PCIDeviceAddress] = ()
    ) -> list[list[HostUse]]:
        """
        Return what the host uses each function for.

        Args:
            vfs: those that are virtual functions, which never show the console.
        """
        asked = [address for address in addresses if address not in vfs]
        texts = read_attributes(self.root, [f"{self.root.pci_device(address)}/boot_vga" for address in asked])
        boot = {address for address, text in zip(asked, texts, strict=True) if text == "1"}
        return [self._of(str(address), address in boot) for address in addresses]

    def _of(self, address: str, is_boot_display: bool) -> list[HostUse]:
        uses = []
        if is_boot_display:
            uses.append(HostUse(BOOT_VGA, "shows the host's console"))
        if address in self._firmware_screens:
            uses.append(HostUse(BOOT_VGA, "has the screen that the firmware left to the host"))
        return uses + self._uses.get(address, [])


def _lines(root: HostRoot, path: str) -> Iterator[list[str]]:
    """Yield the fields of each line of a table."""
    return (line.split() for line in read_lines(root, path))


def _words(mount_point: str | None) -> str:
    return "swap" if mount_point is None else f"the file system at '{mount_point}'"


def _block_names(root: HostRoot) -> dict[str, str | None]:
    """Return the block devices that are mounted, with their mount points, and those that are swap, with None."""
    found: dict[str, str | None] = {}
    known = _BlockNames(root)
    for words in _lines(root, root.mounts):
        if len(words) > 1 and words[0].startswith(root.DEV):
            name = known.of(words[0], root.mounts)
            if name == _BOOT_ROOT:
                name = known.of_mount(words[1]) or name
            found[name] = words[1]
    for words in islice(_lines(root, root.swaps), 1, None):
        if words and words[0].startswith(root.DEV):
            found[known.of(words[0], root.swaps)] = None
    for names in _btrfs_devices(root):
        used = [found[name] for name in names if name in found]
        if used:
            found.update(dict.fromkeys(names, used[0]))
    return found


class _BlockNames:
    """The kernel's names of device nodes; a node mounted in several places is looked up once."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self._names: dict[str, str] = {}
        self._numbers: dict[str, str] | None = None

    def of(self, device: str, table: str) -> str:
        """
        Return the kernel's name of a device node in a table.

        Raises:
            SysfsError: a link cannot be read, or there are too many devices (EFBIG).
        """
        if device not in self._names:
            if len(self._names) == _DEVICES_MAX:
                raise SysfsError(errno.EFBIG, table, f"identify more than {_DEVICES_MAX} devices")
            self._names[device] = _block_name(self.root, device)
        return self._names[device]

    def of_mount(self, where: str) -> str | None:
        """Return the block device of a mount by its number; None if mountinfo does not list it."""
        if self._numbers is None:
            lines = _lines(self.root, self.root.mountinfo)
            self._numbers = {words[4]: words[2] for words in lines if len(words) > 4}
        found = re.fullmatch(_DEVICE_NUMBER, self._numbers.get(where, ""))
        target = None if found is None else _target(self.root, self.root.block_device(int(found[1]), int(found[2])))
        return None if target is None else os.path.basename(target)


def _btrfs_devices(root: HostRoot) -> Iterator[list[str]]:
    """Yield the block devices of each btrfs; the table of mounts names only one of them."""
    for name in list_names(root, root.fs_btrfs, _DEVICES_MAX):
        yield sorted(list_names(root, os.path.join(root.fs_btrfs, name, "devices"), _PARTS_MAX))


def _block_name(root: HostRoot, device: str) -> str:
    """Return the kernel's name of a device node; names made by udev and the device mapper are links to the node."""
    for _ in range(_LINKS_MAX):
        target = _target(root, root.join(device.lstrip("/")))
        if target is None:
            break
        device = os.path.join(os.path.dirname(device), target)
    return os.path.basename(device)


def _target(root: HostRoot, path: str) -> str | None:
    """Return a link's target; None if the path is absent or not a link."""
    try:
        return read_link(root, path)
    except SysfsError as err:
        if err.errno == errno.EINVAL:
            return None
        raise


def _screen_names(root: HostRoot) -> list[str]:
    """Return the framebuffers; the other entries of their class are consoles."""
    names = list_names(root, root.class_graphics, _DEVICES_MAX)
    return sorted(name for name in names if name.removeprefix("fb").isdigit())


def _firmware_screens(root: HostRoot) -> set[str]:
    """Return the functions whose memory holds the firmware's screen; names are visible to unprivileged users, too."""
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
            raise  # hardened hosts hide the table from unprivileged users
    return found


def _route_names(root: HostRoot) -> list[str]:
    """Return the interfaces of all default routes, IPv4 and IPv6."""
    names = dict.fromkeys(words[0] for words in _lines(root, root.route) if words[1:2] == [DEFAULT_DESTINATION])
    for words in _lines(root, root.ipv6_route):
        is_default = words[:2] == [DEFAULT_DESTINATION * 4, "00"]
        if is_default and words[-1] != "lo":
            names[words[-1]] = None
    return list(names)


def interface_use(root: HostRoot, address: PCIDeviceAddress) -> str | None:
    """
    Return the network interface of a function that the host uses: it has a route or an address, or is part of a bridge.

    A link-local IPv6 address does not count, because every interface that is up has one.

    Raises:
        SysfsError: the host cannot be read.

    Host: proc/net/route, ipv6_route, if_inet6; the directory net of the function, and the link master there
    """
    place = os.path.join(root.pci_device(address), "net")
    names = list_names(root, place)
    if not names:
        return None
    used = {words[0] for words in _lines(root, root.route)}
    used |= {words[-1] for words in _lines(root, root.ipv6_addresses) if words[3:4] != [_LINK_SCOPE]}
    used |= {name for name in names if read_link_name(root, os.path.join(place, name, "master")) is not None}
    return next((name for name in names if name in used), None)


def _all_below(
    root: HostRoot, directory: str, names: Iterable[str], parts_of: Callable[[HostRoot, str], list[str]]
) -> dict[str, list[str]]:
    """
    Return, for each device of a class, the sysfs paths of the device and of all its parts.

    Raises:
        SysfsError: a path cannot be read; a name is invalid (EBADMSG); there are too many paths (EFBIG).
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


def names_by_function(root: HostRoot, directory: str) -> dict[str, list[str]]:
    """Return the devices of a class by the address of the function that they are on."""
    found: dict[str, list[str]] = {}
    for name in sorted(list_names(root, directory)):
        parts = re.findall(_ADDRESS, _target(root, os.path.join(directory, name)) or "")
        if parts:
            found.setdefault(parts[-1], []).append(name)
    return found


def names_on(root: HostRoot, directory: str, address: PCIDeviceAddress) -> list[str]:
    """Return the devices of a class on one function."""
    return names_by_function(root, directory).get(str(address), [])


def net_device_paths(root: HostRoot, name: str) -> list[str]:
    """Return the sysfs paths of a network interface and of the interfaces below it; empty if there is none."""
    return _paths_of(root, root.class_net, name, _net_parts)


def block_device_paths(root: HostRoot, name: str) -> list[str]:
    """Return the sysfs paths of a disk and of the disks below it; empty if there is none."""
    return _paths_of(root, root.class_block, name, _block_parts)


def _paths_of(root: HostRoot, directory: str, name: str, parts_of: Callable[[HostRoot, str], list[str]]) -> list[str]:
    return _below(root, directory, name, parts_of) if _target(root, os.path.join(directory, name)) else []


def _below(root: HostRoot, directory: str, name: str, parts_of: Callable[[HostRoot, str], list[str]]) -> list[str]:
    """Return the sysfs paths of a device and of all its parts; ``parts_of`` returns the direct parts of a path."""
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
    """Return the slaves of a mapping, an array or a partition's disk, and the controllers of an NVMe subsystem."""
    parts = [os.path.join(top, "slaves", name) for top in (path, os.path.dirname(path)) for name in _slaves(root, top)]
    subsystem = re.match(_NVME_SUBSYSTEM, path)
    if subsystem is not None:
        names = sorted(list_names(root, subsystem[0], _PARTS_MAX))
        parts += [os.path.join(subsystem[0], name) for name in names if re.fullmatch(_NVME_CONTROLLER, name)]
    return parts


def _slaves(root: HostRoot, top: str) -> list[str]:
    return sorted(list_names(root, os.path.join(top, "slaves"), _PARTS_MAX))


def _net_parts(root: HostRoot, path: str) -> list[str]:
    """Return the lower interfaces of a bridge, a bond or a VLAN."""
    names = sorted(list_names(root, path, _PARTS_MAX))
    return [os.path.join(path, name) for name in names if name.startswith("lower_")]


def _without_parts(root: HostRoot, path: str) -> list[str]:
    return []
