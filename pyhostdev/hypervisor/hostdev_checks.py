# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Checks of a plan beyond PCI: uses by the host itself, and devices in use by other programs.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pyhostdev.errors import ConfigError, DeviceMissingError, SysfsError
from pyhostdev.hypervisor.hostdev_plan import ASSIGNED, Request
from pyhostdev.util.driverctl import NO_DRIVER, read_driverctl_overrides
from pyhostdev.util.finding import CONSENT, ERROR, NOTE, Finding
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostusage import BOOT_VGA, DEFAULT_ROUTE, MOUNTED, HostUsage
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.vfioholders import read_group_holders
from pyhostdev.util.virfile import is_directory, list_names, read_bytes

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.util.iommugroup import GroupMember
    from pyhostdev.util.journal import Record
    from pyhostdev.util.selector import Selector
    from pyhostdev.util.virpci import PCIDevice

VF_NETWORK = "vf-network"
CONSENT_REASONS = (BOOT_VGA, MOUNTED, DEFAULT_ROUTE, VF_NETWORK)

_STATUS_FILES_MAX = 4096  # running domains on one host
_STATUS_TOTAL = 64 << 20  # bytes in total: 16 KiB per domain, enough for some ten devices

# Places where a domain's XML names PCI functions of the host
_PCI_SOURCES = (
    ".//hostdev[@type='pci']/source",
    ".//interface[@type='hostdev']/source",
    ".//interface/actual[@type='hostdev']/source",
    ".//disk//source[@type='pci']",
)


def parse_consent(text: str) -> tuple[str, Selector]:
    """
    Return the reason of a consent, and the device that it is for.

    Raises:
        ConfigError: the text is not REASON:ADDRESS, or the reason cannot be accepted.
        InvalidAddressError: its address is invalid, and no other selector.
    """
    reason, _, address = text.partition(":")
    if reason not in CONSENT_REASONS:
        known = ", ".join(CONSENT_REASONS)
        raise ConfigError(f"Invalid consent '{text}': expected REASON:ADDRESS with one of {known}")
    from pyhostdev.util.selector import Selector  # few plans have consents

    return reason, Selector.parse(address)


def consents(texts: Iterable[str], root: HostRoot) -> frozenset[tuple[str, str]]:
    """
    Return consents as reason and address.

    A selector that names no function consents to nothing: an interface is gone while its function is detached, and a
    hook with such a consent must succeed again.

    Raises:
        ConfigError, InvalidAddressError: as ``parse_consent``; or a selector stands for several functions.
        SysfsError: the host cannot be read.
    """
    found = set()
    for reason, selector in map(parse_consent, texts):
        with contextlib.suppress(DeviceMissingError):
            found.add((reason, str(selector.resolve(root))))
    return frozenset(found)


def driver_obstacle(host: HostFacts, address: PCIDeviceAddress, driver: str, module: str | None) -> Finding | None:
    """Return a finding if a driver is not registered, and its module cannot be loaded; None for no module to load."""
    if module is None:
        return None
    if host.has_module(module) and not is_directory(host.root, host.root.module(module)):
        return None
    if is_directory(host.root, host.root.module(module)):
        text = f"The module '{module}' for device {address} has no PCI driver"
        return Finding("driver-missing", ERROR, address, text)
    reason = "vfio-missing" if driver == VFIO_PCI else "driver-missing"
    text = f"This host has no driver '{driver}' for device {address}, and no module that provides it"
    return Finding(reason, ERROR, address, text)


def vf_network(request: Request) -> Iterator[Finding]:
    """
    Yield a finding if an interface requests a network, which preparing its virtual function does not set.

    It needs consent with every policy: a policy only decides which functions must be declared. It is not an error,
    because
    another program may set the network through the PF before the guest runs; the user then consents for each device.
    """
    if request.network:
        text = (
            f"The interface of device {request.address} requests {', '.join(request.network)}, which only "
            "pyhostdev start sets on the virtual function: accept if another program sets it before the guest runs"
        )
        yield Finding("vf-network", CONSENT, request.address, text)


def split_groups(requests: Iterable[Request], definition: DomainDef) -> Iterator[Finding]:
    """
    Yield the groups that would be in several address spaces of a guest with a virtual IOMMU.

    Source: pci_device_iommu_address_space (hw/pci/pci.c of QEMU 7.2) gives each function its own space, and one space
        to all functions behind a conventional bridge; vfio_get_group (hw/vfio/common.c) adds a group to one space only
    """
    spaces: dict[int, dict[object, PCIDeviceAddress]] = {}
    for request in requests if definition.has_guest_iommu() else ():
        dev = request.dev
        if dev is not None and dev.iommu_group is not None and request.role == ASSIGNED:
            space = _address_space(request, dev, definition)
            spaces.setdefault(dev.iommu_group, {}).setdefault(space, request.address)
    for group, first_of in spaces.items():
        if len(first_of) > 1:
            text = (
                f"IOMMU group {group} would be in {len(first_of)} address spaces of a guest with its own IOMMU, "
                "and QEMU adds a group to one only: put its functions behind one pcie-to-pci-bridge"
            )
            yield Finding("viommu-group", NOTE, next(iter(first_of.values())), text)


def _address_space(request: Request, dev: PCIDevice, definition: DomainDef) -> object:
    """Return an identifier of a function's address space in the guest."""
    if request.guest_address is not None:
        return definition.guest_address_space(request.guest_address)
    # not placed yet: a conventional function goes behind a bridge with all others, an Express one below its own port
    return "conventional" if dev.is_pci_express() is False else request.address


