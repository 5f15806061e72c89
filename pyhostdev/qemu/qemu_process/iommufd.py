# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The requirements of a start with iommufd, and the VFIO nodes that a guest needs.

Mirrors: qemuProcessOpenIommuFd (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pyhostdev.errors import RefusedError
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.iommugroup import read_group
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.vfionodes import read_device_node_names
from pyhostdev.util.virfile import read_status
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostroot import HostRoot

FDGroups = Mapping[str, Sequence[int]]

_MODULE = "iommufd"
_UNKNOWN_NODE = "vfioN"  # the kernel assigns the number when the function is bound


def functions_by_iommufd(dom: DomainDef) -> list[PCIDeviceAddress]:
    """Return the assigned functions that use iommufd, in the order of the command line."""
    found = (hostdev for hostdev in dom.guest_visible_hostdevs() if dom.uses_iommufd(hostdev))
    return [hostdev.pci_address for hostdev in found]


def iommufd_obstacles(
    dom: DomainDef, host: Host, release: LibvirtRelease, fd_groups: FDGroups | None = None
) -> list[Finding]:
    """Return the findings for which a start with iommufd would fail; empty for a libvirt release without iommufd."""
    if not release.has("iommufd"):
        return []
    return [*missing_descriptors(dom, fd_groups or {}), *host_obstacles(dom, host)]


def host_obstacles(dom: DomainDef, host: Host) -> list[Finding]:
    """Return the findings for which the kernel would refuse the nodes."""
    return [*_split_groups(dom, host), *_missing_iommufd(dom, host)]


def missing_descriptors(dom: DomainDef, fd_groups: FDGroups) -> Iterator[Finding]:
    """Yield a finding if a domain names a group of descriptors that the caller does not pass."""
    name = dom.iommufd_fdgroup
    if name is not None and not fd_groups.get(name):
        text = f"The caller must pass the descriptors of <iommufd fdgroup='{shown(name)}'>"
        yield Finding("fdgroup-missing", ERROR, None, text, dom.iommufds[0].line)


def refuse_missing_descriptors(dom: DomainDef, fd_groups: FDGroups) -> None:
    """
    Refuse a domain that names a group of descriptors that the caller does not pass.

    Raises:
        RefusedError: with libvirt's number for it.

    Mirrors: the use of virDomainFDAssociate's groups in qemuProcessOpenIommuFd
    """
    found = list(missing_descriptors(dom, fd_groups))
    if found:
        raise RefusedError(found)


def _missing_iommufd(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """Yield a finding if the kernel has no iommufd, neither loaded nor as a module."""
    by_iommufd = functions_by_iommufd(dom)
    is_opened = dom.needs_iommufd() and dom.iommufd_fdgroup is None
    if not by_iommufd and not is_opened:
        return
    if read_status(host.root, host.root.dev_iommu) is None and host.has_module(_MODULE) is False:
        text = f"The kernel lacks iommufd: '{host.root.dev_iommu}' and the module '{_MODULE}' are both missing"
        yield Finding("iommufd-missing", ERROR, next(iter(by_iommufd), None), text, dom.line)


def _split_groups(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """
    Yield a finding for each function that uses its group's node while another function of the group uses iommufd.

    Source: vfio_device_block_group (drivers/vfio/group.c): the group cannot be opened then
    """
    groups = {read_group(host.root, address): address for address in reversed(functions_by_iommufd(dom))}
    for hostdev in dom.host_functions():
        if not hostdev.is_assigned or dom.uses_iommufd(hostdev):
            continue
        group = read_group(host.root, hostdev.pci_address)
        if group is not None and group in groups:
            text = (
                f"Device {hostdev.pci_address} would be reached by IOMMU group {group}, and device {groups[group]} of "
                "that group by iommufd: the kernel allows one way for a group"
            )
            yield Finding("iommufd-mixed", ERROR, hostdev.pci_address, text, hostdev.line)


def vfio_nodes(dom: DomainDef, host: Host, release: LibvirtRelease) -> dict[PCIDeviceAddress, tuple[str, ...]]:
    """
    Return the VFIO nodes that QEMU opens for each assigned function, by its address.

    With iommufd these are ``dev/iommu`` and the function's node (``vfioN`` until the function is bound), otherwise the
    container's and the group's.
    """
    by_iommufd = functions_by_iommufd(dom) if release.has("iommufd") else []
    found = {}
    for hostdev in dom.host_functions():
        address = hostdev.pci_address
        if address in by_iommufd:
            found[address] = _iommufd_nodes(host.root, address)
        elif hostdev.is_assigned:
            found[address] = _group_nodes(host.root, address)
    return {address: tuple(host.shown(path) for path in paths) for address, paths in found.items() if paths}


def _iommufd_nodes(root: HostRoot, address: PCIDeviceAddress) -> tuple[str, ...]:
    name = next(iter(read_device_node_names(root, address)), _UNKNOWN_NODE)
    return root.dev_iommu, os.path.join(root.dev_vfio_devices, name)


def _group_nodes(root: HostRoot, address: PCIDeviceAddress) -> tuple[str, ...]:
    """Return the nodes of the container and the group; none for a function without a group."""
    group = read_group(root, address)
    return () if group is None else (root.vfio_container, root.vfio_group(group))
