# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's IOMMUs on the command line.

Mirrors: qemuBuildIOMMUCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.builder import on_off

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties


def build_iommus_first(build: CommandBuilder) -> None:
    """Add the IOMMUs before the controllers if the libvirt release does so."""
    if not build.release.has("iommu-after-controllers"):
        _build_iommus(build)


def build_iommus_last(build: CommandBuilder) -> None:
    """Add the IOMMUs after the controllers if the libvirt release does so."""
    if build.release.has("iommu-after-controllers"):
        _build_iommus(build)


def is_machine_option(iommu: Any) -> bool:
    """Return True for an IOMMU that is a -machine option and serves all buses, not a -device."""
    return bool(iommu.model == "smmuv3" and iommu.pci_bus is None)


def _build_iommus(build: CommandBuilder) -> None:
    for iommu in build.dom.iommus:
        with build.collecting():
            if not is_machine_option(iommu):
                _RULES[iommu.model](build, iommu)


def _intel(build: CommandBuilder, iommu: Any) -> None:
    build.add_device(
        {
            "driver": "intel-iommu",
            "id": iommu.info.alias,
            "intremap": _word(iommu.intremap),
            "caching-mode": iommu.caching_mode,
            "eim": _word(iommu.eim),
            "device-iotlb": iommu.iotlb,
            "aw-bits": iommu.aw_bits or None,
            "dma-translation": iommu.dma_translation,
        }
    )


def _amd(build: CommandBuilder, iommu: Any) -> None:
    """Add the PCI function that the guest sees, then the IOMMU itself."""
    build.add_device({"driver": "AMDVI-PCI", "id": iommu.info.alias, **build.address(iommu)})
    build.add_device(
        {
            "driver": "amd-iommu",
            "pci-id": iommu.info.alias,
            "intremap": _word(iommu.intremap),
            "pt": iommu.passthrough,
            "xtsup": iommu.xtsup,
            "device-iotlb": iommu.iotlb,
        }
    )


def _smmuv3(build: CommandBuilder, iommu: Any) -> None:
    build.add_device(
        {
            "driver": "arm-smmuv3",
            "primary-bus": build.controller("pci", iommu.pci_bus).info.alias,
            "id": iommu.info.alias,
            "accel": iommu.accel,
            "ats": _word(iommu.ats),
            "ril": _word(iommu.ril),
            "ssidsize": _text(iommu.ssidsize),
            "oas": _text(iommu.oas),
            "cmdqv": _word(iommu.cmdqv),
        }
    )


def _virtio(build: CommandBuilder, iommu: Any) -> None:
    granule = "host" if iommu.granule_mode == "host" else None
    if iommu.granule is not None:
        granule = f"{int(iommu.granule_kib)}k"
    properties: Properties = {"driver": "virtio-iommu", "id": iommu.info.alias, "granule": granule}
    build.add_device({**properties, **build.address(iommu)})


def _word(value: bool | None) -> str | None:
    """Return an OnOffAuto property, which QEMU reads as a string; None stays None."""
    return None if value is None else on_off(value)


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


_RULES: dict[str, Callable[[CommandBuilder, Any], None]] = {
    "intel": _intel,
    "amd": _amd,
    "smmuv3": _smmuv3,
    "virtio": _virtio,
}
