# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Pinned host devices: check that the function at the declared address is the pinned one, or find it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.pin_conf import HostdevPin
from pyhostdev.errors import DeviceMissingError, RefusedError
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.pciidentity import DeviceIdentity, differences, is_proven, read_identity, unchecked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.virpci import PCIDevice


def pin_findings(pins: Iterable[HostdevPin], present: Mapping[PCIDeviceAddress, PCIDevice | None]) -> Iterator[Finding]:
    """
    Yield the findings about pinned devices: ``changed-identity``, and notes ``identity-unchecked``.

    Args:
        present: the declared functions; None for a missing function, which has a separate finding.
    """
    for address, pinned in pins:
        if address not in present:
            text = f"The pin of device {address} has no effect: the domain does not declare the device"
            yield Finding("identity-unchecked", NOTE, address, text)
            continue
        dev = present[address]
        if dev is not None:
            yield from _device_findings(address, pinned, read_identity(dev))


def _device_findings(address: PCIDeviceAddress, pinned: DeviceIdentity, now: DeviceIdentity) -> Iterator[Finding]:
    changed = differences(pinned, now)
    if changed:
        what = ", ".join(map(str, changed))
        yield Finding("changed-identity", ERROR, address, f"Device {address} is not the pinned one: its {what}")
        return
    hidden = unchecked(pinned, now)
    if hidden:
        text = f"The {' and the '.join(hidden)} of device {address} cannot be seen now, so the pin is not checked fully"
        yield Finding("identity-unchecked", NOTE, address, text)


def read_pins(host: HostFacts, dom: DomainDef) -> list[HostdevPin]:
    """
    Return a pin for each PCI host device of a domain, as the host shows it now.

    Raises:
        DeviceMissingError: the host does not have a declared function.
        SysfsError: the host cannot be read.
    """
    found = []
    for hostdev in dom.host_functions():
        address = hostdev.pci_address
        dev = host.pci_device(address)
        if dev is None:
            raise DeviceMissingError(f"Device {address} is not on this host", reason="device-missing", address=address)
        found.append(HostdevPin(address, read_identity(dev)))
    return found


def find_pinned(scan: Scan, pins: Iterable[HostdevPin]) -> dict[PCIDeviceAddress, list[PCIDeviceAddress]]:
    """
    Return where each pinned device is now: the functions that do not differ from its pin.

    If several functions do not differ, those with the pinned serial number or MAC address are returned.
    """
    return {address: _candidates(scan, pinned) for address, pinned in pins}


def _candidates(scan: Scan, pinned: DeviceIdentity) -> list[PCIDeviceAddress]:
    alike: list[tuple[PCIDeviceAddress, bool]] = []
    for dev in scan:
        if (dev.vendor, dev.device) != (pinned.vendor, pinned.device):
            continue
        now = read_identity(dev)
        if not differences(pinned, now):
            alike.append((dev.address, is_proven(pinned, now)))
    proven = [address for address, is_certain in alike if is_certain]
    return proven or [address for address, _ in alike]


def repointed(dom: DomainDef, found: Mapping[PCIDeviceAddress, list[PCIDeviceAddress]]) -> DomainDef:
    """
    Return a copy whose pinned host devices are declared where they are now, with their pins.

    Raises:
        RefusedError: a pinned device was not found, was found more than once, or would be declared twice.
    """
    declared = [hostdev.pci_address for hostdev in dom.host_functions()]
    moves = {old: places[0] for old, places in found.items() if len(places) == 1 and old in declared}
    refused = [_unclear(old, places) for old, places in found.items() if old in declared and len(places) != 1]
    targets = [moves.get(address, address) for address in declared]
    refused += [
        Finding("changed-identity", ERROR, address, f"Device {address} would be declared more than once")
        for address in sorted({target for target in targets if targets.count(target) > 1})
    ]
    if refused:
        raise RefusedError(refused)
    return dom.with_host_addresses(moves)


def _unclear(address: PCIDeviceAddress, places: list[PCIDeviceAddress]) -> Finding:
    if places:
        text = f"The device that is pinned at {address} could be any of {', '.join(map(str, places))}"
    else:
        text = f"The device that is pinned at {address} is not on this host"
    return Finding("changed-identity", ERROR, address, text)
