# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Put host devices behind expander buses, so that the guest sees each one on the NUMA node that it is near on the host.

libvirt never proposes such a topology. On q35 and ARM virt, each device gets a root port of its own below the expander
bus of its node, and the functions of a card share that port, with the numbers that they have on the host. On i440fx,
each device gets a slot of the expander bus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.address_conf import PCIGuestAddress
from pyhostdev.conf.controller_conf import DomainControllerDef
from pyhostdev.conf.xml.xmlcodec import nodes_of
from pyhostdev.errors import ConfigError
from pyhostdev.qemu.qemu_domain import is_arm_virt, is_i440fx, is_q35
from pyhostdev.util.pciaddress import SLOT_MAX, PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts

_BUSES = 256
_BUSES_OF_ROOT = 2  # bus 0, and one for what else is below it
_LEAST_BUSES = 2  # of an expander: its own, and one below it


class _Card(NamedTuple):
    """The assigned functions of one host device, in the order of their addresses."""

    node: int
    functions: list[DomainHostdevDef]


def placed_by_node(dom: DomainDef, defined: DomainDef, host: HostFacts) -> tuple[DomainDef, list[PCIDeviceAddress]]:
    """
    Return a copy in which each assigned PCI host device is behind an expander bus of its node, and the others.

    A device that has a guest address keeps it. The node of the guest is the cell whose ``<memnode>`` is bound to the
    device's host node; without ``<memnode>``, it is the cell of the same number.

    Args:
        defined: this domain as ``define`` returned it; it has a machine, and its cells have numbers.

    Returns:
        The copy, and the host addresses of the devices for which the host reports no node; they are left as they are.

    Raises:
        ConfigError: the machine has no expander bus, no cell of the guest stands for a device's node, or the guest has
            no bus number or slot left.
        SysfsError: the host cannot be read.
    """
    clone = dom.copy()
    cards, others = _cards(clone, host)
    if cards:
        model = _expander_model(defined)
        cells = {card.node: _cell(defined, card) for card in cards}
        for node in sorted(cells):
            _place(clone, model, cells[node], [card for card in cards if card.node == node])
    return clone, others


def _cards(dom: DomainDef, host: HostFacts) -> tuple[list[_Card], list[PCIDeviceAddress]]:
    cards: dict[PCIDeviceAddress, _Card] = {}
    others = []
    for hostdev in sorted(dom.pci_hostdevs(), key=lambda hostdev: hostdev.pci_address):
        if not hostdev.is_assigned or not hostdev.info.needs_address:
            continue
        function = host.pci_device(hostdev.pci_address)
        if function is None or function.numa_node is None:
            others.append(hostdev.pci_address)
            continue
        is_shared = function.is_multifunction() is not False
        key = hostdev.pci_address.with_function(0) if is_shared else hostdev.pci_address
        cards.setdefault(key, _Card(function.numa_node, [])).functions.append(hostdev)
    return list(cards.values()), others


def _expander_model(defined: DomainDef) -> str:
    if is_q35(defined) or is_arm_virt(defined):
        return "pcie-expander-bus"
    if is_i440fx(defined):
        return "pci-expander-bus"
    raise ConfigError(f"The machine '{defined.os.machine}' has no expander bus for a NUMA node", reason="no-guest-node")


def _cell(defined: DomainDef, card: _Card) -> int:
    """Return the number of the guest's cell that stands for the node of a card."""
    bound = [memory.cellid for memory in defined.numatune.memnodes if card.node in nodes_of(memory.nodeset)]
    if not defined.numatune.memnodes:
        cells = defined.cpu.cells if defined.cpu is not None else []
        bound = [cell.id for cell in cells if cell.id == card.node]
    if len(bound) == 1:
        return int(bound[0])
    first = card.functions[0]
    how_many = "several cells" if bound else "no cell"
    raise ConfigError(
        f"Device {first.pci_address} is near NUMA node {card.node} of the host, and {how_many} of the guest's <numa> "
        "stand for that node: bind one cell to it with <numatune><memnode>",
        line=first.line,
        reason="no-guest-node",
        address=first.pci_address,
    )


def _place(dom: DomainDef, model: str, cell: int, cards: list[_Card]) -> None:
    """Add an expander bus for the cards of one node, and their guest addresses."""
    if len(cards) > SLOT_MAX + 1:
        text = f"An expander bus has {SLOT_MAX + 1} slots, too few for {len(cards)} host devices of one NUMA node"
        raise ConfigError(text, reason="no-guest-node")
    has_ports = model == "pcie-expander-bus"
    bus = _next_index(dom)
    number = _bus_number(dom, _LEAST_BUSES if not has_ports else 1 + len(cards))
    dom.controllers.append(DomainControllerDef(type="pci", index=bus, model=model, bus_nr=number, numa_node=cell))
    for slot, card in enumerate(cards):
        place = PCIDeviceAddress(0, bus, slot, 0)
        if has_ports:
            place = _add_port(dom, place)
        _place_functions(place, card.functions)


def _add_port(dom: DomainDef, place: PCIDeviceAddress) -> PCIDeviceAddress:
    """Add a root port, and return the first address behind it."""
    bus = _next_index(dom)
    port = DomainControllerDef(type="pci", index=bus, model="pcie-root-port")
    port.info.address = PCIGuestAddress.at(place)
    dom.controllers.append(port)
    return PCIDeviceAddress(0, bus, 0, 0)


def _place_functions(slot: PCIDeviceAddress, functions: list[DomainHostdevDef]) -> None:
    """Give the functions of a card the numbers that they have on the host; a slot needs a function 0."""
    lowest, *rest = functions
    lowest.info.address = PCIGuestAddress.at(slot, multifunction=True if rest else None)
    for hostdev in rest:
        hostdev.info.address = PCIGuestAddress.at(slot.with_function(hostdev.pci_address.function))


def _next_index(dom: DomainDef) -> int:
    """Return the next index of a PCI controller; those without one get lower ones, and the root has index 0."""
    buses = [controller for controller in dom.controllers if controller.is_pci]
    unnumbered = sum(controller.index is None for controller in buses)
    return max((controller.index or 0 for controller in buses), default=0) + unnumbered + 1


def _bus_number(dom: DomainDef, buses: int) -> int:
    """
    Return the number of an expander's bus, so that it and those below it are free up to the next expander's.

    Raises:
        ConfigError: too few numbers are left.
    """
    number = min(_numbers(dom), default=_BUSES) - buses
    if number < _BUSES_OF_ROOT:
        raise ConfigError(f"The guest has no {buses} bus numbers left for an expander bus", reason="no-guest-node")
    return number


def _numbers(dom: DomainDef) -> Iterable[int]:
    return (controller.bus_nr for controller in dom.controllers if controller.is_pci and controller.bus_nr is not None)
