# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The files of a simulated host: one PCI function's directory, and the few ways the kernel changes entries.

Every change here can be made twice without harm: a kernel that was interrupted repeats its last write.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pyhostdev.errors import InvalidAddressError
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot

_CHUNK = 8192  # two pages: all that an attribute or config space has, in one read
UNSET_OVERRIDE = b"(null)\n"


def link_name(path: str) -> str | None:
    """Return the last component of a link's target, None when there is no link."""
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def put_link(path: str, target: str) -> None:
    """Make a relative link from path to the target's real place, in place of any other."""
    drop_file(path)
    place = os.path.realpath(os.path.dirname(path))
    os.symlink(os.path.relpath(os.path.realpath(target), place), path)


def drop_file(path: str) -> None:
    """Remove a file or a link that may be gone already."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def drop_tree(path: str) -> None:
    """Remove a directory with all that is in it; shutil would cost every process its import."""
    for name in list_dir(path):
        entry = os.path.join(path, name)
        if os.path.isdir(entry) and not os.path.islink(entry):
            drop_tree(entry)
        else:
            drop_file(entry)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def read_file(path: str) -> bytes | None:
    """Return a file's bytes, None when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = chunk = os.read(fd, _CHUNK)
        while len(chunk) == _CHUNK:
            chunk = os.read(fd, _CHUNK)
            content += chunk
        return content
    finally:
        os.close(fd)


def put_file(path: str, content: bytes) -> None:
    """Write a file's whole content."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
        os.ftruncate(fd, len(content))
    finally:
        os.close(fd)


def list_dir(path: str) -> list[str]:
    """Return the sorted names in a directory, none when it is not there."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


class SimDevice:
    """One PCI function of a simulated host; every property is read from its directory."""

    __slots__ = ("address", "path", "root")

    def __init__(self, root: HostRoot, address: PCIDeviceAddress) -> None:
        self.root = root
        self.address = address
        self.path = root.pci_device(address)

    def __repr__(self) -> str:
        return f"<SimDevice {self.address}>"

    def join(self, *names: str) -> str:
        """Return a path in the function's directory."""
        return os.path.join(self.path, *names)

    @property
    def place(self) -> str:
        """The directory itself; ``path`` goes through the bus's link."""
        return os.path.realpath(self.path)

    def read(self, name: str) -> bytes | None:
        """Return an attribute, None when the function has none of that name."""
        return read_file(self.join(name))

    def update(self, name: str, content: bytes) -> None:
        """Change an attribute that is there; others do not appear."""
        if os.path.exists(self.join(name)):
            temporary = self.root.join(f"fakehost.{os.getpid()}")
            put_file(temporary, content)
            os.rename(temporary, self.join(name))  # who is killed here leaves the old or the new one

    def number(self, name: str) -> int:
        """Return an attribute's number, -1 when there is none: it then matches no id."""
        content = self.read(name)
        return -1 if content is None else int(content, 0)

    @property
    def driver(self) -> str | None:
        """Where the ``driver`` link leads: bound, or being probed."""
        return link_name(self.join("driver"))

    @property
    def override(self) -> str | None:
        """The override's bytes up to the newline, as the driver core compares them."""
        content = self.read("driver_override")
        if content in (None, b"", b"\n", UNSET_OVERRIDE):
            return None
        assert content is not None
        return content.removesuffix(b"\n").decode("utf-8", "surrogateescape")

    @property
    def group(self) -> int | None:
        """Number of the IOMMU group."""
        name = link_name(self.join("iommu_group"))
        return None if name is None else int(name)

    @property
    def physfn(self) -> PCIDeviceAddress | None:
        """The PF of a VF."""
        name = link_name(self.join("physfn"))
        return None if name is None else PCIDeviceAddress.parse(name)

    @property
    def virtual_functions(self) -> list[PCIDeviceAddress]:
        """The VFs of a PF in the order of their index."""
        names = [name for name in list_dir(self.path) if name.startswith("virtfn")]
        names.sort(key=lambda name: int(name.removeprefix("virtfn")))
        targets = [link_name(self.join(name)) for name in names]
        return [PCIDeviceAddress.parse(target) for target in targets if target]

    @property
    def is_bridge(self) -> bool:
        """True where config space has another header than an endpoint's, by class where there is no config."""
        header = pciconfig.header_type(self.read("config") or b"")
        if header is not None:
            return header != pciregs.HEADER_TYPE_ENDPOINT
        return self.number("class") >> 8 == pciregs.CLASS_BRIDGE_PCI


def find_device(root: HostRoot, name: str) -> SimDevice | None:
    """Return the function of that exact name, None when the bus has none."""
    try:
        address = PCIDeviceAddress.parse(name)
    except InvalidAddressError:
        return None
    if str(address) != name or not os.path.isdir(root.pci_device(address)):
        return None
    return SimDevice(root, address)


def list_devices(root: HostRoot) -> list[SimDevice]:
    """Return all functions in the order of their names."""
    found = (find_device(root, name) for name in list_dir(root.pci_devices))
    return [device for device in found if device is not None]
