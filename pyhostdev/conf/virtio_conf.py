# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Virtio options, and the memory balloon.

Mirrors: virDomainVirtioOptions and the devices' own structures (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.xml.xmlcodec import enum, number, on_off
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, inline

if TYPE_CHECKING:
    pass

VIRTIO_MODELS = ("virtio", "virtio-transitional", "virtio-non-transitional")


class VirtioOptions(ElementDef):
    """The virtio options in <driver> of every virtio device."""

    iommu = attribute("driver/@iommu", on_off)
    ats = attribute("driver/@ats", on_off)
    packed = attribute("driver/@packed", on_off)
    page_per_vq = attribute("driver/@page_per_vq", on_off)

    def given(self) -> list[str]:
        """Return the names of the options that are given."""
        return [name for name in ("iommu", "ats", "packed", "page_per_vq") if getattr(self, name) is not None]


class DomainMemballoonDef(ElementDef):
    """The memory balloon; model none disables it."""

    tag = "memballoon"

    model = attribute("model", enum(*VIRTIO_MODELS, "xen", "none"), required=True)
    autodeflate = attribute("autodeflate", on_off)
    free_page_reporting = attribute("freePageReporting", on_off)
    stats_period = attribute("stats/@period", number)
    info = inline(DeviceInfo)
    virtio = inline(VirtioOptions)
