# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Compare two hosts, or one host at two times: before and after an upgrade, a new card, another kernel.

Functions are matched by serial number and function number, then by ids and path below the root bus, then by ids and
address. So a function on a renumbered bus counts as moved, not as gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.util.pciidentity import DeviceIdentity, read_identity
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.virpci import PCIDevice

ADDED, GONE, MOVED = "added", "gone", "moved"
SPLIT, MERGED, REGROUPED = "group-split", "group-merged", "group-changed"
KINDS = (
    ADDED,
    GONE,
    MOVED,
    "driver",
    "override",
    SPLIT,
    MERGED,
    REGROUPED,
    "reset-methods",
    "virtual-functions",
    "numa-node",
    "revision",
)


class HostChange(NamedTuple):
    """One difference: its kind, the function's addresses on both hosts, and the fact before and after, as text."""

    change: str
    address: PCIDeviceAddress | None
    now: PCIDeviceAddress | None
    before: str | None
    after: str | None


class _Function(NamedTuple):
    dev: PCIDevice
    identity: DeviceIdentity


def compare_hosts(before: Host, after: Host) -> list[HostChange]:
    """
    Return the differences, sorted by address; empty if there are none.

    Raises:
        SysfsError: a host cannot be read.
    """
    old, new = _functions(before), _functions(after)
    pairs = _matched(old, new)
    groups = (_groups(old), _groups(new))
    changes: list[HostChange] = []
    for address, function in old.items():
        now = pairs.get(address)
        if now is None:
            changes.append(HostChange(GONE, address, None, _what(function), None))
        else:
            changes += _changes(function, new[now])
            changes += _group_changes(address, now, groups, pairs)
    matched = set(pairs.values())
    changes += [HostChange(ADDED, None, a, None, _what(f)) for a, f in new.items() if a not in matched]
    return changes


def _functions(host: Host) -> dict[PCIDeviceAddress, _Function]:
    return {dev.address: _Function(dev, read_identity(dev)) for dev in host.scan()}


Functions = dict["PCIDeviceAddress", _Function]
Pairs = dict["PCIDeviceAddress", "PCIDeviceAddress"]


def _ids(identity: DeviceIdentity) -> Hashable:
    return identity[: DeviceIdentity._fields.index("revision")]


def _by_serial(function: _Function) -> Hashable | None:
    identity = function.identity
    return None if identity.serial is None else (identity.serial, identity.function, _ids(identity))


def _by_place(function: _Function) -> Hashable | None:
    identity = function.identity
    if identity.pf is not None:
        return identity.vf, _ids(identity), identity.pf.path, _ids(identity.pf)
    return identity.path, _ids(identity)


def _by_address(function: _Function) -> Hashable | None:
    return function.dev.address, _ids(function.identity)


def _matched(old: Functions, new: Functions) -> Pairs:
    """Map the address of each function that both hosts have to its address on the other host."""
    pairs: Pairs = {}
    for key_of in (_by_serial, _by_place, _by_address):
        left = _unique(old, pairs.keys(), key_of)
        right = _unique(new, pairs.values(), key_of)
        pairs.update((left[key], right[key]) for key in left if key in right)
    return pairs


def _unique(
    functions: Functions, done: Iterable[PCIDeviceAddress], key_of: Callable[[_Function], Hashable | None]
) -> dict[Hashable, PCIDeviceAddress]:
    found: dict[Hashable, list[PCIDeviceAddress]] = {}
    skipped = set(done)
    for address, function in functions.items():
        key = key_of(function)
        if key is not None and address not in skipped:
            found.setdefault(key, []).append(address)
    return {key: addresses[0] for key, addresses in found.items() if len(addresses) == 1}


def _what(function: _Function) -> str:
    dev = function.dev
    ids = ":".join("?" if number is None else f"{number:04x}" for number in (dev.vendor, dev.device))
    return f"{ids} class {0 if dev.class_ is None else dev.class_:06x}"


def _changes(old: _Function, new: _Function) -> Iterator[HostChange]:
    if old.dev.address != new.dev.address:
        yield HostChange(MOVED, old.dev.address, new.dev.address, str(old.dev.address), str(new.dev.address))
    facts: tuple[tuple[str, Callable[[PCIDevice], str | None]], ...] = (
        ("driver", lambda dev: dev.driver),
        ("override", lambda dev: dev.read_driver_override()),
        ("reset-methods", lambda dev: " ".join(dev.read_reset_methods()) or None),
        ("virtual-functions", _vfs),
        ("numa-node", lambda dev: None if dev.numa_node is None else str(dev.numa_node)),
        ("revision", lambda dev: None if dev.revision is None else f"0x{dev.revision:02x}"),
    )
    for kind, read in facts:
        before, after = read(old.dev), read(new.dev)
        if before != after:
            yield HostChange(kind, old.dev.address, new.dev.address, before, after)


def _vfs(dev: PCIDevice) -> str | None:
    total = dev.sriov_totalvfs
    return None if total is None else f"{len(dev.read_virtual_functions())} of {total}"


def _groups(functions: Functions) -> dict[PCIDeviceAddress, frozenset[PCIDeviceAddress] | None]:
    """Return the members of each function's group that are PCI functions; None without a group."""
    members: dict[int, set[PCIDeviceAddress]] = {}
    for address, function in functions.items():
        if function.dev.iommu_group is not None:
            members.setdefault(function.dev.iommu_group, set()).add(address)
    return {
        address: None if function.dev.iommu_group is None else frozenset(members[function.dev.iommu_group])
        for address, function in functions.items()
    }


Groups = dict["PCIDeviceAddress", "frozenset[PCIDeviceAddress] | None"]


def _group_changes(
    address: PCIDeviceAddress, now: PCIDeviceAddress, groups: tuple[Groups, Groups], pairs: Pairs
) -> Iterator[HostChange]:
    """Yield the change of a group's members; the number of a group has no meaning."""
    before, after = groups[0][address], groups[1][now]
    moved = None if before is None else frozenset(pairs.get(member, member) for member in before)
    if moved == after:
        return
    kind = REGROUPED
    if moved is not None and after is not None:
        kind = SPLIT if moved > after else MERGED if moved < after else REGROUPED
    yield HostChange(kind, address, now, _members(before), _members(after))


def _members(group: frozenset[PCIDeviceAddress] | None) -> str | None:
    return None if group is None else " ".join(map(str, sorted(group)))
