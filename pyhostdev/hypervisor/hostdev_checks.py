# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Checks of a plan that look beyond PCI: what the host itself needs, who else is at work on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyhostdev.errors import ConfigError, XMLError
from pyhostdev.hypervisor.hostdev_plan import CONSENT, ERROR, Finding
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostusage import BOOT_VGA, DEFAULT_ROUTE, MOUNTED, HostUsage
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.procfs import read_group_holders

CONSENT_REASONS = (BOOT_VGA, MOUNTED, DEFAULT_ROUTE)


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
            raise ConfigError(f"'{text}' accepts nothing: it is REASON:ADDRESS with {', '.join(CONSENT_REASONS)}")
        found.add((reason, str(PCIDeviceAddress.parse(address))))
    return frozenset(found)


def host_needs(root: HostRoot, moving: Sequence[PCIDeviceAddress]) -> Iterator[Finding]:
    """Yield what the host would lose with the devices that leave their drivers."""
    if not moving:
        return
    usage = HostUsage(root)
    for address in moving:
        for use in usage.of(address):
            yield Finding(use.reason, CONSENT, address, f"Device {address} {use.text}")


def held_groups(root: HostRoot, groups: Mapping[int, PCIDeviceAddress]) -> Iterator[Finding]:
    """Yield the groups whose node some process has open; each is told of its first declared device."""
    for group, holders in read_group_holders(root, groups).items():
        for holder in holders:
            text = f"IOMMU group {group} of device {groups[group]} is held open by {holder}"
            yield Finding("in-use", ERROR, groups[group], text)


def libvirt_owners(root: HostRoot, addresses: Sequence[PCIDeviceAddress], owner: str) -> Iterator[Finding]:
    """Yield the devices that a running domain of libvirtd has; read only, from its status files."""
    try:
        names = sorted(name for name in os.listdir(root.libvirt_status) if name.endswith(".xml"))
    except (FileNotFoundError, PermissionError):
        return
    for name in names:
        for address in sorted(_status_devices(os.path.join(root.libvirt_status, name)) & set(addresses)):
            domain = name.removesuffix(".xml")
            yield Finding("in-use", ERROR, address, f"Device {address} is in use by libvirt's domain '{domain}'")


def _status_devices(path: str) -> set[PCIDeviceAddress]:
    """Return the host's PCI functions in a status file; what cannot be read names none."""
    from pyhostdev.conf.hostdev_conf import PCISource
    from pyhostdev.util.virxml import parse_document

    found: set[PCIDeviceAddress] = set()
    try:
        with open(path, "rb") as stream:
            document = parse_document(stream.read(1 << 20))
    except (OSError, XMLError):
        return found
    for source in document.iterfind(".//hostdev[@type='pci']/source"):
        found.add(PCISource.from_element(source).address)
    return found
