# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Checks of a plan that look beyond PCI: what the host itself needs, who else is at work on it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError, SysfsError
from pyhostdev.hypervisor.hostdev_plan import ASSIGNED, Definition, Request
from pyhostdev.util.driverctl import NO_DRIVER, read_driverctl_override
from pyhostdev.util.finding import CONSENT, ERROR, NOTE, Finding
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostusage import BOOT_VGA, DEFAULT_ROUTE, MOUNTED, HostUsage
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.vfioholders import read_group_holders
from pyhostdev.util.virfile import list_names, read_bytes

if TYPE_CHECKING:
    from pyhostdev.util.journal import Record
    from pyhostdev.util.virpci import PCIDevice

VF_NETWORK = "vf-network"
CONSENT_REASONS = (BOOT_VGA, MOUNTED, DEFAULT_ROUTE, VF_NETWORK)

_STATUS_FILES_MAX = 4096  # domains that run on one host
_STATUS_TOTAL = 64 << 20  # bytes of all of them: 16 KiB each, as a domain with some ten devices has

# Where a domain's XML names PCI functions of the host
_PCI_SOURCES = (
    ".//hostdev[@type='pci']/source",
    ".//interface[@type='hostdev']/source",
    ".//interface/actual[@type='hostdev']/source",
    ".//disk//source[@type='pci']",
)


def consents(texts: Iterable[str]) -> frozenset[tuple[str, str]]:
    """
    Return consents as reason and address.

    Raises:
        ConfigError: a text is not REASON:ADDRESS, or no such reason can be accepted.
        InvalidAddressError: its address is none.
    """
    found = set()
    for text in texts:
        reason, _, address = text.partition(":")
        if reason not in CONSENT_REASONS:
            known = ", ".join(CONSENT_REASONS)
            raise ConfigError(f"Invalid consent '{text}': expected REASON:ADDRESS with one of {known}")
        found.add((reason, str(PCIDeviceAddress.parse(address))))
    return frozenset(found)


def vf_network(request: Request) -> Iterator[Finding]:
    """
    Yield that an interface asks for a network that nobody here puts its virtual function on.

    A consent with every policy: policies say which functions must be declared, and none of them makes the guest's
    network right. Not an error, as the words may hold already: whoever sets them through the PF, before the guest
    runs, says so by reason and address, and is asked again for every other device.
    """
    if request.network:
        text = (
            f"The interface of device {request.address} asks for {', '.join(request.network)}, which is not set on the "
            "virtual function yet: accept if something else sets it before the guest runs"
        )
        yield Finding("vf-network", CONSENT, request.address, text)


def split_groups(requests: Iterable[Request], definition: Definition | None) -> Iterator[Finding]:
    """
    Yield the groups that would be in several address spaces of a guest with an IOMMU of its own.

    Source: pci_device_iommu_address_space (hw/pci/pci.c of QEMU 7.2) gives each function its own, and one to all
    behind a conventional bridge; vfio_get_group (hw/vfio/common.c) takes a group into one only
    """
    spaces: dict[int, dict[object, PCIDeviceAddress]] = {}
    for request in requests if definition is not None and definition.has_guest_iommu() else ():
        dev = request.dev
        if dev is not None and dev.iommu_group is not None and request.role == ASSIGNED:
            space = _address_space(request, dev, definition)
            spaces.setdefault(dev.iommu_group, {}).setdefault(space, request.address)
    for group, first_of in spaces.items():
        if len(first_of) > 1:
            text = (
                f"IOMMU group {group} would be in {len(first_of)} address spaces of a guest with an IOMMU of its own, "
                "and QEMU takes a group into one only: put its functions behind one pcie-to-pci-bridge"
            )
            yield Finding("viommu-group", NOTE, next(iter(first_of.values())), text)


def _address_space(request: Request, dev: PCIDevice, definition: Definition | None) -> object:
    """Return what tells a function's address space in the guest from those of others."""
    if request.guest_address is not None and definition is not None:
        return definition.guest_address_space(request.guest_address)
    # still to be placed: a conventional function behind a bridge with all others, an Express one below its own port
    return "conventional" if dev.is_pci_express() is False else request.address


def vanishing_functions(
    vanishing: Mapping[PCIDeviceAddress, PCIDeviceAddress],
    declared: Collection[PCIDeviceAddress],
    records: Mapping[PCIDeviceAddress, Record],
) -> Iterator[Finding]:
    """
    Yield what goes away while another device is detached, which it must not while a domain has it.

    Args:
        vanishing: each function that goes, with the device whose driver made it.
    """
    for maker in dict.fromkeys(vanishing.values()):
        below = [address for address, above in vanishing.items() if above == maker]
        text = (
            f"Detaching device {maker} removes the PCI functions that its driver made, until it is given back: "
            + ", ".join(map(str, below))
        )
        yield Finding("vanishes", NOTE, maker, text)
    for address, maker in vanishing.items():
        record = records.get(address)
        if address in declared:
            text = f"Device {address} vanishes when device {maker} is detached"
            yield Finding("vanishes", ERROR, address, text)
        elif record is not None and record.is_active:
            text = f"Device {address}, which vanishes with {maker}, is in use by domain '{record.owner}'"
            yield Finding("in-use", ERROR, address, text)


