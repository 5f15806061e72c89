# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The addresses that the machine's chipset determines.

The functions of the PIIX3 (i440fx) and of the ICH9 (q35) have fixed addresses, whether or not the definition contains
them. The first video card and the USB 2 controllers have preferred addresses.

Mirrors: qemuDomainValidateDevicePCISlotsPIIX3, qemuDomainValidateDevicePCISlotsQ35
(src/qemu/qemu_domain_address.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.address_conf import PCIGuestAddress
from pyhostdev.conf.domain_addr import (
    CONNECT_DMI_TO_PCI_BRIDGE,
    CONNECT_PCI_DEVICE,
    CONNECT_PCIE_DEVICE,
)
from pyhostdev.conf.guest_addresses import CHIPSET
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError
from pyhostdev.qemu.qemu_domain import is_i440fx, is_q35
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_addr import DomainPCIAddressSet
    from pyhostdev.conf.domain_conf import DomainDef

    PlaceAnywhere = Callable[[Any], None]

_PIIX3_ISA = PCIDeviceAddress(0, 0, 1, 0)
_PIIX3_IDE = PCIDeviceAddress(0, 0, 1, 1)
_PIIX3_USB = PCIDeviceAddress(0, 0, 1, 2)
_PIIX4_PM = PCIDeviceAddress(0, 0, 1, 3)
_PIIX_VIDEO = PCIDeviceAddress(0, 0, 2, 0)

_ICH9_VIDEO = PCIDeviceAddress(0, 0, 1, 0)
_ICH9_USB = (PCIDeviceAddress(0, 0, 0x1D, 0), PCIDeviceAddress(0, 0, 0x1A, 0))
_ICH9_SOUND = PCIDeviceAddress(0, 0, 0x1B, 0)
_ICH9_DMI = PCIDeviceAddress(0, 0, 0x1E, 0)
_ICH9_LPC = PCIDeviceAddress(0, 0, 0x1F, 0)
_ICH9_SATA = PCIDeviceAddress(0, 0, 0x1F, 2)
_ICH9_SMBUS = PCIDeviceAddress(0, 0, 0x1F, 3)

_ON_I440FX = CONNECT_PCI_DEVICE
_ON_Q35 = CONNECT_PCIE_DEVICE


def reserve_chipset(dom: DomainDef, addrs: DomainPCIAddressSet, place: PlaceAnywhere) -> None:
    """
    Reserve the addresses of the chipset, and give them to the devices that are part of it.

    Args:
        place: chooses an address for a device if its preferred one is in use.

    Raises:
        ConfigError: such a device has another address, or another device has its address.
    """
    if is_i440fx(dom):
        _reserve_piix3(dom, addrs, place)
    elif is_q35(dom):
        _reserve_ich9(dom, addrs, place)


def is_piix3_function(device: Any) -> bool:
    """True for a controller that is part of the PIIX3; its address is reserved with the chipset's."""
    if device.tag != "controller" or device.info.pci is None:
        return False
    address = device.info.pci.pci
    if device.type == "ide":
        return bool(address == _PIIX3_IDE)
    return device.type == "usb" and device.model in (None, "piix3-uhci") and address == _PIIX3_USB


def _reserve_piix3(dom: DomainDef, addrs: DomainPCIAddressSet, place: PlaceAnywhere) -> None:
    for device in dom.controllers:
        if device.index != 0:
            continue
        if device.type == "ide":
            _pin(device, _PIIX3_IDE, addrs)
        elif device.type == "usb" and device.model in (None, "piix3-uhci"):
            _pin(device, _PIIX3_USB, addrs)
    if addrs.buses:
        addrs.reserve(_PIIX3_ISA, _ON_I440FX)
        addrs.reserve(_PIIX4_PM, _ON_I440FX)
        _place_video(dom, addrs, _PIIX_VIDEO, _ON_I440FX, place)


def _reserve_ich9(dom: DomainDef, addrs: DomainPCIAddressSet, place: PlaceAnywhere) -> None:
    for device in dom.controllers:
        if device.type == "sata" and device.index == 0:
            _pin(device, _ICH9_SATA)
        elif device.type == "usb" and device.model == "ich9-uhci1":
            _prefer(device, addrs, _ICH9_USB, _ON_Q35, multifunction=True)
        elif device.type == "pci" and device.model == "dmi-to-pci-bridge":
            _prefer(device, addrs, (_ICH9_DMI,), CONNECT_DMI_TO_PCI_BRIDGE)
    if addrs.buses:
        addrs.reserve(_ICH9_LPC, _ON_Q35)
        addrs.reserve(_ICH9_SMBUS, _ON_Q35)
        _place_video(dom, addrs, _ICH9_VIDEO, _ON_Q35, place)
    for sound in dom.sounds:
        if sound.model == "ich9":
            _prefer(sound, addrs, (_ICH9_SOUND,), _ON_Q35)


def _pin(device: Any, address: PCIDeviceAddress, addrs: DomainPCIAddressSet | None = None) -> None:
    """
    Assign the only possible address of a device, and reserve it in addrs if no other code does.

    Raises:
        ConfigError: the device has another address.
    """
    pci = device.info.pci
    if pci is None:
        _store(device, address)
    elif pci.pci != address:
        text = f"The first {device.type} controller of this machine must have address {address}"
        raise ConfigError(text, libvirt_code=VIR_ERR_INTERNAL_ERROR, line=device.line)
    if addrs is not None and addrs.buses:
        addrs.reserve(address, _ON_I440FX)


def _prefer(
    device: Any,
    addrs: DomainPCIAddressSet,
    addresses: tuple[PCIDeviceAddress, ...],
    flags: int,
    multifunction: bool | None = None,
) -> None:
    """Assign the first of a device's preferred addresses whose slot is free; do nothing if all are in use."""
    if not device.info.needs_address:
        return
    for address in addresses:
        if not addrs.is_slot_in_use(address):
            addrs.reserve(address, flags)
            _store(device, address, multifunction)
            return


def _store(device: Any, address: PCIDeviceAddress, multifunction: bool | None = None) -> None:
    device.info.address = PCIGuestAddress.at(address, multifunction=multifunction)
    device.info.why = CHIPSET


def _place_video(
    dom: DomainDef, addrs: DomainPCIAddressSet, address: PCIDeviceAddress, flags: int, place: PlaceAnywhere
) -> None:
    """Give the first video card its preferred slot, or any other if that is in use."""
    video = next((v for v in dom.videos[:1] if v.model_type not in ("none", "ramfb")), None)
    if video is None or not video.info.needs_address:
        return
    addrs.validate(address, flags)
    if addrs.is_slot_in_use(address):
        place(video)
        return
    addrs.reserve(address, flags)
    _store(video, address)