def vanishing_functions(
    vanishing: Mapping[PCIDeviceAddress, PCIDeviceAddress],
    declared: Collection[PCIDeviceAddress],
    records: Mapping[PCIDeviceAddress, Record],
) -> Iterator[Finding]:
    """
    Yield the functions that vanish while another device is detached; an error if a domain uses or declares one.

    Args:
        vanishing: each vanishing function, with the device whose driver created it.
    """
    for maker in dict.fromkeys(vanishing.values()):
        below = [address for address, above in vanishing.items() if above == maker]
        text = (
            f"Detaching device {maker} removes the PCI functions that its driver created, until it is reattached: "
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


def used_vfs(
    virtual: Mapping[PCIDeviceAddress, PCIDeviceAddress], records: Mapping[PCIDeviceAddress, Record]
) -> Iterator[Finding]:
    """
    Yield the VFs in use by a domain whose PF is detached: its driver may remove them, and would wait for their users.

    Args:
        virtual: each VF of a PF that is detached, with its PF.

    Source: igb_remove (drivers/net/ethernet/intel/igb/igb_main.c), Linux 7.2
    """
    for address, pf in virtual.items():
        record = records.get(address)
        if record is not None and record.is_active:
            text = f"Device {address}, a virtual function of {pf}, is in use by domain '{record.owner}'"
            yield Finding("in-use", ERROR, address, text)


def host_needs(root: HostRoot, moving: Sequence[PCIDevice]) -> Iterator[Finding]:
    """Yield what the host would lose with the devices that are unbound from their drivers."""
    if not moving:
        return
    addresses = [dev.address for dev in moving]
    plain = {dev.address for dev in moving if dev.is_virtual_function}
    for address, uses in zip(addresses, HostUsage(root).of_all(addresses, plain), strict=True):
        for use in uses:
            yield Finding(use.reason, CONSENT, address, f"Device {address} {use.text}")


def held_groups(
    root: HostRoot, groups: Mapping[int, PCIDeviceAddress], members: Mapping[int, Sequence[GroupMember]]
) -> Iterator[Finding]:
    """Yield the groups that a process has open, directly or by function; each names its first declared device."""
    with_node = {group for group, found in members.items() for m in found if m.is_vfio or m.address is None}
    asked = [group for group in groups if group in with_node or group not in members]
    known = {group: members[group] for group in with_node}
    for group, holders in read_group_holders(root, asked, known).items():
        for holder in holders:
            text = f"IOMMU group {group} of device {groups[group]} is held open by {holder}"
            yield Finding("in-use", ERROR, groups[group], text)


def _room_left(root: HostRoot, left: int, data: bytes | None) -> int:
    """Return how many more bytes of status files are read; refuse when the limit is exceeded."""
    left -= len(data or b"")
    if left < 0:
        doing = f"read the status of libvirt's domains, which has more than {_STATUS_TOTAL} bytes"
        raise SysfsError(errno.EFBIG, root.libvirt_status, doing)
    return left


def libvirt_owners(root: HostRoot, addresses: Collection[PCIDeviceAddress]) -> Iterator[Finding]:
    """
    Yield the devices in use by a running domain of libvirtd, read from its status files.

    Raises:
        SysfsError: a file exists but cannot be read, except for lack of permission; or the files are too many or too
            large (EFBIG).
    """
    left = _STATUS_TOTAL
    for name in _status_files(root):
        domain = name.removesuffix(".xml")
        try:
            data = _read_status_file(root, os.path.join(root.libvirt_status, name))
            left = _room_left(root, left, data)
            devices = set() if data is None else _status_devices(data)
        except ConfigError as err:
            text = f"The status of libvirt's domain '{domain}' is malformed, so its devices are unknown: {err}"
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
    Return the contents of a status file; None if the domain has just ended, or this user may not read the file.

    Raises:
        ConfigError: it is larger than a domain can be.
        SysfsError: it cannot be read.
    """
    from pyhostdev.util.xmlstream import SIZE_MAX

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
    Return the host's PCI functions in a status file: host devices, interfaces of type hostdev, NVMe disks.

    Raises:
        ConfigError: it is not XML, or an address in it is invalid.

    Mirrors: the form that virDomainDefFormatInternal writes for each (src/conf/domain_conf.c)
    """
    from pyhostdev.conf.hostdev_conf import PCISource
    from pyhostdev.util.virxml import parse_document

    document = parse_document(data)
    sources = [source for where in _PCI_SOURCES for source in document.iterfind(where)]
    return {PCISource.from_element(s).address for s in sources if s.find("address[@bus]") is not None}


def saved_overrides(
    root: HostRoot, requests: Sequence[Request], moving: Collection[PCIDeviceAddress]
) -> Iterator[Finding]:
    """
    Report each override saved by driverctl; it is never changed, and the present driver is restored at the end.

    Raises:
        SysfsError: driverctl's directory exists but cannot be read.
    """
    overrides = read_driverctl_overrides(root, [request.address for request in requests])
    for request in requests if overrides else ():
        saved = overrides.get(request.address)
        if saved is not None and request.dev is not None:
            text = _override_sentence(request.dev, saved, moves=request.address in moving)
            yield Finding("driverctl", NOTE, request.address, text)


def _override_sentence(dev: PCIDevice, saved: str, *, moves: bool) -> str:
    now = "no driver" if dev.driver is None else f"driver '{dev.driver}'"
    text = f"driverctl binds device {dev.address} to {saved!a} whenever it appears"
    if saved != (dev.driver or NO_DRIVER):
        text += f", although it has {now} now"
    return f"{text}; it has {now} again after the guest has ended" if moves else text
