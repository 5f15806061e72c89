# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The kind of PCI slot that each device of a guest needs.

Mirrors: qemuDomainDeviceCalculatePCIConnectFlags (src/qemu/qemu_domain_address.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.domain_addr import (
    CONNECT_AUTOASSIGN,
    CONNECT_INTEGRATED,
    CONNECT_PCI_DEVICE,
    CONNECT_PCIE_DEVICE,
    CONTROLLER_MODELS,
)
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError
from pyhostdev.qemu.qemu_domain import has_pcie_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.util.pciaddress import PCIDeviceAddress


# without CONNECT_HOTPLUG: a device that is present at start may be in a slot without hotplug
CONVENTIONAL = CONNECT_PCI_DEVICE | CONNECT_AUTOASSIGN
EXPRESS = CONNECT_PCIE_DEVICE | CONNECT_AUTOASSIGN

_XHCI_MODELS = ("nec-xhci", "qemu-xhci")
_PLAIN_SCSI_MODELS = ("auto", "buslogic", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi", "dc390", "am53c974")
# models that libvirt treats as conventional PCI; it treats an unknown model as PCI Express
_OLD_NICS = ("netfront", "rtl8139", "e1000", "lan9118", "smc91c111", "virtio-transitional")
_VMWARE_NICS = ("vlance", "vmxnet", "vmxnet2", "vmxnet3")
_VBOX_NICS = ("Am79C970A", "Am79C973", "82540EM", "82545EM", "82543GC")
_CONVENTIONAL_NICS = (*_OLD_NICS, *_VMWARE_NICS, *_VBOX_NICS)
_PCI_SOUND = ("es1370", "ac97", "ich6", "ich7", "ich9")
_PCI_VIDEO = ("vga", "cirrus", "vmvga", "xen", "qxl", "bochs")


class ConnectFlags:
    """
    The connect flags of a guest's devices; 0 means that a device needs no PCI address.

    Args:
        host: knows which functions are conventional PCI; without it, all are PCI Express.
    """

    def __init__(self, dom: DomainDef, host: HostFacts | None = None) -> None:
        self.host = host
        self._conventional: dict[PCIDeviceAddress, bool] = {}  # cached: reading configuration space is slow
        self.pcie = EXPRESS if has_pcie_root(dom) else CONVENTIONAL

    def of(self, device: Any) -> int:
        """Return the flags of a device of any kind."""
        rule = _RULES.get(device.tag)
        return 0 if rule is None else rule(self, device)

    def virtio(self, device: Any) -> int:
        """Return the flags of a virtio device; a transitional one needs a conventional slot."""
        return CONVENTIONAL if device.model == "virtio-transitional" else self.pcie

    def crypto(self, device: Any) -> int:
        """Return the flags of a crypto device, which libvirt puts into a conventional slot."""
        return CONVENTIONAL

    def controller(self, device: Any) -> int:
        """Return a controller's flags, by its type and model."""
        if device.type == "pci":
            return _pci_controller(device)
        if device.type in ("ide", "sata"):
            return CONVENTIONAL
        if device.type == "virtio-serial":
            return self.virtio(device)
        if device.type == "nvme":
            return self.pcie
        if device.type == "usb" and device.model not in (None, "none"):
            return self.pcie if device.model in _XHCI_MODELS else CONVENTIONAL
        if device.type == "scsi":
            return self._scsi(device)
        return 0

    def _scsi(self, device: Any) -> int:
        if device.model in ("virtio-scsi", "virtio-non-transitional"):
            return self.pcie
        conventional = device.model == "virtio-transitional" or device.model in _PLAIN_SCSI_MODELS
        return CONVENTIONAL if conventional else 0

    def disk(self, device: Any) -> int:
        """Return a disk's flags; only a virtio disk is itself a PCI device."""
        return self.virtio(device) if device.bus == "virtio" else 0

    def filesystem(self, device: Any) -> int:
        """Return a file system's flags; one by mtp is on USB."""
        return 0 if device.is_mtp else self.virtio(device)

    def interface(self, device: Any) -> int:
        """Return an interface's flags; 0 for type hostdev, which ``hostdev`` covers."""
        if device.type == "hostdev" or device.model in ("usb-net", "spapr-vlan"):
            return 0
        return CONVENTIONAL if device.model in _CONVENTIONAL_NICS else self.pcie

    def sound(self, device: Any) -> int:
        """Return a sound card's flags."""
        if device.model == "virtio":
            return self.virtio(device)
        return CONVENTIONAL if device.model in _PCI_SOUND else 0

    def hostdev(self, device: Any) -> int:
        """Return a host device's flags."""
        if device.mode != "subsystem" or not device.is_assigned:
            return 0
        if device.type == "scsi_host":
            return self.virtio(device)
        if device.type == "mdev":
            return self.pcie if device.model == "vfio-pci" else 0
        return self._pci_hostdev(device) if device.type == "pci" else 0

    def _pci_hostdev(self, device: Any) -> int:
        """
        Return the flags of a PCI function: Express unless the host's function is conventional PCI.

        The host is read only if the result depends on it: the guest has PCI Express, and the user chose no address.
        """
        if self.pcie == CONVENTIONAL or self.host is None or device.info.pci is not None:
            return self.pcie
        source = device.pci_address
        if source not in self._conventional:
            self._conventional[source] = self.host.is_pci_express(source) is False
        return CONVENTIONAL if self._conventional[source] else self.pcie

    def memballoon(self, device: Any) -> int:
        """Return the balloon's flags."""
        return 0 if device.model in ("none", "xen") else self.virtio(device)

    def watchdog(self, device: Any) -> int:
        """Return a watchdog's flags."""
        return CONVENTIONAL if device.model == "i6300esb" else 0

    def video(self, device: Any) -> int:
        """Return a video card's flags."""
        if device.model_type == "virtio":
            return self.pcie
        return CONVENTIONAL if device.model_type in _PCI_VIDEO else 0

    def shmem(self, _device: Any) -> int:
        """Return shared memory's flags."""
        return CONVENTIONAL

    def input(self, device: Any) -> int:
        """Return an input device's flags."""
        return self.virtio(device) if device.bus == "virtio" else 0

    def serial(self, device: Any) -> int:
        """Return a serial port's flags."""
        return CONVENTIONAL if device.target_type == "pci-serial" else 0

    def memory(self, device: Any) -> int:
        """Return a memory device's flags."""
        return self.pcie if device.model in ("virtio-pmem", "virtio-mem") else 0

    def panic(self, device: Any) -> int:
        """Return a panic notifier's flags; on PCI it is integrated into the root bus."""
        if device.model != "pvpanic":
            return 0
        return (self.pcie & ~CONNECT_AUTOASSIGN) | CONNECT_INTEGRATED

    def pstore(self, device: Any) -> int:
        """Return a persistent store's (pstore) flags."""
        return CONVENTIONAL

    def iommu(self, device: Any) -> int:
        """Return a guest IOMMU's flags; on PCI it is integrated into the root bus."""
        if device.model not in ("amd", "virtio"):
            return 0
        return (self.pcie & ~CONNECT_AUTOASSIGN) | CONNECT_INTEGRATED


def _pci_controller(device: Any) -> int:
    """
    Return the flags of the slot that a PCI controller needs.

    Raises:
        ConfigError: the controller has no model.
    """
    if device.model not in CONTROLLER_MODELS:
        raise ConfigError(
            f"PCI controller {device.index} has no model", libvirt_code=VIR_ERR_INTERNAL_ERROR, line=device.line
        )
    return CONTROLLER_MODELS[device.model].plug


_RULES: dict[str, Callable[[ConnectFlags, Any], int]] = {
    "controller": ConnectFlags.controller,
    "disk": ConnectFlags.disk,
    "filesystem": ConnectFlags.filesystem,
    "interface": ConnectFlags.interface,
    "sound": ConnectFlags.sound,
    "hostdev": ConnectFlags.hostdev,
    "memballoon": ConnectFlags.memballoon,
    "rng": ConnectFlags.virtio,
    "vsock": ConnectFlags.virtio,
    "crypto": ConnectFlags.crypto,
    "watchdog": ConnectFlags.watchdog,
    "video": ConnectFlags.video,
    "shmem": ConnectFlags.shmem,
    "input": ConnectFlags.input,
    "serial": ConnectFlags.serial,
    "memory": ConnectFlags.memory,
    "iommu": ConnectFlags.iommu,
    "panic": ConnectFlags.panic,
    "pstore": ConnectFlags.pstore,
}
