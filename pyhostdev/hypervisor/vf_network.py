# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The network identity of virtual functions (MAC address, VLAN, trust, link), set through the PF while a guest runs.

The spoof check is left as it is, as libvirt leaves it: the administrator of the PF decides whether a guest may use
other addresses. Some drivers change it together with the trust, so it is recorded and restored, too.
The settings are changed after the function was unbound from its host driver, and restored before it is bound again,
because that driver reads them when it binds. Each change is read back: a PF that does not keep it is an error.

Mirrors: virHostdevSetNetConfig, virHostdevRestoreNetConfig (src/hypervisor/virhostdev.c)
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import OperationError
from pyhostdev.hypervisor.hostdev_holders import check_are_free
from pyhostdev.hypervisor.netdev_journal import NetdevJournal
from pyhostdev.util import netlink, virnetdev
from pyhostdev.util.deadline import NETWORK_TIMEOUT_S, within
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.netlink import LINK_DISABLED, VFSettings
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import list_names, read_link_name
from pyhostdev.util.virxml import parse_elements

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostroot import HostRoot

# Settings that earlier versions did not record; they are not in "before", where those versions would not expect them
_LATER = ("spoofchk", "link_state")
_SET_ATTEMPTS = 2
_VLAN_MAX = 4094  # IEEE 802.1Q: 4095 is reserved


class VFPlace(NamedTuple):
    """A virtual function: the interface of its PF, and its number there."""

    pf: str
    number: int


def place_of(root: HostRoot, address: PCIDeviceAddress) -> VFPlace | None:
    """
    Return the PF interface and number of a virtual function; None unless the PF has exactly one interface here.

    Raises:
        SysfsError: the host cannot be read.

    Host: the links physfn and virtfnN, and the directory net of the PF
    """
    pf = read_link_name(root, os.path.join(root.pci_device(address), "physfn"))
    if pf is None:
        return None
    place = root.pci_device(PCIDeviceAddress.parse(pf))
    interfaces = list_names(root, os.path.join(place, "net"))
    links = (name for name in list_names(root, place) if name.startswith("virtfn") and name[6:].isdigit())
    numbers = [int(name[6:]) for name in links if read_link_name(root, os.path.join(place, name)) == str(address)]
    return VFPlace(interfaces[0], numbers[0]) if len(interfaces) == 1 and numbers else None


def vf_interfaces(dom: DomainDef) -> Iterator[tuple[Any, PCIDeviceAddress]]:
    """Yield the interfaces that are virtual functions, each with its address on the host."""
    for net in dom.interfaces:
        if net.hostdev is not None and net.hostdev.is_assigned:
            yield net, net.hostdev.pci_address


