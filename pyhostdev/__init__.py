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
    from pyhostdev.conf.node_device_conf import NodeDeviceDef
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
    from pyhostdev.hypervisor.hostdev_status import Status
    from pyhostdev.hypervisor.virhostdev import HostdevManager
    from pyhostdev.util.events import PCIMonitor
    from pyhostdev.util.finding import Finding
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.hostusage import HostUse
    from pyhostdev.util.pciaddress import PCIDeviceAddress
    from pyhostdev.util.pciidentity import DeviceIdentity
    from pyhostdev.util.scancolumns import ScanColumns
    from pyhostdev.util.sysfs_writer import SysfsWriter
    from pyhostdev.util.virpci import PCIDevice

__version__ = "0.1.0"

__all__ = [
    "AddressChange",
    "ConfigError",
    "ConfigUnsupportedError",
    "DeviceIdentity",
    "DeviceInUseError",
    "DeviceMissingError",
    "DomainDef",
    "DomainHostdevDef",
    "Finding",
    "FunctionPlan",
    "GuestAddress",
    "Host",
    "HostRoot",
    "HostUse",
    "HostdevError",
    "HostdevManager",
    "HostdevPin",
    "InDoubtError",
    "InternalError",
    "InvalidAddressError",
    "LibvirtRelease",
    "NodeDeviceDef",
    "OperationError",
    "PCIDevice",
    "PCIDeviceAddress",
    "PCIMonitor",
    "PendingError",
    "Plan",
    "ProposedHostdev",
    "RecoveryResult",
    "RefusedError",
    "Scan",
    "ScanColumns",
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
    "AddressChange": "conf.guest_addresses",
    "DeviceIdentity": "util.pciidentity",
    "DomainDef": "conf.domain_conf",
    "DomainHostdevDef": "conf.hostdev_conf",
    "Finding": "util.finding",
    "FunctionPlan": "hypervisor.hostdev_plan",
    "GuestAddress": "conf.guest_addresses",
    "Host": "hypervisor.host",
    "HostRoot": "util.hostroot",
    "HostUse": "util.hostusage",
    "HostdevManager": "hypervisor.virhostdev",
    "HostdevPin": "conf.pin_conf",
    "NodeDeviceDef": "conf.node_device_conf",
    "LibvirtRelease": "conf.libvirt_release",
    "PCIDevice": "util.virpci",
    "PCIDeviceAddress": "util.pciaddress",
    "PCIMonitor": "util.events",
    "Plan": "hypervisor.hostdev_plan",
    "ProposedHostdev": "conf.domain_conf",
    "RecoveryResult": "hypervisor.hostdev_result",
    "Scan": "util.hostscan",
    "ScanColumns": "util.scancolumns",
    "Status": "hypervisor.hostdev_status",
    "SysfsWriter": "util.sysfs_writer",
    "Step": "hypervisor.hostdev_plan",
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
