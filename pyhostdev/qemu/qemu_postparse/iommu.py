# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's defaults of a guest's IOMMUs.

Mirrors: qemuDomainIOMMUDefPostParse, qemuDomainDefEnableDefaultFeatures (src/qemu/qemu_postparse.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.small_device_conf import DomainIOMMUDef
from pyhostdev.errors import XMLError
from pyhostdev.qemu.qemu_domain import is_q35

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef

VCPUS_WITHOUT_EIM_MAX = 255  # an APIC id of xAPIC has 8 bits, and the last one is the broadcast


def refuse_several_iommus(dom: DomainDef) -> None:
    """
    Refuse more than one IOMMU.

    Raises:
        XMLError: has the line of the second IOMMU.
    """
    for iommu in dom.iommus[1:2]:
        raise XMLError("A guest can have only one IOMMU", line=iommu.line)


def fill_iommus(dom: DomainDef) -> None:
    """Enable interrupt remapping for guests with many CPUs, and move the I/O APIC to QEMU, which remapping needs."""
    if dom.vcpus > VCPUS_WITHOUT_EIM_MAX and is_q35(dom):
        if not dom.iommus:
            dom.iommus.append(DomainIOMMUDef(model="intel"))
        for iommu in dom.iommus:
            _reach_all_processors(iommu)
    if any(iommu.intremap for iommu in dom.iommus) and dom.features.ioapic_driver is None:
        dom.features.ioapic_driver = "qemu"


def _reach_all_processors(iommu: Any) -> None:
    """Enable wide APIC ids unless the definition disables them, and the remapping that they need."""
    wide = {"intel": "eim", "amd": "xtsup"}.get(iommu.model)
    if wide is None:
        return
    for option in ("intremap", wide):
        if getattr(iommu, option) is None:
            setattr(iommu, option, True)
