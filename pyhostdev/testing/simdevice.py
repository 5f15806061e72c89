# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One PCI function of a simulated host: its directory, attributes and links.
"""

from __future__ import annotations

import errno
import os

from pyhostdev.errors import InvalidAddressError
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyhostdev.testing.tree import Tree

UNSET_OVERRIDE = b"(null)\n"


class SimDevice:
    """One PCI function of a simulated host; every property is read from its directory."""

    __slots__ = ("address", "path", "tree")

    def __init__(self, tree: Tree, address: PCIDeviceAddress) -> None:
        self.tree = tree
        self.address = address
        self.path = tree.root.pci_device(address)

    def __repr__(self) -> str:
        return f"<SimDevice {self.address}>"

    def join(self, *names: str) -> str:
        """Return a path in the function's directory."""
        return "/".join((self.path, *names))

    @property
    def place(self) -> str:
        """The real directory; ``path`` goes through the bus's link."""
        return self.tree.place(self.path)

    def read(self, name: str) -> bytes | None:
        """Return the contents of an attribute, None if the function does not have it."""
        return self.tree.read_file(self.join(name))

    def update(self, name: str, content: bytes) -> None:
        """Change an existing attribute; a missing one is not created."""
        if self.tree.exists(self.join(name)):
            self.tree.replace_file(self.join(name), content)

    def number(self, name: str, base: int = 0) -> int:
        """
        Return the number in an attribute, -1 if it is absent: -1 matches no id.

        Raises:
            OSError: EINVAL if the attribute is not a number.
        """
        content = self.read(name)
        return -1 if content is None else _number(content, base, self.join(name))

    def _link_name(self, name: str) -> str | None:
        return self.tree.link_name(self.join(name))

    @property
    def driver(self) -> str | None:
        """The target of the ``driver`` link: bound, or being probed."""
        return self._link_name("driver")

    @property
    def override(self) -> str | None:
        """The override up to the newline, as the driver core compares it."""
        content = self.read("driver_override")
        if content in (None, b"", b"\n", UNSET_OVERRIDE):
            return None
        assert content is not None
        return content.removesuffix(b"\n").decode("utf-8", "surrogateescape")

    @property
    def group(self) -> int | None:
        """The number of the IOMMU group."""
        name = self._link_name("iommu_group")
        return None if name is None else _number(name, 10, self.join("iommu_group"))

    @property
    def physfn(self) -> PCIDeviceAddress | None:
        """The PF of a VF."""
        name = self._link_name("physfn")
        return None if name is None else PCIDeviceAddress.parse(name)

    @property
    def is_offline_controller(self) -> bool:
        """True for a VF of QEMU's NVMe controller: it has no queues unless a command to the PF gives it some."""
        return self.read("vendor") == b"0x1b36\n" and self.read("device") == b"0x0010\n" and self.physfn is not None

    @property
    def virtual_functions(self) -> list[PCIDeviceAddress]:
        """The VFs of a PF in the order of their index."""
        names = numbered(self.tree.list_dir(self.path), "virtfn")
        targets = [self._link_name(names[number]) for number in sorted(names)]
        return [PCIDeviceAddress.parse(target) for target in targets if target]

    @property
    def is_bridge(self) -> bool:
        """True if the header in config space is not an endpoint's; without config space, the class decides."""
        header = pciconfig.header_type(self.read("config") or b"")
        if header is not None:
            return header != pciregs.HEADER_TYPE_ENDPOINT
        return self.number("class") >> 8 == pciregs.CLASS_BRIDGE_PCI


def _number(text: bytes | str, base: int, path: str) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path) from None


def numbered(names: Iterable[str], prefix: str = "") -> dict[int, str]:
    """Return the names that consist of a prefix and a number, by number."""
    found = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {int(rest): name for rest, name in found.items() if rest.isdecimal()}


def find_device(tree: Tree, name: str) -> SimDevice | None:
    """Return the function with exactly this name, None if the bus does not have it."""
    try:
        address = PCIDeviceAddress.parse(name)
    except InvalidAddressError:
        return None
    if str(address) != name or not tree.is_directory(tree.root.pci_device(address)):
        return None
    return SimDevice(tree, address)


def list_devices(tree: Tree) -> list[SimDevice]:
    """Return all functions in the order of their names."""
    found = (find_device(tree, name) for name in tree.list_dir(tree.root.pci_devices))
    return [device for device in found if device is not None]
