# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A host: the live machine, or a directory in place of ``/``.

A program starts with this object; it only reads. A HostdevManager made for it writes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence

from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.virfile import is_directory, read_lines, read_status

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.node_device_conf import NodeDeviceDef
    from pyhostdev.conf.pin_conf import HostdevPin
    from pyhostdev.hypervisor.hostdev_plan import Plan
    from pyhostdev.hypervisor.hostdev_status import Status
    from pyhostdev.hypervisor.virnetwork import KnownNetworks
    from pyhostdev.util import virpci
    from pyhostdev.util.hostscan import Scan
    from pyhostdev.util.journal import Record
    from pyhostdev.util.statedir import StateDir
    from pyhostdev.util.sysfs_writer import SysfsWriter


class Host:
    """
    One host, identified by the directory in place of ``/``.

    Facts are read on request and not kept: two calls may differ if the host changed in between. Objects of this class
    hold no descriptor; they may be shared between threads and used after a fork.

    Args:
        root: "/" for the live host.
        state_dir: where managers of this host keep their records; default ``run/pyhostdev`` below the root, where no
            component may be a link. The parents of another directory may be links owned by root or by the caller.
        writer: performs writes; default for "/" the live host's own writer, for a directory None (read only).
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | HostRoot = "/",
        *,
        state_dir: str | None = None,
        writer: SysfsWriter | None = None,
    ) -> None:
        self.root = root if isinstance(root, HostRoot) else HostRoot(root)
        self.state_dir = os.path.abspath(state_dir or self.root.state_dir)
        self.is_snapshot = False  # its files are elsewhere than on the host itself
        self._state_below = None if state_dir else self.root.path
        self.writer = writer or self._own_writer()
        self.networks: KnownNetworks | None = None  # of one plan

    def __repr__(self) -> str:
        return f"Host({self.root.path!r})"

    def _own_writer(self) -> SysfsWriter | None:
        """Return the writer of the live host; a directory has no kernel that reacts."""
        if not self.root.is_live:
            return None
        from pyhostdev.util.sysfs_writer import ForkedWriter

        return ForkedWriter(self.root, inflight_dir=os.path.join(self.state_dir, "in-flight"))

    def shown(self, path: str) -> str:
        """Return a path as the host itself spells it: of a snapshot, without the directory in which it is unpacked."""
        below = self.is_snapshot and path.startswith(f"{self.root.path}/")
        return path[len(self.root.path) :] if below else path

    def state(self) -> StateDir:
        """Return the directory of this host's records; it is not created."""
        from pyhostdev.util.statedir import StateDir  # a scan needs no records

        return StateDir(self.state_dir, below=self._state_below)

    def scan(self, *, since: Scan | None = None) -> Scan:
        """
        Read all PCI functions at once.

        Args:
            since: an earlier scan of this host; functions proven unchanged are not read again. See
                ``Scan.refresh``.

        Raises:
            SysfsError: an attribute exists but cannot be read.
        """
        from pyhostdev.util.hostscan import Scan  # only few verbs scan, but all import this module
        from pyhostdev.util.scanrefresh import scan

        if since is not None and since.root.path == self.root.path:
            return since.refresh()
        return Scan(self.root, scan(self.root))

    def pci_device(self, address: PCIDeviceAddress | str) -> virpci.PCIDevice | None:
        """
        Read one function, None if the host does not have it.

        Raises:
            InvalidAddressError: the text is not a PCI address; this applies to every method that takes an address.
        """
        from pyhostdev.util.virpci import read_pci_device  # a program that lists records reads no device

        return read_pci_device(self.root, PCIDeviceAddress.of(address))

    def node_device(self, address: PCIDeviceAddress | str) -> NodeDeviceDef | None:
        """
        Return a function as libvirt's node device, None if the host does not have it.

        Raises:
            SysfsError: an attribute exists but cannot be read.
        """
        from pyhostdev.hypervisor.node_device_udev import read_node_device

        dev = self.pci_device(address)
        return None if dev is None else read_node_device(dev)

    def is_pci_express(self, address: PCIDeviceAddress | str) -> bool | None:
        """Tell whether a function is PCI Express; None if it is missing or unknown."""
        dev = self.pci_device(address)
        return None if dev is None else dev.is_pci_express()

    def iommu_group(self, address: PCIDeviceAddress | str) -> int | None:
        """Return the number of a function's IOMMU group; None if the function is missing or has no group."""
        dev = self.pci_device(address)
        return None if dev is None else dev.iommu_group

    def has_driver(self, name: str) -> bool | None:
        """
        Tell whether the PCI bus has a driver of this name now; None if a directory shows no drivers.

        Raises:
            SysfsError: the drivers cannot be read.
        """
        if is_directory(self.root, self.root.pci_driver(name)):
            return True
        return False if is_directory(self.root, self.root.pci_drivers) else None

    def has_module(self, name: str) -> bool | None:
        """
        Tell whether a module of this name can be loaded; None if the host has no list of modules.

        Raises:
            SysfsError: the list of modules exists but cannot be read.
        """
        from pyhostdev.util.vfiodriver import read_kernel_release

        release = read_kernel_release(self.root)
        if release is None:
            return None
        listing = self.root.modules_dep(release)
        if read_status(self.root, listing) is None:
            return None
        wanted = name.replace("-", "_")
        return any(_module_name(line.partition(":")[0]) == wanted for line in read_lines(self.root, listing))

    def is_in_flight(self, address: PCIDeviceAddress | str) -> bool:
        """Tell whether a write to this device has not returned from the kernel."""
        return self.writer is not None and self.writer.is_in_flight(PCIDeviceAddress.of(address))

    def readable_records(self) -> dict[PCIDeviceAddress, Record] | None:
        """
        Return pyhostdev's records by address; None if this user may not read them.

        Raises:
            SysfsError: they exist but cannot be read for another reason.
        """
        from pyhostdev.util.journal import Journal

        try:
            return Journal(self.state()).read()[0]
        except SysfsError as err:
            if err.errno not in (errno.EACCES, errno.EPERM):
                raise
            return None

    def status(self) -> Status:
        """
        Return the devices in use and the devices detached without an owner; needs no manager and creates nothing.

        Raises:
            SysfsError: the records exist but cannot be read.
        """
        from pyhostdev.hypervisor.hostdev_status import read_status

        return read_status(self.state())

    def read_pins(self, definition: DomainDef) -> list[HostdevPin]:
        """
        Return the identity of each PCI host device of a domain, for ``DomainDef.with_hostdev_pins``.

        Raises:
            DeviceMissingError: the host does not have a declared function.
            SysfsError: the host cannot be read; what this user may not read is named in ``identity.unseen``.
        """
        from pyhostdev.hypervisor.hostdev_pins import read_pins

        return read_pins(self, definition)

    def find_pinned(self, definition: DomainDef) -> dict[PCIDeviceAddress, list[PCIDeviceAddress]]:
        """
        Return where the pinned devices of a domain are now, by the address at which each of them is pinned.

        Raises:
            XMLError: a pin is not valid.
            SysfsError: the host cannot be read.
        """
        from pyhostdev.hypervisor.hostdev_pins import find_pinned

        pins = definition.hostdev_pins()
        return find_pinned(self.scan(), pins) if pins else {}

    def plan(
        self,
        definition: DomainDef,
        policy: str = "auto",
        *,
        owner: str | None = None,
        accept: Iterable[str] = (),
        release: LibvirtRelease = DEFAULT_RELEASE,
    ) -> Plan:
        """
        Plan what happens to a domain's host devices; needs no root and writes nothing.

        Args:
            policy: which functions must be declared: auto, device, group or off.
            owner: the name of the domain that will own the devices; the definition's name by default.
            accept: consents to losses of the host, each as REASON:ADDRESS or REASON:SELECTOR.
            release: the libvirt release whose choice of drivers applies; by default the newest.

        Raises:
            ConfigError, ConfigUnsupportedError: the request is invalid for any host.
            SysfsError: the host cannot be read; records that this user may not read are a finding.
        """
        from pyhostdev.hypervisor.hostdev_planner import build_plan  # programs that only read a host do not need it

        return build_plan(
            self,
            definition,
            owner=owner or definition.name,
            policy=policy,
            records=self.readable_records(),
            accept=accept,
            release=release,
        )

    def plan_attach(
        self,
        live: DomainDef,
        hostdevs: Sequence[DomainHostdevDef],
        policy: str = "auto",
        *,
        accept: Iterable[str] = (),
        release: LibvirtRelease = DEFAULT_RELEASE,
    ) -> Plan:
        """
        Plan what happens to host devices that a running domain gets as one unit; needs no root and writes nothing.

        Args:
            live: the running domain, without these devices.
            hostdevs: the declared functions of one host device.
            policy, accept, release: as for ``plan``.

        Raises:
            ConfigError, ConfigUnsupportedError: the request is invalid for any host.
            SysfsError: the host cannot be read; records that this user may not read are a finding.
        """
        from pyhostdev.hypervisor.hostdev_attach import plan_attach

        records = self.readable_records()
        return plan_attach(self, live, hostdevs, policy, records=records, accept=accept, release=release)


def _module_name(path: str) -> str:
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def scan(root: str | os.PathLike[str] = "/") -> Scan:
    """
    Read all PCI functions of the host at root.

    Raises:
        SysfsError: an attribute exists but cannot be read.
    """
    return Host(root).scan()


def is_pci_multifunction_device(hostdev: DomainHostdevDef, host: Host) -> bool | None:
    """
    Tell whether a hostdev names a function of a multifunction device; False if it is not PCI or the device is missing.

    Mirrors: virHostdevIsPCIMultifunctionDevice (proposed for src/hypervisor/virhostdev.c)
    """
    dev = host.pci_device(hostdev.pci_address) if hostdev.is_pci else None
    return False if dev is None else dev.is_multifunction()
