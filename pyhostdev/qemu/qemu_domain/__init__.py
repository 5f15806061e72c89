# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Facts about a definition: the kind of its machine, and the memory that QEMU must be able to lock for it.

Mirrors: src/qemu/qemu_domain.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef

X86 = ("x86_64", "i686")
ARM = ("aarch64", "armv7l")
PPC64 = ("ppc64", "ppc64le")

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB


def is_i440fx(dom: DomainDef) -> bool:
    """
    True for machines with a 440FX host bridge and a PIIX3.

    Mirrors: qemuDomainMachineIsI440FX (src/qemu/qemu_domain.c)
    """
    machine = dom.os.machine or ""
    return dom.os.arch in X86 and (machine == "pc" or machine.startswith(("pc-0.", "pc-1.", "pc-i440fx-", "rhel")))


def is_q35(dom: DomainDef) -> bool:
    """
    True for machines with an MCH host bridge and an ICH9.

    Mirrors: qemuDomainMachineIsQ35 (src/qemu/qemu_domain.c)
    """
    machine = dom.os.machine or ""
    return dom.os.arch in X86 and (machine == "q35" or machine.startswith("pc-q35"))


def lacks_pci(dom: DomainDef) -> bool:
    """
    True for a machine that is known to have no PCI.

    Mirrors: qemuDomainSupportsPCI (src/qemu/qemu_domain.c)
    """
    machine = dom.os.machine or ""
    if dom.os.arch in ARM:
        return not is_arm_virt(dom) and machine != "versatilepb"
    return machine == "isapc" or machine.split("-")[0] == "microvm"


def is_pseries(dom: DomainDef) -> bool:
    """
    True for paravirtualised POWER machines.

    Mirrors: qemuDomainMachineIsPSeries (src/qemu/qemu_domain.c)
    """
    machine = dom.os.machine or ""
    return dom.os.arch in PPC64 and (machine == "pseries" or machine.startswith("pseries-"))


def is_arm_virt(dom: DomainDef) -> bool:
    """
    True for ARM's generic virtual machine.

    Mirrors: qemuDomainMachineIsARMVirt (src/qemu/qemu_domain.c)
    """
    machine = dom.os.machine or ""
    return dom.os.arch in ARM and (machine == "virt" or machine.startswith("virt-"))


def _root_model(dom: DomainDef) -> str | None:
    roots = (c.model for c in dom.controllers if c.type == "pci" and c.index == 0)
    return next(roots, None)


def has_pci_root(dom: DomainDef) -> bool:
    """
    True if bus 0 is conventional PCI.

    Mirrors: qemuDomainHasPCIRoot (src/qemu/qemu_domain.c)
    """
    return _root_model(dom) == "pci-root"


def has_pcie_root(dom: DomainDef) -> bool:
    """
    True if bus 0 is PCI Express.

    Mirrors: qemuDomainHasPCIeRoot (src/qemu/qemu_domain.c)
    """
    return _root_model(dom) == "pcie-root"


def is_vfio(hostdev: DomainHostdevDef) -> bool:
    """True for a host device that uses VFIO, assigned to the guest or not."""
    return hostdev.mode == "subsystem" and hostdev.type in ("pci", "mdev")


def memlock_limit(dom: DomainDef) -> int | None:
    """
    Return how much memory QEMU must be able to lock, None if the default limit is sufficient.

    Units:
        bytes; -1 means unlimited.

    Mirrors: qemuDomainGetMemLockLimitBytes (src/qemu/qemu_domain.c)
    """
    if dom.memtune_hard_limit_kib is not None:
        return dom.memtune_hard_limit_kib * _KIB
    if dom.memory_locked:
        return -1
    nvfio = sum(1 for hostdev in dom.all_hostdevs() if is_vfio(hostdev))
    if dom.os.arch in PPC64 and dom.type == "kvm":
        return _ppc64_limit(dom, nvfio > 0)
    # without a virtual IOMMU all devices share one address space; with one, each pins the memory separately
    factor = nvfio if dom.has_guest_iommu() else min(nvfio, 1)
    factor += _other_users_of_vfio(dom)
    return factor * _total_memory(dom) + _GIB if factor else None


def _other_users_of_vfio(dom: DomainDef) -> int:
    """
    Return how many disks and interfaces map the guest's memory for themselves [measured for vhostvdpa disks].

    Mirrors: qemuDomainGetNumNVMeDisks, qemuDomainGetNumVDPANetDevices (src/qemu/qemu_domain.c)
    """
    disks = sum(1 for disk in dom.disks if disk.type == "vhostvdpa" or any(disk.nvme_sources()))
    return disks + sum(1 for net in dom.interfaces if net.type == "vdpa")


def _total_memory(dom: DomainDef) -> int:
    plugged = sum(module.size_kib for module in dom.memories)
    return int((dom.memory_kib + plugged) * _KIB)


def _ppc64_limit(dom: DomainDef, has_vfio: bool) -> int:
    """
    Return the limit in bytes of a KVM guest on POWER: the page tables, and for VFIO the DMA windows.

    Mirrors: getPPC64MemLockLimitBytes (src/qemu/qemu_domain.c)
    """
    bridges = sum(1 for c in dom.controllers if c.type == "pci" and c.model == "pci-root")
    memory = _total_memory(dom)
    largest = max((dom.max_memory_kib or 0) * _KIB, memory)
    limit = largest // 128 + 4 * _MIB * bridges + 8 * _MIB
    if has_vfio:
        limit += max(2 * _GIB * bridges, memory + memory // 512 * bridges + 8 * _MIB)
    return limit


def tpm_driver(arch: str, model: str) -> str:
    """Return QEMU's name of a model; the boards of ARM have no ISA bus."""
    return f"{model}-device" if model == "tpm-tis" and arch in ARM else model
