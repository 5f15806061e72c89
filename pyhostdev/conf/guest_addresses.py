# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest address of each device and why, the changes between two definitions, and explicit addresses to prevent them.

A guest identifies its devices by their addresses: a disk or network card at a new address is a new device to it.
Addresses that the definition does not contain are chosen again whenever the domain is defined, and depend on all other
devices and on the release of libvirt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pyhostdev.conf.address_conf import PCIGuestAddress, UnassignedAddress
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from pyhostdev.conf.address_conf import DeviceAddress
    from pyhostdev.conf.controller_conf import DomainControllerDef
    from pyhostdev.conf.device_conf import DeviceInfo
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.xml.xmldef import ElementDef

Domain = TypeVar("Domain", bound="DomainFields")

WRITTEN, CHOSEN, COMPANION, CHIPSET = "written", "chosen", "companion", "chipset"
MOVED, ADDED, GONE = "moved", "added", "gone"
PHB = "phb"  # a host bridge of a pseries machine; its index is its address

_SINGLE = ("memballoon", "vsock", "nvram")  # at most one in a domain


class GuestAddress(NamedTuple):
    """
    One device of a domain and its place in the guest.

    ``type`` is libvirt's type of address, or ``phb``; ``why`` is ``written``, ``chosen``, ``companion`` (next to the
    device that it belongs to) or ``chipset`` (the machine's usual address). ``declared`` is False for a device that
    the definition does not contain.
    """

    kind: str
    name: str
    alias: str | None
    type: str
    address: str
    why: str
    declared: bool
    line: int | None

    @property
    def device(self) -> str:
        """The device in words."""
        return f"{self.kind} {self.name}" if self.name else self.kind


class AddressChange(NamedTuple):
    """A device that ``moved``, was ``added`` or is ``gone``, with its addresses before and after."""

    change: str
    old: GuestAddress | None
    new: GuestAddress | None

    @property
    def device(self) -> str:
        """The device in words."""
        found = self.old or self.new
        assert found is not None
        return found.device


def mark_written(dom: DomainFields) -> None:
    """Mark the devices and addresses of the user in a copy, before defaults and addresses are filled in."""
    for number, (device, info) in enumerate(dom.device_infos()):
        info.written_at = number
        info.why = None if info.needs_address and not _is_phb(device) else WRITTEN


def _is_phb(device: Any) -> bool:
    """Tell whether a device is a host bridge of a pseries machine with an index of its own."""
    return device.tag == "controller" and device.model == "pci-root" and device.target_index is not None


def mark_chosen(dom: DomainFields) -> None:
    """Mark all addresses without a mark as chosen."""
    for _, info in dom.device_infos():
        info.why = info.why or CHOSEN


def addresses(dom: DomainFields) -> list[GuestAddress]:
    """Return the guest addresses that a definition contains, in the order of its devices."""
    return [found for _, found in _placed(dom)]


def _placed(dom: DomainFields) -> Iterator[tuple[Any, GuestAddress]]:
    for device, info in dom.device_infos():
        place = _place(device, info)
        if place is not None:
            why = info.why or WRITTEN
            declared = info.why is None or info.written_at is not None
            found = GuestAddress(device.tag, _name(dom, device), info.alias, *place, why, declared, device.line)
            yield device, found


def _place(device: Any, info: DeviceInfo) -> tuple[str, str] | None:
    """Return type and text of a device's guest address; None if it has none."""
    if _is_phb(device):
        return PHB, str(device.target_index)
    address = info.address
    if address is None or isinstance(address, UnassignedAddress):
        return None
    if isinstance(address, PCIGuestAddress):
        return None if address.is_empty else (address.kind, str(address.pci))
    return address.kind, _words(address)


def _words(address: DeviceAddress) -> str:
    """Return the numbers of an address that is not a PCI address, as its XML names them."""
    line = address.format_lines("address")[0]
    return " ".join(word.replace("'", "") for word in line.rstrip("/>").split()[1:] if not word.startswith("type="))


def _name(dom: DomainFields, device: Any) -> str:
    """Return a name for a device that distinguishes it from the others of its kind."""
    names: dict[str, Callable[[], object]] = {
        "controller": lambda: f"{device.type} {device.index}{f' ({device.model})' if device.model else ''}",
        "disk": lambda: device.target,
        "interface": lambda: _interface_name(dom, device),
        "hostdev": lambda: device.source if device.is_pci else f"{device.type} {_number(dom, device)}",
        "filesystem": lambda: device.target,
        "channel": lambda: device.target_name or _number(dom, device),
    }
    if device.tag in names:
        return str(names[device.tag]() or "")
    return "" if device.tag in _SINGLE else str(_number(dom, device))


def _interface_name(dom: DomainFields, device: Any) -> object:
    if device.hostdev is not None:
        return device.hostdev.source
    return device.mac if device.mac and not device.mac_is_made else _number(dom, device)


def _number(dom: DomainFields, device: ElementDef) -> int:
    """Return a device's number among those of its element, from 0."""
    alike = (other for other in dom.devices() if other.tag == device.tag)
    return next(number for number, other in enumerate(alike) if other is device)


# -- comparison


def compare_addresses(old: DomainFields, new: DomainFields) -> list[AddressChange]:
    """
    Return the address changes between two definitions; unchanged devices are omitted.

    Devices are matched by the alias that the user chose, then by MAC, source, target and serial number, then by their
    order among those of their kind. A controller is matched by its type, index and model.
    """
    old_places, new_places = list(_placed(old)), list(_placed(new))
    pairs = dict(_matched(old_places, new_places))
    changes = []
    for place, (_, before) in enumerate(old_places):
        after = new_places[pairs[place]][1] if place in pairs else None
        if after is None:
            changes.append(AddressChange(GONE, before, None))
        elif (before.type, before.address) != (after.type, after.address):
            changes.append(AddressChange(MOVED, before, after))
    matched = set(pairs.values())
    changes += [
        AddressChange(ADDED, None, found) for place, (_, found) in enumerate(new_places) if place not in matched
    ]
    return changes