def host_needs(root: HostRoot, moving: Sequence[PCIDeviceAddress]) -> Iterator[Finding]:
    """Yield what the host would lose with the devices that leave their drivers."""
    if not moving:
        return
    usage = HostUsage(root)
    for address in moving:
        for use in usage.of(address):
            yield Finding(use.reason, CONSENT, address, f"Device {address} {use.text}")


def held_groups(root: HostRoot, groups: Mapping[int, PCIDeviceAddress]) -> Iterator[Finding]:
    """Yield the groups that some process has open, as a group or by function; told of their first declared device."""
    for group, holders in read_group_holders(root, groups).items():
        for holder in holders:
            text = f"IOMMU group {group} of device {groups[group]} is held open by {holder}"
            yield Finding("in-use", ERROR, groups[group], text)


def libvirt_owners(root: HostRoot, addresses: Collection[PCIDeviceAddress]) -> Iterator[Finding]:
    """
    Yield the devices that a running domain of libvirtd has; read only, from its status files.

    Raises:
        SysfsError: a file is there and the kernel refuses to read it, but for want of rights; or there are too many
            (EFBIG).
    """
    left = _STATUS_TOTAL
    for name in _status_files(root):
        domain = name.removesuffix(".xml")
        try:
            data = _read_status_file(root, os.path.join(root.libvirt_status, name))
            left -= len(data or b"")
            if left < 0:
                doing = f"read the status of libvirt's domains, which has more than {_STATUS_TOTAL} bytes"
                raise SysfsError(errno.EFBIG, root.libvirt_status, doing)
            devices = set() if data is None else _status_devices(data)
        except ConfigError as err:
            text = f"The status of libvirt's domain '{domain}' is not understood, so its devices are not known: {err}"
            yield Finding("libvirt-status", NOTE, None, text)
            continue
        for address in sorted(devices & set(addresses)):
            yield Finding("in-use", ERROR, address, f"Device {address} is in use by libvirt's domain '{domain}'")


def _status_files(root: HostRoot) -> list[str]:
    try:
        names = sorted(name for name in list_names(root, root.libvirt_status) if name.endswith(".xml"))
    except SysfsError as err:
        if err.errno in (errno.EACCES, errno.EPERM):
            return []
        raise SysfsError(err.errno or 0, root.libvirt_status, "look for libvirt's domains") from err
    if len(names) > _STATUS_FILES_MAX:
        doing = f"look for libvirt's domains, which are more than {_STATUS_FILES_MAX}"
        raise SysfsError(errno.EFBIG, root.libvirt_status, doing)
    return names


def _read_status_file(root: HostRoot, path: str) -> bytes | None:
    """
    Return what is in a status file; None when the domain has just ended, or is not ours to look into.

    Raises:
        ConfigError: it is larger than a domain can be.
        SysfsError: from reading it.
    """
    from pyhostdev.util.virxml import SIZE_MAX

    try:
        return read_bytes(root, path, SIZE_MAX)
    except SysfsError as err:
        if err.errno in (errno.EACCES, errno.EPERM):
            return None
        if err.errno == errno.EFBIG:
            raise ConfigError(f"it is larger than {SIZE_MAX} bytes") from err
        raise SysfsError(err.errno or 0, path, "read the status of a domain") from err


def _status_devices(data: bytes) -> set[PCIDeviceAddress]:
    """
    Return the host's PCI functions in a status file: host devices, interfaces that are some, NVMe disks.

    Raises:
        ConfigError: it is no XML, or an address in it is none.

    Mirrors: what virDomainDefFormatInternal writes of each (src/conf/domain_conf.c)
    """
    from pyhostdev.conf.hostdev_conf import PCISource
    from pyhostdev.util.virxml import parse_document

    document = parse_document(data)
    sources = [source for where in _PCI_SOURCES for source in document.iterfind(where)]
    return {PCISource.from_element(s).address for s in sources if s.find("address[@bus]") is not None}


def saved_overrides(
    root: HostRoot, requests: Iterable[Request], moving: Collection[PCIDeviceAddress]
) -> Iterator[Finding]:
    """
    Yield what driverctl keeps devices with, and what becomes of it: it is never changed, and what it set is given back.

    Raises:
        SysfsError: its folder is there and cannot be read.
    """
    for request in requests:
        saved = read_driverctl_override(root, request.address)
        if saved is None or request.dev is None:
            continue
        driver = request.dev.driver
        now = "no driver" if driver is None else f"driver '{driver}'"
        text = f"driverctl gives device {request.address} to {saved!a} whenever it appears"
        if saved != (driver or NO_DRIVER):
            text += f", though it is with {now} now"
        if request.address in moving:
            text += f"; when the guest has ended it is with {now} again"
        yield Finding("driverctl", NOTE, request.address, text)
