# SPDX-License-Identifier: LGPL-2.1-or-later
"""
PCI functions of a host: the facts about one function and its relatives, from sysfs and configuration space.

Mirrors: src/util/virpci.c. This module only reads; binding is in pcidriver.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from functools import lru_cache
from itertools import takewhile

from pyhostdev.errors import SysfsError
from pyhostdev.util import pciconfig, pciregs, pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.iommugroup import GroupMember, is_vfio_driver, read_group, read_iommu_group_members
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, Any, TypeVar
from pyhostdev.util.virfile import (
    list_names,
    read_attribute,
    read_link,
    read_link_name,
    read_link_names,
    read_number,
    read_status,
)

T = TypeVar("T")

__all__ = [
    "GroupMember",
    "PCIDevice",
    "PCIDeviceAddress",
    "is_vfio_driver",
    "read_iommu_group_members",
    "read_pci_device",
]


BUS_RESETS = ("bus", "cxl_bus")
VFS_MAX = 0xFFFF  # SR-IOV 1.1, 3.3.6: TotalVFs has 16 bits
_OWN_DOMAIN = r"pci([0-9a-f]{4,8}):[0-9a-f]{2}"


@lru_cache(maxsize=1024)  # VFs come by the hundred, PFs do not
def _parse_physfn(text: str) -> PCIDeviceAddress:
    return PCIDeviceAddress.parse(text)


class PCIDevice:
    """
    One PCI function of a host.

    Identity, driver, group and PF were read when the object was made; everything else is read on first use and
    then kept. ``None`` stands for a value that the host does not report.

    Args:
        record: the facts that a scan reads.
        facts: further facts that are known, by the names under which this class keeps them.

    Mirrors: virPCIDevice (src/util/virpci.c)
    """

    __slots__ = ("_facts", "_record", "address", "root")

    def __init__(
        self, root: HostRoot, address: PCIDeviceAddress, record: pciscan.ScanRecord, facts: dict[str, Any]
    ) -> None:
        self.root = root
        self.address = address
        self._record = record
        self._facts = facts

    def __repr__(self) -> str:
        return f"<PCIDevice {self.address}>"

    @property
    def vendor(self) -> int | None:
        """Vendor id from sysfs; configuration space does not have it for a VF."""
        return self._record.vendor

    @property
    def device(self) -> int | None:
        """Device id."""
        return self._record.device

    @property
    def subsystem_vendor(self) -> int | None:
        """Subsystem vendor id."""
        return self._record.subsystem_vendor

    @property
    def subsystem_device(self) -> int | None:
        """Subsystem device id."""
        return self._record.subsystem_device

    @property
    def class_(self) -> int | None:
        """Class, sub-class and interface, 24 bits."""
        return self._record.class_

    @property
    def kind(self) -> tuple[object, ...]:
        """Its identity and its driver: the choice of a VFIO driver and the rules of assignment depend on these."""
        return (*self._record[1:7], self.is_vfio)

    @property
    def identity(self) -> tuple[int | None, ...]:
        """Vendor, device, subsystem vendor, subsystem device, and class."""
        return self._record[1:6]

    @property
    def driver(self) -> str | None:
        """The name of the bound driver, read when the object was made."""
        return self._record.driver

    @property
    def iommu_group(self) -> int | None:
        """Number of the IOMMU group."""
        return self._record.iommu_group

    @property
    def physfn(self) -> PCIDeviceAddress | None:
        """The PF of an SR-IOV virtual function."""
        text = self._record.physfn
        return None if text is None else _parse_physfn(text)

    @property
    def is_virtual_function(self) -> bool:
        """
        True for an SR-IOV virtual function.

        Mirrors: virPCIIsVirtualFunction (src/util/virpci.c)
        """
        return self._record.physfn is not None

    @property
    def is_bridge(self) -> bool:
        """True for a PCI-to-PCI bridge, including PCI Express ports; decided by the class."""
        return self.class_ is not None and self.class_ >> 8 == pciregs.CLASS_BRIDGE_PCI

    @property
    def is_host_bridge(self) -> bool:
        """True for the bridge between the host's processors and a PCI domain; decided by the class."""
        return self.class_ is not None and self.class_ >> 8 == pciregs.CLASS_BRIDGE_HOST

    def learn(self, name: str, value: object) -> None:
        """Take over a fact that was read together with those of other functions."""
        self._facts[name] = value

    def _fact(self, name: str, read: Callable[[], T]) -> T:
        if name not in self._facts:
            self._facts[name] = read()
        value: T = self._facts[name]
        return value

    def path(self, attribute: str = "") -> str:
        """Return the path of the function's directory or of an attribute in it."""
        return f"{self.root.pci_device(self.address)}/{attribute}"

    @property
    def revision(self) -> int | None:
        """Revision id."""
        return self._fact("revision", lambda: read_number(self.root, self.path("revision")))

    @property
    def numa_node(self) -> int | None:
        """The NUMA node of the device; None if the host does not report one (-1)."""
        node = self._fact("numa_node", lambda: read_number(self.root, self.path("numa_node")))
        return None if node is None or node < 0 else node

    @property
    def sriov_totalvfs(self) -> int | None:
        """How many VFs a PF supports; None if the function is not a PF."""
        return self._fact("sriov_totalvfs", lambda: read_number(self.root, self.path("sriov_totalvfs")))

    @property
    def incarnation(self) -> int | None:
        """Inode of the sysfs directory: another inode at the same address means another device."""
        return self._fact("incarnation", self._read_incarnation)

    def _read_incarnation(self) -> int | None:
        status = read_status(self.root, self.path())
        return None if status is None else status.st_ino

    def read_config(self, size: int = pciregs.CONFIG_SIZE) -> bytes:
        """
        Return up to size bytes of configuration space; fewer or none if the host returns no more.

        Raises:
            SysfsError: the file exists but cannot be read.
        """
        return self._fact(
            f"config{size}",
            lambda: pciscan.read_config(self.root, self.address, 0, size) or b"",
        )

    def _header_byte(self) -> bytes:
        """Return configuration space up to the header type; only that byte is read from the device."""

        def read() -> bytes:
            offset = pciregs.HEADER_TYPE
            value = pciscan.read_config(self.root, self.address, offset, 1)
            return bytes(offset) + value if value else b""

        return self._fact("header", read)

    @property
    def header_type(self) -> int | None:
        """
        Header layout: 0 endpoint, 1 bridge, 2 CardBus, 0x7f if the device does not answer.

        Mirrors: virPCIGetHeaderType (src/util/virpci.c)
        """
        return pciconfig.header_type(self._header_byte())

    @property
    def is_endpoint(self) -> bool | None:
        """True if a guest can be given such a function at all; None if configuration space cannot be read."""
        if self.is_virtual_function:
            return True
        kind = self.header_type
        return None if kind is None else kind == pciregs.HEADER_TYPE_ENDPOINT

    @property
    def is_unreadable(self) -> bool:
        """True if the device is listed but reads as all ones; a VF's ids read so by specification."""
        return not self.is_virtual_function and self.header_type == pciregs.HEADER_TYPE_DEAD

    def is_pci_express(self) -> bool | None:
        """
        Tell whether the function is PCI Express; None if unknown.

        Without a PCI Express capability among the bytes that can be read, the size of the file decides, as in libvirt.

        Mirrors: virPCIDeviceIsPCIExpress (src/util/virpci.c)
        """
        if pciconfig.is_pci_express(self.read_config()):
            return True
        size = None if self.root.is_live else read_number(self.root, self.path("config_size"))  # of a snapshot
        if size is not None:
            return size != pciregs.CONFIG_SIZE
        status = read_status(self.root, self.path("config"))
        return None if status is None else status.st_size != pciregs.CONFIG_SIZE

    @property
    def is_ari(self) -> bool:
        """True if the port above forwards ARI: the bus is then one device of up to 256 functions."""
        return self._fact("ari", lambda: read_number(self.root, self.path("ari_enabled"))) == 1

    def is_multifunction(self) -> bool | None:
        """
        Tell whether the device that this function belongs to has more functions; None if unknown.

        The bit of function 0 decides; if function 0 is absent or unreadable, the function's own bit. A VF never is.

        Mirrors: virPCIDeviceIsMultifunction (proposed for src/util/virpci.c)

        Source: PCI30 6.2.1; PCIE50 9.3.4.1.3 requires 0 in the header type of a VF, although some hardware differs
        """
        if self.is_virtual_function:
            return False
        return self._fact("multifunction", self._read_multifunction)

    @property
    def has_multifunction_bit(self) -> bool | None:
        """Bit 7 of this function's own header type; None if configuration space cannot be read."""
        return pciconfig.is_multifunction(self._header_byte())

    def _read_multifunction(self) -> bool | None:
        first = self.function_zero
        if first != self.address:
            other = self._facts.get("function_zero") or PCIDevice(self.root, first, _unread(first), {})
            answer: bool | None = other.has_multifunction_bit
            if answer is not None:
                return answer
        return self.has_multifunction_bit

    @property
    def function_zero(self) -> PCIDeviceAddress:
        """The address of the function whose header describes the whole device."""
        slot = 0 if self.is_ari else self.address.slot
        return self.address._replace(slot=slot, function=0)

    def as_group_member(self) -> GroupMember:
        """Return the function as a member of its IOMMU group, at the time of its reading."""
        record = self._record
        return GroupMember(record.address, self.address, record.driver, self.is_vfio)

    def read_siblings(self) -> list[PCIDevice]:
        """
        Return all functions of this device, itself included, sorted by address; VFs are left out.

        They share domain, bus and slot; with ARI enabled on the bus, they share the bus.
        """
        if self.is_virtual_function:
            return [self]
        found = (read_pci_device(self.root, address) for address in self.sibling_addresses())
        return [dev for dev in found if dev is not None and not dev.is_virtual_function]

    def sibling_addresses(self) -> list[PCIDeviceAddress]:
        """Return where functions of this device can be, itself included, sorted."""
        return self.read_bus() if self.is_ari else [self.address.with_function(function) for function in range(8)]

    def read_path(self) -> list[PCIDeviceAddress]:
        """
        Return the bridges above this function, root port first, and itself last; a VF is in the place of its PF.

        If the devices are directories instead of links, only the function itself is known.

        Host: sys/bus/pci/devices/ADDRESS, the link only
        """
        try:
            target = read_link(self.root, self.path()[:-1])
        except SysfsError as err:
            if err.errno != errno.EINVAL:  # a directory
                raise
            return [self.address]
        parts = [str(self.address)] if target is None else target.split("/")
        return [PCIDeviceAddress.parse(part) for part in parts if part.count(":") == 2]

    @property
    def is_vfio(self) -> bool:
        """True if it was bound to vfio-pci or one of its variants when the object was made."""
        return self._fact("vfio", self._read_is_vfio)

    def _read_is_vfio(self) -> bool:
        return is_vfio_driver(self.root, self.address, self.driver)

    def read_functions_below(self) -> list[PCIDeviceAddress]:
        """
        Return the functions in PCI domains that this function's driver created below it, sorted; they vanish with it.

        Host: sys/bus/pci/devices/ADDRESS, names only

        Source: vmd_enable_domain (drivers/pci/controller/vmd.c)
        """
        names = self._fact("entries", lambda: list_names(self.root, self.path()[:-1]))
        found = (re.fullmatch(_OWN_DOMAIN, name) for name in names)
        domains = {int(match[1], 16) for match in found if match}
        if not domains:
            return []
        all_names = list_names(self.root, self.root.pci_devices)
        addresses = (PCIDeviceAddress.parse(name) for name in all_names if name.count(":") == 2)
        return sorted(address for address in addresses if address.domain in domains)

    def read_reset_methods(self) -> list[str]:
        """
        Return the methods by which the kernel resets this function, in the kernel's order; empty if there are none.

        Source: drivers/pci/pci.c pci_reset_fn_methods; ``reset_method`` since 5.15
        """

        def read() -> list[str]:
            listed = read_attribute(self.root, self.path("reset_method"))
            if listed is not None:
                return listed.split()
            return [] if read_status(self.root, self.path("reset")) is None else self._methods_by_config()

        return self._fact("reset_methods", read)

    def usable_reset(self) -> str | None:
        """
        Return the method by which a write to ``reset`` resets this function alone; None if there is none.

        The kernel uses a bus reset here only for a function that is alone on its bus.

        Source: drivers/pci/pci.c pci_parent_bus_reset
        """
        for method in self.read_reset_methods():
            if method not in BUS_RESETS or len(self.read_bus()) == 1:
                return method
        return None

    def _methods_by_config(self) -> list[str]:
        config = self.read_config()
        flr = self.is_virtual_function or pciconfig.has_flr(config)
        pm = pciconfig.has_pm_reset(config)
        return [name for name, there in (("flr", flr), ("pm", pm), ("bus", True)) if there]

    def read_bus(self) -> list[PCIDeviceAddress]:
        """
        Return all functions on this function's bus, itself included, sorted.

        Host: the directory of the device that the bus belongs to; all functions if their entries are not links to it
        """
        return self._fact("bus", self._read_bus)

    def _read_bus(self) -> list[PCIDeviceAddress]:
        prefix = str(self.address)[: -len("00.0")]
        link = self.path()[:-1]
        try:
            target = read_link(self.root, link)
        except SysfsError as err:
            if err.errno != errno.EINVAL:  # a directory
                raise
            target = None
        where = self.root.pci_devices if target is None else os.path.dirname(self.root.follow(link, target))
        return sorted(PCIDeviceAddress.parse(name) for name in list_names(self.root, where) if name.startswith(prefix))

    def read_virtual_functions(self) -> list[PCIDeviceAddress]:
        """
        Return a PF's VFs in the order of their numbers; the list ends at the first gap.

        Mirrors: virPCIGetVirtualFunctions (src/util/virpci.c)
        """
        return read_virtual_functions(self.root, self.address)

    def read_driver(self) -> str | None:
        """Return the currently bound driver; a hint while another process binds or unbinds."""
        return read_link_name(self.root, self.path("driver"))

    def read_driver_override(self) -> str | None:
        """
        Return the driver override, None if it is unset or the kernel does not have the attribute.

        Older kernels take the device lock for this: never call it for a device with a write in flight.
        """
        text = read_attribute(self.root, self.path("driver_override"))
        return None if text in (None, "", "(null)") else text