def has_moved(changes: Iterable[AddressChange]) -> bool:
    """Return True if a device has another address; added and removed devices do not count."""
    return any(change.change == MOVED for change in changes)


Placed = list[tuple[Any, GuestAddress]]


def _matched(old_places: Placed, new_places: Placed) -> Iterator[tuple[int, int]]:
    """Yield the places of the same device in both lists, each of them once."""
    left, right = set(range(len(old_places))), set(range(len(new_places)))
    for key_of in _KEYS:
        before, after = _unique(old_places, left, key_of), _unique(new_places, right, key_of)
        for key in before.keys() & after.keys():
            left.remove(before[key])
            right.remove(after[key])
            yield before[key], after[key]
    yield from _matched_by_order(old_places, left, new_places, right)


def _unique(placed: Placed, open_places: set[int], key_of: Callable[[Any], Hashable | None]) -> dict[Hashable, int]:
    """Return the places of devices by key, without keys that several devices have."""
    found: dict[Hashable, list[int]] = {}
    for place in sorted(open_places):
        device = placed[place][0]
        key = key_of(device)
        if key is not None:
            found.setdefault((device.tag, key), []).append(place)
    return {key: places[0] for key, places in found.items() if len(places) == 1}


def _matched_by_order(
    old_places: Placed, left: set[int], new_places: Placed, right: set[int]
) -> Iterator[tuple[int, int]]:
    """Yield the remaining devices of each kind in their order; controllers have an index instead."""
    after: dict[Hashable, list[int]] = {}
    for place in sorted(right):
        after.setdefault(_kind_of(new_places[place][0]), []).append(place)
    for place in sorted(left):
        device = old_places[place][0]
        if device.tag != "controller" and after.get(_kind_of(device)):
            yield place, after[_kind_of(device)].pop(0)


def _kind_of(device: Any) -> Hashable:
    return device.tag, getattr(device, "model", None) if device.tag in ("hostdev", "watchdog", "panic") else None


def _alias(device: Any) -> str | None:
    alias = device.info.alias
    return alias if alias is not None and alias.startswith("ua-") else None


def _controller(device: Any) -> Hashable | None:
    return (device.type, device.index, device.model) if device.tag == "controller" else None


def _mac(device: Any) -> str | None:
    return None if device.tag != "interface" or device.mac_is_made else device.mac


def _source(device: Any) -> Hashable | None:
    """Return the host side of a device as text; None if it does not identify the device."""
    if device.tag == "interface":
        return None if device.hostdev is None else str(device.hostdev.source)
    if device.tag == "filesystem":
        texts = (device.source_dir, device.source_file, device.source_dev, device.source_socket)
        return next((str(text) for text in texts if text), None)
    source = device.source_def if device.tag == "hostdev" else device.source if device.tag == "disk" else None
    return None if source is None else "\n".join(source.format_lines("source"))


def _target(device: Any) -> Hashable | None:
    if device.tag in ("disk", "filesystem"):
        return getattr(device, "target", None)
    if device.tag == "channel" and device.target_name is not None:
        return str(device.target_name)
    return None


def _serial(device: Any) -> Hashable | None:
    return getattr(device, "serial", None) if device.tag == "disk" else None


_KEYS: tuple[Callable[[Any], Hashable | None], ...] = (_alias, _controller, _mac, _source, _target, _serial)


# -- pinning


def pinned(written: Domain, defined: DomainFields) -> Domain:
    """
    Return a copy of a definition with all guest addresses added; the rest stays as the user wrote it.

    Devices that the definition leaves out, such as a memory balloon, and all controllers are added if they have a place
    in the guest: without them, a newer release could put another device there.

    Args:
        written: what the user wrote.
        defined: the same domain with its defaults and addresses, as ``define`` returns it.
    """
    clone = written.copy()
    own = [device for device, _ in clone.device_infos()]
    for device, info in defined.device_infos():
        if info.written_at is not None:
            _write_address(own[info.written_at], device)
        elif device.tag != "controller" and _place(device, info) is not None:
            _add(clone, defined, device)
    clone.controllers = list(_pinned_controllers(own, defined))
    return clone


def _write_address(target: Any, device: Any) -> None:
    if device.info.address is not None:
        target.info.address = device.info.address.copy()
    if device.tag == "controller":
        target.index, target.target_index = device.index, device.target_index
        target.info.master_startport = device.info.master_startport


def _add(clone: DomainFields, defined: DomainFields, device: ElementDef) -> None:
    """Add a device to the field in which the other definition has it."""
    for name, field in type(defined).declared().items():
        if field.path[:1] != ("devices",):
            continue
        value = getattr(defined, name)
        if value is device:
            setattr(clone, name, device.copy())
        elif isinstance(value, list) and any(part is device for part in value):
            getattr(clone, name).append(device.copy())


def _pinned_controllers(own: list[Any], defined: DomainFields) -> Iterator[DomainControllerDef]:
    """Yield all controllers in the order in which they are defined: their indices name buses."""
    for controller in defined.controllers:
        written_at = controller.info.written_at
        if written_at is not None:
            yield own[written_at]
        elif controller.is_pci or _place(controller, controller.info) is not None:
            yield controller.copy()
