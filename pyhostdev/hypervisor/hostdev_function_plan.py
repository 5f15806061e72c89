# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The fate of every member of the touched IOMMU groups, as the text of a plan.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from pyhostdev.hypervisor.hostdev_plan import (
    ASSIGNED,
    DETACHED,
    MISSING,
    STAYS,
    VANISHES,
    FunctionPlan,
    Request,
)
from pyhostdev.util.journal import DETACHED as RECORDED_DETACHED
from pyhostdev.util.journal import Record
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciassign import keeps_dma
from pyhostdev.util.pcidevices import read_pci_devices
from pyhostdev.util.virpci import BUS_RESETS, GroupMember, PCIDevice

Records = Mapping[PCIDeviceAddress, Record]


def function_plans(
    requests: Sequence[Request],
    members: Mapping[int, Sequence[GroupMember]],
    records: Records,
    resets: Mapping[PCIDeviceAddress, str],
    vanishing: Mapping[PCIDeviceAddress, PCIDeviceAddress],
) -> list[FunctionPlan]:
    """
    Return one entry per member of a touched group, then the devices without a group.

    Args:
        members: of each touched group.
        records: the journal's records, by address.
        resets: the devices whose driver changes when the guest starts, and how each is reset afterwards, as a phrase.
        vanishing: functions that vanish while another device is detached, with that device.
    """
    declared = {request.address: request for request in requests}

    def function_plan(member: GroupMember, group: int | None) -> FunctionPlan:
        request = declared.get(member.address) if member.address else None
        if request is None and member.address is not None and member.address in vanishing:
            text = f"not declared, vanishes while {vanishing[member.address]} is detached, and comes back with it"
            return FunctionPlan(member.name, group, member.driver, None, text, VANISHES)
        if request is None:
            return FunctionPlan(member.name, group, member.driver, None, _undeclared(member), STAYS)
        text = _declared(request, member.driver, records, resets)
        return FunctionPlan(member.name, group, member.driver, request.role, text, _fate(request, resets))

    found = [function_plan(member, group) for group, those in members.items() for member in those]
    named = {fate.name for fate in found}
    for request in requests:
        if str(request.address) not in named:
            driver, group = (request.dev.driver, request.dev.iommu_group) if request.dev else (None, None)
            found.append(function_plan(GroupMember(str(request.address), request.address, driver, False), group))
    return found


def _fate(request: Request, moving: Container[PCIDeviceAddress]) -> str:
    """Return the fate of a declared function when the guest starts."""
    if request.dev is None:
        return MISSING
    return DETACHED if request.address in moving else STAYS


def driver_phrase(driver: str | None) -> str:
    """Return the text that names a driver in a sentence."""
    return "no driver" if driver is None else f"driver '{driver}'"


def _undeclared(member: GroupMember) -> str:
    why = "it keeps the group's DMA for the host" if keeps_dma(member) else "it does not use the group's DMA"
    return f"not declared, stays with {driver_phrase(member.driver)}: {why}"


def _declared(
    request: Request,
    driver: str | None,
    records: Records,
    resets: Mapping[PCIDeviceAddress, str],
) -> str:
    guest = _destination(request)
    if request.dev is None:
        return f"{guest}: not on this host"
    before = driver_phrase(driver)
    if request.address in resets:
        stub = f"{request.stub} ({request.why})" if request.why else request.stub
        reset = resets[request.address]
        return f"{guest}: detached from {before} to {stub}; afterwards {reset} and given back to {before}"
    detached = records.get(request.address)
    why = "as it was detached before" if detached and detached.state == RECORDED_DETACHED else "as it was"
    return f"{guest}: stays with {before}, {why}"


def _destination(request: Request) -> str:
    if request.nvme_disks:
        return f"used by QEMU for the guest's disk {' and '.join(request.nvme_disks)}"
    return "given to the guest" if request.role == ASSIGNED else "kept from the guest"


def reset_phrase(method: str) -> str:
    """Return the phrase about a device that the kernel resets alone."""
    return f"reset ({method}, which reaches nothing else)"


def bus_reset_phrase(dev: PCIDevice, declared: Container[PCIDeviceAddress]) -> str:
    """
    Return the phrase about a device that the kernel cannot reset alone: whether its bus reset reaches other functions.

    Raises:
        SysfsError: the functions on its bus cannot be read.

    Source: vfio_pci_dev_set_try_reset (drivers/vfio/pci/vfio_pci_core.c), for a bus whose devices are all bound to vfio
    """
    if not _has_bus_reset(dev):
        return "not reset, as the kernel has no reset method for it"
    others = [address for address in dev.read_bus() if address not in declared]
    if others:
        return f"not reset, as its bus reset would reach {', '.join(map(str, others))}, which the guest does not have"
    return "reset with its bus by vfio-pci when QEMU closes it, as all of the bus is declared,"


def _has_bus_reset(dev: PCIDevice) -> bool:
    """
    Tell whether a bus reset reaches a function: its own method, or that of another function on the bus.

    Source: pci_parent_bus_reset (drivers/pci/pci.c); sysfs lists the method for the functions that can start it
    """
    if not set(BUS_RESETS).isdisjoint(dev.read_reset_methods()):
        return True
    found = read_pci_devices(dev.root, dev.read_bus()).values()
    return any(not set(BUS_RESETS).isdisjoint(other.read_reset_methods()) for other in found)
