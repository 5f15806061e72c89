# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Small devices: vsock, crypto, input, shared memory and IOMMU.

Mirrors: the devices' own structures (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import big_number, enum, number, on_off, size_unit, unit_factor, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, flag, inline
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_INTERNAL_ERROR, XMLError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyhostdev.util.virxml import Element


class DomainVsockDef(ElementDef):
    """A socket between host and guest."""

    tag = "vsock"

    model = attribute("model", enum(*VIRTIO_MODELS))
    cid_auto = attribute("cid/@auto", yes_no)
    cid_address = attribute("cid/@address", number)
    virtio = inline(VirtioOptions)
    info = inline(DeviceInfo)


class DomainCryptoDef(ElementDef):
    """A crypto device."""

    tag = "crypto"

    model = attribute("model", enum("virtio"), required=True)
    type = attribute("type", enum("qemu"), required=True)
    backend_model = attribute("backend/@model", enum("builtin", "lkcf"), required=True)
    backend_queues = attribute("backend/@queues", number)
    virtio = inline(VirtioOptions)
    info = inline(DeviceInfo)


# type of input device -> what libvirt does not read of its source
_UNREAD_SOURCES = {
    "mouse": ("source",),
    "tablet": ("source",),
    "keyboard": ("source",),
    "passthrough": ("source/@dev", "source/@grab", "source/@repeat", "source/@grabToggle"),
    "evdev": ("source/@evdev",),
}


class DomainInputDef(ElementDef):
    """A mouse, a tablet, a keyboard, or an event device of the host."""

    tag = "input"

    type = attribute(
        "type",
        enum("mouse", "tablet", "keyboard", "passthrough", "evdev"),
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        missing=VIR_ERR_INTERNAL_ERROR,
        required=True,
    )
    bus = attribute("bus", enum("ps2", "usb", "xen", "parallels", "virtio", "none"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    model = attribute("model", enum(*VIRTIO_MODELS))
    virtio = inline(VirtioOptions)
    source_evdev = attribute("source/@evdev")
    source_dev = attribute("source/@dev")
    source_grab = attribute("source/@grab", enum("all"))
    source_repeat = attribute("source/@repeat", on_off)
    source_grab_toggle = attribute(
        "source/@grabToggle",
        enum("ctrl-ctrl", "alt-alt", "shift-shift", "meta-meta", "scrolllock", "ctrl-scrolllock"),
    )
    info = inline(DeviceInfo)

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """
        Return what a <source> of another type has.

        Mirrors: virDomainInputDefParseXML (src/conf/domain_conf.c)
        """
        return _UNREAD_SOURCES.get(element.get("type", ""), ())

    def parsed(self, element: Element) -> None:
        """Refuse an event device of the host without its path."""
        wanted = {"passthrough": self.source_evdev, "evdev": self.source_dev}
        if self.has_child("source") and wanted.get(self.type, "") is None:
            raise XMLError(f"An <input> of type {self.type} needs the path of its <source>", line=self.line)

    def hides(self, name: str) -> bool:
        """Return True for the bus of an event device, which libvirt does not print."""
        return name == "bus" and self.type == "evdev"


class DomainIOMMUDef(ElementDef):
    """A virtual IOMMU of the guest."""

    tag = "iommu"

    model = attribute("model", enum("intel", "smmuv3", "virtio", since={"amd": "amd-iommu"}), required=True)
    pci_bus = attribute("driver/@pciBus", number, since="smmuv3-options")
    accel = attribute("driver/@accel", on_off, since="smmuv3-options")
    cmdqv = attribute("driver/@cmdqv", on_off, since="smmuv3-options")
    ats = attribute("driver/@ats", on_off, since="smmuv3-options")
    ril = attribute("driver/@ril", on_off, since="smmuv3-options")
    ssidsize = attribute("driver/@ssidsize", number, since="smmuv3-options")
    oas = attribute("driver/@oas", number, since="smmuv3-options")
    intremap = attribute("driver/@intremap", on_off)
    caching_mode = attribute("driver/@caching_mode", on_off)
    eim = attribute("driver/@eim", on_off)
    iotlb = attribute("driver/@iotlb", on_off)
    aw_bits = attribute("driver/@aw_bits", number)
    dma_translation = attribute("driver/@dma_translation", on_off, since="iommu-dma-translation")
    xtsup = attribute("driver/@xtsup", on_off, since="amd-iommu")
    passthrough = attribute("driver/@passthrough", on_off, since="amd-iommu")
    granule_mode = attribute("driver/granule/@mode", enum("host"), since="iommu-granule")
    granule = attribute("driver/granule/@size", big_number, since="iommu-granule")
    granule_unit = attribute("driver/granule/@unit", size_unit, since="iommu-granule")
    info = inline(DeviceInfo)

    @property
    def granule_kib(self) -> float | None:
        """The granule in KiB, None if it is not set."""
        return None if self.granule is None else self.granule * unit_factor(self.granule_unit) / 1024


class DomainShmemDef(ElementDef):
    """Memory shared between domains."""

    tag = "shmem"

    name = attribute("name", required=True)
    role = attribute("role", enum("master", "peer"))
    model = attribute("model/@type", enum("ivshmem", "ivshmem-plain", "ivshmem-doorbell"))
    size = content("size", big_number)
    size_unit = attribute("size/@unit", size_unit)
    has_server = flag("server")
    server_path = attribute("server/@path")
    has_msi = flag("msi")
    msi_enabled = attribute("msi/@enabled", yes_no)
    msi_vectors = attribute("msi/@vectors", number)
    msi_ioeventfd = attribute("msi/@ioeventfd", on_off)
    info = inline(DeviceInfo)
