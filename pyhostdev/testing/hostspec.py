# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The values in a host's description: functions, drivers, and the rest.
"""

from __future__ import annotations

from pyhostdev.testing.driverspec import DriverSpec
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple

DEFAULT_RELEASE = "6.1.0-fake"
DEFAULT_BOOT_ID = "1bd2d2c6-3fd5-4b5e-9e0c-5f3a3c9e1d00"
IOMMUFD_KINDS = ("available", "loaded")
EXPRESS_KINDS = {  # PCIE50 7.5.3.2, bits 4-7
    "endpoint": 0x0,
    "legacy-endpoint": 0x1,
    "root-port": 0x4,
    "upstream-port": 0x5,
    "downstream-port": 0x6,
    "pci-bridge": 0x7,
    "integrated-endpoint": 0x9,
}


class FunctionSpec(NamedTuple):
    """One PCI function of a described host."""

    address: PCIDeviceAddress
    vendor: int
    device: int
    class_: int
    driver: str | None = None
    override: str | None = None
    group: int | None = None
    subsystem: tuple[int, int] | None = None
    revision: int = 0
    numa_node: int = -1
    multifunction: bool = False
    bridge: tuple[int, int] | None = None
    express: int | None = None
    pm: str | None = None
    flr: bool = False
    af: bool = False
    acs: str | None = None
    ari: bool = False
    sriov: int | None = None
    vf_device: int = 0
    vf_offset: int = 1
    vf_stride: int = 1
    autoprobe: int = 1
    physfn: PCIDeviceAddress | None = None
    parent: PCIDeviceAddress | None = None
    boot_vga: bool = False
    net: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    dump: str | None = None
    nodriver: bool = False
    patches: tuple[tuple[int, bytes], ...] = ()

    def bridge_to(self, bus: int) -> bool:
        """True if the bus directly below this bridge has that number."""
        return self.bridge is not None and self.bridge[0] == bus


class MemberSpec(NamedTuple):
    """A group member that is not a PCI function."""

    group: int
    name: str
    driver: str | None


class HostSpec:
    """A described host, as given by its text."""

    __slots__ = (
        "directory",
        "drivers",
        "functions",
        "group_types",
        "members",
        "mounts",
        "name",
        "routes",
        "settings",
        "swaps",
        "text",
    )

    def __init__(self, name: str, directory: str = "") -> None:
        self.name = name
        self.directory = directory  # where the file of dump= is looked up
        self.functions: dict[PCIDeviceAddress, FunctionSpec] = {}
        self.drivers: dict[str, DriverSpec] = {}
        self.members: list[MemberSpec] = []
        self.group_types: dict[int, str] = {}
        self.settings: dict[str, str] = {}
        self.mounts: list[tuple[str, str, str]] = []
        self.swaps: list[str] = []
        self.routes: list[str] = []
        self.text = ""  # the description that was read, if any

    @property
    def release(self) -> str:
        """The kernel's release."""
        return self.settings.get("release", DEFAULT_RELEASE)

    @property
    def boot_id(self) -> str:
        """The boot id."""
        return self.settings.get("boot-id", DEFAULT_BOOT_ID)

    @property
    def iommufd(self) -> str | None:
        """How the kernel has iommufd: as a module, loaded, or not at all."""
        return self.settings.get("iommufd")

    def group_type(self, group: int) -> str:
        """Return the domain type of a group."""
        return self.group_types.get(group, "DMA")
