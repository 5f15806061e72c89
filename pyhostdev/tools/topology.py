# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev topology``: the functions below their ports, with their IOMMU groups, as a tree or for Graphviz."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyhostdev.tools import arguments, filters, output, streams
from pyhostdev.tools.main import complain
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.virpci import PCIDevice

Roles = dict[PCIDeviceAddress, str]
Above = dict[PCIDeviceAddress, PCIDeviceAddress | None]
DEPTH_MAX = 64  # of the tree; a host has 256 buses, and a few of them below each other
_COLORS = {"given": "palegreen", "kept": "lightyellow"}
_PORTS = {
    pciregs.EXP_TYPE_ROOT_PORT: "root port",
    pciregs.EXP_TYPE_UPSTREAM: "switch, upstream port",
    pciregs.EXP_TYPE_DOWNSTREAM: "switch, downstream port",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_root(parser)
    parser.add_argument("--domain", metavar="FILE", help="mark the functions that this domain declares: given, kept")
    parser.add_argument("--dot", action="store_true", help="print a graph in Graphviz's language: groups are boxes")
    filters.add_filters(parser.add_argument_group("filters", "functions that pass them, and the bridges above"))


def run(args: argparse.Namespace) -> int:
    """Read the host and print how its functions are connected."""
    host = arguments.host_of(args)
    scan = host.scan()
    owners = filters.owners_of(host)
    roles = _with_owners(_roles(args.domain, scan), owners)
    above = {dev.address: _parent(dev) for dev in scan}
    if filters.has_filters(args):
        tests = list(filters.tests(args, host, scan, lambda: owners))
        above = _with_bridges(above, [dev.address for dev in scan if all(test(dev) for test in tests)])
    shown = [dev for dev in scan if dev.address in above]
    if args.dot:
        streams.write("".join(f"{line}\n" for line in _graph(shown, above, roles)))
    else:
        output.print_tree(_tree(f"{len(shown)} functions of {args.root}", shown, above, roles))
    return 0


def _with_bridges(above: Above, addresses: Iterable[PCIDeviceAddress]) -> Above:
    """Return the part of the tree that has these functions."""
    found: Above = {}
    for address in addresses:
        place: PCIDeviceAddress | None = address
        while place is not None and place in above and place not in found:
            found[place] = above[place]
            place = above[place]
    return found


def _roles(path: str | None, scan: Scan) -> Roles:
    """Return the roles of the functions that a domain declares; report those that the host lacks."""
    if path is None:
        return {}
    from pyhostdev.conf.domain_conf import DomainDef

    declared = DomainDef.parse(arguments.read_file(path)).host_functions()
    roles = {hostdev.pci_address: "given" if hostdev.is_assigned else "kept" for hostdev in declared}
    for address in sorted(roles):
        if scan.find(address) is None:
            complain(f"note: device {address} of the domain is not on this host")
    return roles


def _with_owners(roles: Roles, owners: dict[str, str]) -> Roles:
    """Add the owners of the functions in use to the roles in a domain."""
    in_use = {PCIDeviceAddress.parse(text): f"in use by '{owner}'" for text, owner in owners.items()}
    words = {address: [*filter(None, (roles.get(address), in_use.get(address)))] for address in {*roles, *in_use}}
    return {address: ", ".join(found) for address, found in words.items()}


def _parent(dev: PCIDevice) -> PCIDeviceAddress | None:
    """Return the bridge above, or the PF of a VF."""
    if dev.physfn is not None:
        return dev.physfn
    path = dev.read_path()
    return path[-2] if len(path) > 1 else None


def _tree(title: str, shown: Sequence[PCIDevice], above: Above, roles: Roles) -> output.Branch:
    """Return the tree; a device below itself, or deeper than in any host, starts at the top again."""
    top = output.Branch(title)
    devices = {dev.address: dev for dev in shown}
    placed: dict[PCIDeviceAddress, tuple[output.Branch, int]] = {}
    for dev in shown:
        chain = list(_not_placed(dev.address, above, devices, placed))
        upper = above[chain[-1]] if chain else None
        branch, depth = (top, 0) if upper is None else placed.get(upper, (top, 0))
        for address in reversed(chain):
            branch, depth = (branch, depth + 1) if depth < DEPTH_MAX else (top, 1)
            branch = branch.add(_line(devices[address], roles))
            placed[address] = branch, depth
    return top


def _not_placed(
    place: PCIDeviceAddress | None,
    above: Above,
    devices: Collection[PCIDeviceAddress],
    placed: Collection[PCIDeviceAddress],
) -> Iterator[PCIDeviceAddress]:
    """Yield a function and those above it that have no line yet, the lowest first; a cycle ends where it closes."""
    seen = set()
    while place is not None and place in devices and place not in placed and place not in seen:
        seen.add(place)
        yield place
        place = above[place]


def _line(dev: PCIDevice, roles: Roles) -> str:
    group = "no group" if dev.iommu_group is None else f"group {dev.iommu_group}"
    words = [str(dev.address), _ids(dev), *_port(dev), group, dev.driver or "no driver"]
    if dev.address in roles:
        words.append(f"[{roles[dev.address]}]")
    return "  ".join(words)


def _port(dev: PCIDevice) -> list[str]:
    """Return what a bridge is; only root can read the kinds of PCI Express."""
    if not dev.is_bridge:
        return []
    kind = pciconfig.express_type(dev.read_config(pciregs.CONFIG_SIZE_EXPRESS))
    return [_PORTS.get(kind, "bridge") if kind is not None else "bridge"]


def _ids(dev: PCIDevice) -> str:
    return ":".join("?" if number is None else f"{number:04x}" for number in (dev.vendor, dev.device))


def _graph(shown: Sequence[PCIDevice], above: Above, roles: Roles) -> Iterator[str]:
    """Yield the lines of a graph: a box for each group, an edge from each port to what is below it."""
    yield "digraph host {"
    yield "  rankdir=LR; node [shape=box];"
    for group in sorted({dev.iommu_group for dev in shown if dev.iommu_group is not None}):
        yield f"  subgraph cluster_{group} {{"
        yield f'    label="IOMMU group {group}";'
        yield from (f"    {_node(dev, roles)}" for dev in shown if dev.iommu_group == group)
        yield "  }"
    yield from (f"  {_node(dev, roles)}" for dev in shown if dev.iommu_group is None)
    for address, parent in sorted(above.items()):
        if parent is not None and parent in above:
            yield f'  "{parent}" -> "{address}";'
    yield "}"


def _node(dev: PCIDevice, roles: Roles) -> str:
    role = roles.get(dev.address)
    words = [str(dev.address), _ids(dev), *_port(dev), dev.driver or "no driver", *([role] if role else [])]
    color = _COLORS.get((role or "").partition(",")[0])
    color = f', style=filled, fillcolor="{color}"' if color else ""
    label = "\\n".join(map(_quoted, words))
    return f'"{dev.address}" [label="{label}"{color}];'


def _quoted(text: str) -> str:
    """Return a text as part of a quoted string of Graphviz's language."""
    return streams.printable(text).replace("\\", "\\\\").replace('"', '\\"')
