# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Convert between the two spellings of a not assigned host device.

``<address type='unassigned'/>`` is libvirt's spelling since 6.0, for any PCI host device. ``assigned='no'`` is only
for a
function of a multifunction device; it requires that the other functions are declared, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pyhostdev.conf.address_conf import UnassignedAddress
from pyhostdev.conf.hostfacts import is_multifunction
from pyhostdev.errors import ConfigError, XMLError

if TYPE_CHECKING:
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts

Domain = TypeVar("Domain", bound="DomainFields")

SPELLINGS = ("assigned", "unassigned")


def with_spelling(dom: Domain, spelling: str, host: HostFacts | None = None) -> Domain:
    """
    Return a copy in which all host devices use one spelling.

    Raises:
        ConfigError: the spelling is unknown.
        XMLError: the definition cannot be expressed with ``assigned``; the message names the element or the device.
    """
    if spelling not in SPELLINGS:
        raise ConfigError(f"Unknown spelling '{spelling}': expected one of {', '.join(SPELLINGS)}")
    clone = dom.copy()
    if spelling == "unassigned":
        for hostdev in clone.hostdevs:
            _spell_unassigned(hostdev)
    else:
        _spell_all_assigned(clone, host)
    return clone


def _spell_unassigned(hostdev: DomainHostdevDef) -> None:
    if hostdev.assigned is False:
        hostdev.info.address = UnassignedAddress()
    hostdev.assigned = None


def _spell_all_assigned(dom: DomainFields, host: HostFacts | None) -> None:
    """Write the attribute on all declared functions of each device with a not assigned function."""
    pci = [hostdev for hostdev in dom.hostdevs if hostdev.is_pci]
    slots = {hostdev.pci_address.with_function(0) for hostdev in pci if not hostdev.is_assigned}
    for hostdev in pci:
        if hostdev.pci_address.with_function(0) in slots:
            _check_can_be_spelled(hostdev, host)
            hostdev.assigned = hostdev.is_assigned
            if not hostdev.assigned:
                hostdev.info.address = None


def _check_can_be_spelled(hostdev: DomainHostdevDef, host: HostFacts | None) -> None:
    """
    Refuse a device that cannot have ``assigned='no'`` by rows S1 and S2 of docs/architecture.md.

    Raises:
        XMLError: the message names the device and the reason.
    """
    address = hostdev.pci_address
    names = hostdev.guest_side_names() if not hostdev.is_assigned else []
    if names:
        text = f"Device {address} cannot be written with assigned='no', as it has <{names[0]}>"
        raise XMLError(text, line=hostdev.line, address=address)
    if host is not None and is_multifunction(host, address) is False:
        text = f"Device {address} has only one function, so it cannot have 'assigned'"
        raise XMLError(text, line=hostdev.line, reason="not-multifunction", address=address)
