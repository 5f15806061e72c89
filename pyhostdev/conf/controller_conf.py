# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Controllers: the buses that other devices are plugged into.

Mirrors: virDomainControllerDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.virtio_conf import VirtioOptions
from pyhostdev.conf.xmlcodec import big_number, enum, hexadecimal, number, on_off, signed, size_unit, unit_factor
from pyhostdev.conf.xmldef import ElementDef
from pyhostdev.conf.xmlfield import attribute, content, embedded

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
PCI_ROOT_MODELS = ("pci-root", "pcie-root")


class DomainControllerDef(ElementDef):
    """
    One controller; ``index`` is None until one is chosen.

    Mirrors: virDomainControllerDef (src/conf/domain_conf.h)
    """

    tag = "controller"

    type = attribute("type", enum(*CONTROLLER_TYPES), required=True)
    index = attribute("index", number)
    model = attribute("model")
    ports = attribute("ports", signed(0))
    vectors = attribute("vectors", signed(0))
    max_grant_frames = attribute("maxGrantFrames", signed(0))
    max_event_channels = attribute("maxEventChannels", signed(0))
    model_name = attribute("model/@name")
    chassis_nr = attribute("target/@chassisNr", number)
    chassis = attribute("target/@chassis", number)
    port = attribute("target/@port", hexadecimal(1))
    bus_nr = attribute("target/@busNr", number)
    target_index = attribute("target/@index", number)
    hotplug = attribute("target/@hotplug", on_off)
    numa_node = content("target/node", number)
    queues = attribute("driver/@queues", number)
    cmd_per_lun = attribute("driver/@cmd_per_lun", number)
    max_sectors = attribute("driver/@max_sectors", number)
    ioeventfd = attribute("driver/@ioeventfd", on_off)
    iothread = attribute("driver/@iothread", number)
    virtio = embedded(VirtioOptions)
    info = embedded(DeviceInfo)
    pcihole64 = content("pcihole64", big_number)
    pcihole64_unit = attribute("pcihole64/@unit", size_unit)

    @property
    def is_pci(self) -> bool:
        """True for a bus of the guest's PCI topology."""
        return self.type == "pci"

    @property
    def is_pci_root(self) -> bool:
        """True for a root that the machine has by itself, or a pseries PHB."""
        return self.is_pci and self.model in PCI_ROOT_MODELS

    @property
    def pcihole64_kib(self) -> int | None:
        """The size of the 64-bit hole in KiB, rounded up; None where none is said."""
        if self.pcihole64 is None:
            return None
        return -(-self.pcihole64 * unit_factor(self.pcihole64_unit) // 1024)
