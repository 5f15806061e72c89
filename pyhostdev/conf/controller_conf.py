# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Controllers: the buses for other devices.

Mirrors: virDomainControllerDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import Codec, big_number, enum, number, on_off, signed, size_unit, unit_factor
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import Elements, attribute, content, elements, inline
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, XMLError
from pyhostdev.util.virxml import parse_integer, shown

if TYPE_CHECKING:
    from pyhostdev.conf.vcpu_conf import MappedIOThread
    from pyhostdev.util.virxml import Element

CONTROLLER_TYPES = (
    "ide",
    "fdc",
    "scsi",
    "sata",
    "virtio-serial",
    "ccid",
    "usb",
    "pci",
    "xenbus",
    "isa",
)
PCI_MODELS = (
    "pci-root",
    "pcie-root",
    "pci-bridge",
    "dmi-to-pci-bridge",
    "pcie-to-pci-bridge",
    "pcie-root-port",
    "pcie-switch-upstream-port",
    "pcie-switch-downstream-port",
    "pci-expander-bus",
    "pcie-expander-bus",
)
CONVENTIONAL_BRIDGES = ("pci-bridge", "dmi-to-pci-bridge", "pcie-to-pci-bridge")
PCI_ROOT_MODELS = ("pci-root", "pcie-root")


# QEMU's device of a PCI controller
PCI_MODEL_NAMES = (
    "pci-bridge",
    "i82801b11-bridge",
    "ioh3420",
    "x3130-upstream",
    "xio3130-downstream",
    "pxb",
    "pxb-pcie",
    "pcie-root-port",
    "spapr-pci-host-bridge",
    "pcie-pci-bridge",
)
_SCSI_MODELS = (
    "auto",
    "buslogic",
    "lsilogic",
    "lsisas1068",
    "vmpvscsi",
    "ibmvscsi",
    "virtio-scsi",
    "lsisas1078",
    "virtio-transitional",
    "virtio-non-transitional",
    "ncr53c90",
    "dc390",
    "am53c974",
)
_USB_MODELS = (
    "piix3-uhci",
    "piix4-uhci",
    "ehci",
    "ich9-ehci1",
    "ich9-uhci1",
    "ich9-uhci2",
    "ich9-uhci3",
    "vt82c686b-uhci",
    "pci-ohci",
    "nec-xhci",
    "qusb1",
    "qusb2",
    "qemu-xhci",
    "none",
)
# type -> its models; other types have no models
MODELS: dict[str, tuple[str, ...]] = {
    "pci": PCI_MODELS,
    "scsi": _SCSI_MODELS,
    "usb": _USB_MODELS,
    "ide": ("piix3", "piix4", "ich6"),
    "virtio-serial": VIRTIO_MODELS,
}
_UNSET = -1  # libvirt's value for "not set", which the XML may also contain
_TARGET_FIELDS = ("chassis_nr", "chassis", "port", "bus_nr", "target_index", "numa_node")

_port = Codec(lambda value: parse_integer(value, 0), lambda value: f"{value:#x}", "a number")


class DomainControllerDef(ElementDef):
    """
    One controller; ``index`` is None until it is assigned.

    Mirrors: virDomainControllerDef (src/conf/domain_conf.h)
    """

    tag = "controller"

    type = attribute("type", enum(*CONTROLLER_TYPES, since={"nvme": "nvme-bus"}), default="ide")
    index = attribute("index", signed(0))
    model = attribute("model")
    ports = attribute("ports", signed(0))
    vectors = attribute("vectors", signed(0))
    max_grant_frames = attribute("maxGrantFrames", signed(0))
    max_event_channels = attribute("maxEventChannels", signed(0))
    model_name = attribute("model/@name", enum(*PCI_MODEL_NAMES))
    chassis_nr = attribute("target/@chassisNr", signed(base=0))
    chassis = attribute("target/@chassis", signed(base=0))
    port = attribute("target/@port", _port)
    bus_nr = attribute("target/@busNr", signed(base=0))
    target_index = attribute("target/@index", signed(base=0))
    hotplug = attribute("target/@hotplug", on_off)
    mem_reserve = attribute("target/@memReserve", big_number, since="controller-mem-reserve")
    numa_node = content("target/node", signed())
    serial = content("serial", since="nvme-bus")
    queues = attribute("driver/@queues", number)
    cmd_per_lun = attribute("driver/@cmd_per_lun", number)
    max_sectors = attribute("driver/@max_sectors", number)
    ioeventfd = attribute("driver/@ioeventfd", on_off)
    iothread = attribute("driver/@iothread", number)
    iothread_mapping: Elements[MappedIOThread] = elements(
        "driver/iothreads/iothread", "vcpu_conf.MappedIOThread", since="iothread-mapping"
    )
    virtio = inline(VirtioOptions)
    info = inline(DeviceInfo)
    pcihole64 = content("pcihole64", big_number)
    pcihole64_unit = attribute("pcihole64/@unit", size_unit)

    def parsed(self, element: Element) -> None:
        """
        Refuse a model that the type does not have, and drop options of other types.

        Mirrors: virDomainControllerDefParseXML (src/conf/domain_conf.c)
        """
        if self.model is not None and self.model not in MODELS.get(self.type, ()):
            text = f"Unknown model of a {self.type} controller: '{shown(self.model)}'"
            raise XMLError(text, line=self.line, libvirt_code=VIR_ERR_CONFIG_UNSUPPORTED)
        for name in _TARGET_FIELDS:
            if getattr(self, name) == _UNSET or not self.is_pci:
                setattr(self, name, None)
        if not self.is_pci:
            self.model_name = self.hotplug = self.mem_reserve = None
        if not self.is_pci_root:
            self.pcihole64 = self.pcihole64_unit = None
        if self.type not in ("virtio-serial", "usb"):
            self.ports = None
        if self.type != "virtio-serial":
            self.vectors = None

    @property
    def is_pci(self) -> bool:
        """True for a bus of the guest's PCI topology."""
        return self.type == "pci"

    @property
    def is_pci_root(self) -> bool:
        """True for the root bus of the machine, or a pseries PHB."""
        return self.is_pci and self.model in PCI_ROOT_MODELS

    @property
    def pcihole64_kib(self) -> int | None:
        """The size of the 64-bit hole in KiB, rounded up; None if it is not set."""
        if self.pcihole64 is None:
            return None
        return -(-self.pcihole64 * unit_factor(self.pcihole64_unit) // 1024)
