# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Interpret the bytes of a configuration space: pure functions that open no file.

The bytes may be few (an unprivileged reader gets 64) or hostile (a broken device links its capabilities in a circle).
A value beyond the end is None, "unknown", and every walk is bounded.
"""

from __future__ import annotations

from pyhostdev.util import pciregs


def byte(config: bytes, offset: int) -> int | None:
    """Return the byte at offset, None beyond the end of the bytes."""
    return config[offset] if offset < len(config) else None


def word(config: bytes, offset: int) -> int | None:
    """Return the 16-bit little-endian value at offset, None beyond the end."""
    end = offset + 2
    return int.from_bytes(config[offset:end], "little") if end <= len(config) else None


def dword(config: bytes, offset: int) -> int | None:
    """Return the 32-bit little-endian value at offset, None beyond the end."""
    end = offset + 4
    return int.from_bytes(config[offset:end], "little") if end <= len(config) else None


def header_type(config: bytes) -> int | None:
    """
    Return the layout of the header: 0 endpoint, 1 PCI bridge, 2 CardBus, 0x7f if the device does not answer.

    Mirrors: virPCIGetHeaderType (src/util/virpci.c)
    """
    value = byte(config, pciregs.HEADER_TYPE)
    return None if value is None else value & pciregs.HEADER_TYPE_MASK


def is_multifunction(config: bytes) -> bool | None:
    """
    Tell whether this function's header marks its device as multifunction.

    Source: PCI30 6.2.1, header type bit 7. None if the device does not answer (all ones).
    """
    value = byte(config, pciregs.HEADER_TYPE)
    if value is None or value & pciregs.HEADER_TYPE_MASK == pciregs.HEADER_TYPE_DEAD:
        return None
    return bool(value & pciregs.HEADER_TYPE_MULTIFUNCTION)


def find_capability(config: bytes, capability: int) -> int | None:
    """
    Return the offset of a capability, 0 if the device does not have it, None if the bytes end too early to tell.

    Source: PCI30 6.7. The low two bits of a pointer are reserved. At most 48 capabilities fit: a longer list is
    circular, and a capability not found until then is absent.
    """
    status = word(config, pciregs.STATUS)
    if status is None:
        return None
    if not status & pciregs.STATUS_CAP_LIST:
        return 0
    position = byte(config, pciregs.CAPABILITY_LIST)
    for _ in range(pciregs.CAP_STEPS_MAX):
        if position is None:
            return None
        if position < pciregs.CAP_START or position == 0xFF:
            return 0
        position &= ~3
        found = byte(config, position)
        if found == capability:
            return position
        position = byte(config, position + 1)
    return 0


def find_extended_capability(config: bytes, capability: int) -> int | None:
    """
    Return the offset of an extended capability, 0 if the device does not have it, None if unknown.

    Source: PCIE50 7.6.3. The walk is bounded like that of the standard list.
    """
    position = pciregs.EXT_CAP_START
    for _ in range(pciregs.EXT_CAP_STEPS_MAX):
        header = dword(config, position)
        if header is None:
            return None
        if header in (0, 0xFFFFFFFF):
            return 0
        if header & 0xFFFF == capability:
            return position
        position = header >> 20 & ~3
        if position < pciregs.EXT_CAP_START:
            return 0
    return 0


def serial_number(config: bytes, offset: int) -> str | None:
    """
    Return the device serial number at the offset of its capability, as the kernel prints it; None if it is zero.

    Source: PCIE50 7.9.3; drivers/pci/pci.c pci_get_dsn
    """
    low, high = dword(config, offset + 4), dword(config, offset + 8)
    if low is None or high is None or not (low or high):
        return None
    return (high << 32 | low).to_bytes(8, "big").hex("-")


def is_pci_express(config: bytes) -> bool | None:
    """
    Return True if the function has a PCI Express capability, None if the size of its configuration space has to decide.

    A virtual host bridge can be PCI Express without any capability.

    Mirrors: virPCIDeviceInit (src/util/virpci.c), for which an absent and an unreadable capability are alike
    """
    return True if find_capability(config, pciregs.CAP_ID_EXPRESS) else None


def express_type(config: bytes) -> int | None:
    """Return the PCI Express device/port type, None if the function is not PCIe or its type is unknown."""
    offset = find_capability(config, pciregs.CAP_ID_EXPRESS)
    flags = word(config, offset + pciregs.EXP_FLAGS) if offset else None
    if flags is None:
        return None
    return flags >> pciregs.EXP_FLAGS_TYPE_SHIFT & pciregs.EXP_FLAGS_TYPE_MASK


def acs_state(config: bytes) -> str | None:
    """
    Return the ACS state of a port: ``on`` (isolates the functions below it), ``off``, ``absent``; None if unknown.

    Source: PCIE50 7.7.8.3, the control register
    """
    offset = find_extended_capability(config, pciregs.EXT_CAP_ID_ACS)
    if not offset:
        return None if offset is None else "absent"
    control = word(config, offset + pciregs.ACS_CTRL)
    return None if control is None else "on" if control else "off"


def has_flr(config: bytes) -> bool | None:
    """
    Tell whether the function supports function level reset, by its PCIe or its Advanced Features capability.

    A VF always supports it, whatever it advertises; only the caller knows whether the function is a VF.
    """
    express = find_capability(config, pciregs.CAP_ID_EXPRESS)
    if express:
        devcap = dword(config, express + pciregs.EXP_DEVCAP)
        if devcap is None or devcap & pciregs.EXP_DEVCAP_FLR:
            return None if devcap is None else True
    advanced = find_capability(config, pciregs.CAP_ID_AF)
    if advanced:
        features = byte(config, advanced + pciregs.AF_CAP)
        return None if features is None else bool(features & pciregs.AF_CAP_FLR)
    return None if express is None or advanced is None else False


def has_pm_reset(config: bytes) -> bool | None:
    """
    Tell whether a transition to D3hot and back resets the function.

    Source: PCIPM12 3.2.4, No_Soft_Reset clear.
    """
    offset = find_capability(config, pciregs.CAP_ID_PM)
    if not offset:
        return None if offset is None else False
    control = word(config, offset + pciregs.PM_CTRL)
    return None if control is None else not control & pciregs.PM_CTRL_NO_SOFT_RESET