class ScannedDevice(PCIDevice):
    """
    A function of a scan; its address and its record are made on first access.

    Args:
        records: the functions of the scan; this one has the given index.
    """

    __slots__ = ("_index", "_records")

    def __init__(self, root: HostRoot, records: pciscan.Snapshot, index: int) -> None:
        self.root = root
        self._records = records
        self._index = index

    if not TYPE_CHECKING:  # a type checker would otherwise accept any attribute

        def __getattr__(self, name: str) -> Any:
            """Fill a slot on first access: most functions of a large host are asked for few facts."""
            if name == "_record":
                value = self._record = self._records[self._index]
            elif name == "address":
                value = self.address = self._records.address(self._index)
            elif name == "_facts":
                value = self._facts = {}
            else:
                raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
            return value


def read_virtual_functions(root: HostRoot, address: PCIDeviceAddress) -> list[PCIDeviceAddress]:
    """Return the VFs of the function at an address; see ``PCIDevice.read_virtual_functions``."""
    found: list[PCIDeviceAddress] = []
    top, count = root.pci_device(address), 1
    while len(found) < VFS_MAX:
        links = [f"{top}/virtfn{len(found) + number}" for number in range(count)]
        names = list(takewhile(lambda name: name is not None, read_link_names(root, links)))
        found += (PCIDeviceAddress.parse(name) for name in names if name is not None)
        if len(names) < count:
            break
        count = min(4 * count, VFS_MAX - len(found))
    return found


def _unread(address: PCIDeviceAddress) -> pciscan.ScanRecord:
    """Return the record of a function of which only configuration space is read."""
    return pciscan.ScanRecord(str(address), *[None] * (len(pciscan.ScanRecord._fields) - 1))


def read_pci_device(root: HostRoot, address: PCIDeviceAddress) -> PCIDevice | None:
    """
    Return one function of the host, None if there is no function at that address.

    Raises:
        SysfsError: an attribute exists but cannot be read.

    Mirrors: virPCIDeviceNew (src/util/virpci.c), which also requires a config file
    """
    top = root.pci_device(address)
    status = read_status(root, top)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return None
    record = pciscan.ScanRecord(
        address=str(address),
        vendor=read_number(root, f"{top}/vendor"),
        device=read_number(root, f"{top}/device"),
        subsystem_vendor=read_number(root, f"{top}/subsystem_vendor"),
        subsystem_device=read_number(root, f"{top}/subsystem_device"),
        class_=read_number(root, f"{top}/class"),
        driver=read_link_name(root, f"{top}/driver"),
        iommu_group=read_group(root, address),
        physfn=read_link_name(root, f"{top}/physfn"),
    )
    return PCIDevice(root, address, record, {"incarnation": status.st_ino})
