# SPDX-License-Identifier: LGPL-2.1-or-later
"""
PCI host devices for virtual machines: scan, plan, detach, assign to a guest, reattach.

Names are loaded on first use, so the import is cheap. After a fork, objects that were read stay valid in the child,
but
a HostdevManager does not. Threads may share all objects except a HostdevManager, which serves one thread at a time.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs as much as the rest of Python's start
if TYPE_CHECKING:
    from typing import Any

    from pyhostdev import qemu
    from pyhostdev.conf.domain_conf import DomainDef, ProposedHostdev
    from pyhostdev.conf.guest_addresses import AddressChange, GuestAddress, compare_addresses
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.node_device_conf import NodeDevCapPCIDev, NodeDeviceDef
    from pyhostdev.conf.pin_conf import HostdevPin
    from pyhostdev.errors import (
        ConfigError,
        ConfigUnsupportedError,
        DeviceInUseError,
        DeviceMissingError,
        HostdevError,
        InDoubtError,
        InternalError,
        InvalidAddressError,
        OperationError,
        PendingError,
        RefusedError,
        SysfsError,
        XMLError,
    )
    from pyhostdev.hypervisor.host import Host, is_pci_multifunction_device, scan
    from pyhostdev.hypervisor.hostdev_plan import FunctionPlan, Plan, Step
    from pyhostdev.hypervisor.hostdev_result import RecoveryResult
    from pyhostdev.hypervisor.hostdev_status import ActiveDevice, Status
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.util.events import EventSource, PCIEvent, PCIMonitor
    from pyhostdev.util.finding import Finding
    from pyhostdev.util.hostquery import Identity
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.hostusage import HostUse
    from pyhostdev.util.iommugroup import GroupMember
    from pyhostdev.util.journal import BadRecord, Journal
    from pyhostdev.util.literals import Action, Role, Severity
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.pciidentity import DeviceIdentity
    from pyhostdev.util.record import Plug, Record
    from pyhostdev.util.scancolumns import ScanColumns
    from pyhostdev.util.statedir import StateDir
    from pyhostdev.util.sysfs_writer import SysfsWriter
    from pyhostdev.util.virpci import PCIDevice

__version__ = "0.1.0"

__all__ = [
    "Action",
    "ActiveDevice",
    "AddressChange",
    "BadRecord",
    "ConfigError",
    "ConfigUnsupportedError",
    "DeviceIdentity",
    "DeviceInUseError",
    "DeviceMissingError",
    "DomainDef",
    "DomainHostdevDef",
    "EventSource",
    "Finding",
    "FunctionPlan",
    "GroupMember",
    "GuestAddress",
    "Host",
    "HostFacts",
    "HostRoot",
    "HostUse",
    "HostdevError",
    "HostdevManager",
    "HostdevPin",
    "Identity",
    "InDoubtError",
    "InternalError",
    "InvalidAddressError",
    "Journal",
    "LibvirtRelease",
    "NodeDevCapPCIDev",
    "NodeDeviceDef",
    "OperationError",
    "PCIDevice",
    "PCIDeviceAddress",
    "PCIEvent",
    "PCIMonitor",
    "PendingError",
    "Plan",
    "Plug",
    "ProposedHostdev",
    "Record",
    "RecoveryResult",
    "RefusedError",
    "Role",
    "Scan",
    "ScanColumns",
    "Severity",
    "StateDir",
    "Status",
    "Step",
    "SysfsError",
    "SysfsWriter",
    "XMLError",
    "compare_addresses",
    "is_pci_multifunction_device",
    "qemu",
    "scan",
]

_HOMES = {
    "Action": "util.literals",
    "ActiveDevice": "hypervisor.hostdev_status",
    "AddressChange": "conf.guest_addresses",
    "BadRecord": "util.journal",
    "DeviceIdentity": "util.pciidentity",
    "DomainDef": "conf.domain_conf",
    "DomainHostdevDef": "conf.hostdev_conf",
    "EventSource": "util.events",
    "Finding": "util.finding",
    "FunctionPlan": "hypervisor.hostdev_plan",
    "GroupMember": "util.iommugroup",
    "GuestAddress": "conf.guest_addresses",
    "Host": "hypervisor.host",
    "HostFacts": "conf.hostfacts",
    "HostRoot": "util.hostroot",
    "HostUse": "util.hostusage",
    "HostdevManager": "hypervisor.virhostdev",
    "HostdevPin": "conf.pin_conf",
    "Identity": "util.hostquery",
    "Journal": "util.journal",
    "LibvirtRelease": "conf.libvirt_release",
    "NodeDevCapPCIDev": "conf.node_device_conf",
    "NodeDeviceDef": "conf.node_device_conf",
    "PCIDevice": "util.virpci",
    "PCIDeviceAddress": "util.pciaddress",
    "PCIEvent": "util.events",
    "PCIMonitor": "util.events",
    "Plan": "hypervisor.hostdev_plan",
    "Plug": "util.record",
    "ProposedHostdev": "conf.domain_conf",
    "Record": "util.record",
    "RecoveryResult": "hypervisor.hostdev_result",
    "Role": "util.literals",
    "Scan": "util.hostscan",
    "ScanColumns": "util.scancolumns",
    "Severity": "util.literals",
    "StateDir": "util.statedir",
    "Status": "hypervisor.hostdev_status",
    "Step": "hypervisor.hostdev_plan",
    "SysfsWriter": "util.sysfs_writer",
    "compare_addresses": "conf.guest_addresses",
    "is_pci_multifunction_device": "hypervisor.host",
    "scan": "hypervisor.host",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'pyhostdev' has no attribute '{name}'")
    if name == "qemu":
        return import_module("pyhostdev.qemu")
    value = getattr(import_module(f"pyhostdev.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