def vf_obstacles(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """Yield a finding for each identity that cannot be set on this host; nothing is changed."""
    for net, address in vf_interfaces(dom):
        if net.virtualport is not None:
            message = "This type of <virtualport> is not supported for a virtual function"
            yield Finding("unsupported", ERROR, address, message, net.line)
        try:
            _vlan_of(net)
        except ValueError as err:
            yield Finding("unsupported", ERROR, address, str(err), net.line)
        if place_of(host.root, address) is None:
            message = f"The physical function of {address} has no network interface in this network namespace"
            yield Finding("network-missing", ERROR, None, message, net.line)
        elif host.root.is_live and not netlink.has_netlink():
            message = "A virtual function's network needs the Python package pyroute2, which is not installed"
            yield Finding("network-missing", ERROR, None, message, net.line)


def vf_consents(dom: DomainDef) -> list[str]:
    """Return the consents that ``start`` gives by itself, because it sets the network of virtual functions."""
    return [f"vf-network:{address}" for _, address in vf_interfaces(dom)]


def _vlan_of(net: Any) -> int:
    """
    Return the VLAN of an interface, 0 for none.

    Raises:
        ValueError: a virtual function cannot have this VLAN; the message gives the reason.
    """
    if net.vlan is None:
        return 0
    vlans = parse_elements(net.vlan)
    tags = [tag.get("id", "") for vlan in vlans for tag in vlan.iterfind("tag")]
    if any(vlan.get("trunk") == "yes" for vlan in vlans) or len(tags) != 1:
        raise ValueError("A virtual function can have only one <vlan> tag and no trunk")
    if not (tags[0].isdecimal() and int(tags[0]) <= _VLAN_MAX):
        raise ValueError(f"A <vlan> tag must be a number up to {_VLAN_MAX}")
    return int(tags[0])


class VFJournal(NetdevJournal):
    """The functions whose settings were changed; ``before`` are the former ones, by the names of VFSettings."""

    suffix = ".vf"
    fields = frozenset({"before"})

    def undo(self, name: str, facts: dict[str, Any]) -> str:
        """
        Restore the settings of a function that is still there.

        A QEMU that its guest has taken over can release the lock that it inherited: only the kernel shows that it no
        longer has the function.
        """
        spoofchk, link_state = (facts.get(later) for later in _LATER)
        before = VFSettings(**facts["before"], spoofchk=spoofchk, link_state=link_state)
        if not isinstance(before.mac, str) or any(type(value) not in (int, type(None)) for value in before[1:]):
            raise TypeError("a setting has another type")
        address = PCIDeviceAddress.parse(name)
        place = place_of(self.host.root, address)
        if place is None:
            return "the function, or the interface of its physical function, is gone"
        check_are_free(self.host.root, self.host.writer, [address])
        _set(place, before)
        return "the network settings of the function are restored"


class VFNetwork:
    """
    Sets the identities of one guest's virtual functions; the given stack undoes all changes.

    Args:
        owner: the name of the domain, for the records.
    """

    def __init__(self, host: Host, owner: str, undo: ExitStack) -> None:
        self.host = host
        self.owner = owner
        self.undo = undo
        self.lock_fds: list[int] = []

    def set_all(self, dom: DomainDef) -> None:
        """
        Set the identity of every virtual function.

        Raises:
            OperationError: the kernel refuses, does not return, or does not keep a setting.
        """
        for net, address in vf_interfaces(dom):
            self._set_one(net, address)

    def _set_one(self, net: Any, address: PCIDeviceAddress) -> None:
        place = place_of(self.host.root, address)
        if place is None:
            raise OperationError(f"The physical function of {address} has no network interface", address=address)
        journal = VFJournal(self.host)
        journal.undo_leftover(str(address))
        before = _read(place)
        wanted = before._replace(mac=net.mac, vlan=_vlan_of(net), qos=0, **_requested_settings(net))
        facts = before._asdict()
        later = {name: facts.pop(name) for name in _LATER}
        lock = journal.begin(str(address), self.owner, before=facts, **later)
        self.lock_fds.append(lock)
        self.undo.callback(journal.finish, str(address), lock, lambda: _set(place, before))
        _set(place, wanted)


def _requested_settings(net: Any) -> dict[str, int]:
    """Return the settings that an interface requests besides its MAC address and VLAN."""
    settings = {} if net.trust_guest_rx_filters is None else {"trust": int(net.trust_guest_rx_filters)}
    return settings | ({"link_state": LINK_DISABLED} if net.link_state == "down" else {})


def _index(place: VFPlace) -> int:
    index = virnetdev.interface_index(place.pf)
    if index is None:
        raise OperationError(f"The host has no network interface '{place.pf}'")
    return index


def _read(place: VFPlace) -> VFSettings:
    what = f"read virtual function {place.number} of '{place.pf}'"
    netlink.load()
    found = within(NETWORK_TIMEOUT_S, what, lambda: netlink.read_vf(_index(place), place.number))
    if found is None:
        raise OperationError(f"The driver of '{place.pf}' does not report the settings of its virtual functions")
    return found


def _set(place: VFPlace, wanted: VFSettings) -> None:
    """
    Change the settings that differ, and read them back; a setting that is None stays as it is.

    A driver may change one setting together with another, so that a second change is needed.

    Raises:
        OperationError: the kernel refuses, does not answer in time, or does not keep a setting.
    """
    what = f"set virtual function {place.number} of '{place.pf}'"
    for _ in range(_SET_ATTEMPTS):
        new = _different(place, wanted)
        if not new:
            return
        within(NETWORK_TIMEOUT_S, what, partial(netlink.set_vf, _index(place), place.number, wanted, new))
    new = _different(place, wanted)
    if new:
        raise OperationError(f"Virtual function {place.number} of '{place.pf}' does not keep {', '.join(new)}")


def _different(place: VFPlace, wanted: VFSettings) -> list[str]:
    """Return the names of the settings of a function that are not as wanted."""
    now = _read(place)
    return [name for name, value in wanted._asdict().items() if value is not None and value != getattr(now, name)]
