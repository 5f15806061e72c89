# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The address of a PCI function: domain, bus, slot, function.

Mirrors: virPCIDeviceAddress (src/util/virpci.h)
"""

from __future__ import annotations

import re
from functools import lru_cache

from pyhostdev.errors import InvalidAddressError
from pyhostdev.util.typed import NamedTuple

DOMAIN_MAX = 0xFFFFFFFF  # 32 bits
FIRMWARE_DOMAIN_MAX = 0xFFFF  # higher domains are created by a driver (vmd_find_free_domain, Linux)
BUS_MAX = 0xFF
SLOT_MAX = 0x1F
FUNCTION_MAX = 7

_COLONS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.IGNORECASE | re.ASCII)
_NODEDEV = r"(?ai)pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])"


class PCIDeviceAddress(NamedTuple):
    """
    One PCI function of a host or a guest; ordered and hashable; ``parse`` accepts its ``str()``.

    Mirrors: virPCIDeviceAddress (src/util/virpci.h)
    """

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PCIDeviceAddress:
        """
        Parse ``0000:01:00.0``, ``01:00.0`` or ``pci_0000_01_00_0``; domains have 4 to 8 digits.

        Raises:
            InvalidAddressError: the text has none of these forms, or a part is out of range.
        """
        return _parse(text)

    @classmethod
    def of(cls, address: PCIDeviceAddress | str) -> PCIDeviceAddress:
        """
        Return an address given as an address or as text.

        Raises:
            InvalidAddressError: the text is not an address.
        """
        return cls.parse(address) if isinstance(address, str) else address

    def check(self) -> None:
        """
        Refuse an address with a part out of range.

        Raises:
            InvalidAddressError: names the part and its limit.

        Mirrors: virPCIDeviceAddressIsValid (src/util/virpci.c), which also refuses the empty address
        """
        domain, bus, slot, function = self
        if (
            0 <= domain <= DOMAIN_MAX
            and 0 <= bus <= BUS_MAX
            and 0 <= slot <= SLOT_MAX
            and 0 <= function <= FUNCTION_MAX
        ):
            return  # nearly always
        limits = (DOMAIN_MAX, BUS_MAX, SLOT_MAX, FUNCTION_MAX)
        for name, value, limit in zip(self._fields, self, limits, strict=True):
            if not 0 <= value <= limit:
                raise InvalidAddressError(f"PCI address {name} {value:#x} is not between 0 and {limit:#x}")

    @property
    def is_empty(self) -> bool:
        """
        True when domain, bus and slot are all 0; the function does not count.

        Mirrors: virPCIDeviceAddressIsEmpty (src/util/virpci.c)
        """
        return not (self.domain or self.bus or self.slot)

    @property
    def devfn(self) -> int:
        """Slot and function as the kernel's 8-bit number; with ARI this is the function number."""
        return self.slot << 3 | self.function

    @property
    def nodedev_name(self) -> str:
        """The name of the node device, ``pci_0000_01_00_0``."""
        return f"pci_{self.domain:04x}_{self.bus:02x}_{self.slot:02x}_{self.function:x}"

    def with_function(self, function: int) -> PCIDeviceAddress:
        """Return the address of another function in the same slot."""
        return self._replace(function=function)

    def __str__(self) -> str:
        return _text(self)


@lru_cache(maxsize=1024)  # the same names are read in many places
def _parse(text: str) -> PCIDeviceAddress:
    match = _COLONS.fullmatch(text) or re.fullmatch(_NODEDEV, text)
    if match is None:
        raise InvalidAddressError(f"'{text}' is not a PCI address like 0000:01:00.0")
    address = PCIDeviceAddress(*(int(part or "0", 16) for part in match.groups()))
    address.check()
    return address


@lru_cache(maxsize=1024)  # a plan needs the text of each of its functions several times
def _text(address: PCIDeviceAddress) -> str:
    domain, bus, slot, function = address
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def key_of(address: PCIDeviceAddress) -> int:
    """Return the number by which the scanner identifies and sorts a function."""
    domain, bus, slot, function = address
    return domain << 16 | bus << 8 | slot << 3 | function


def address_of(key: int) -> PCIDeviceAddress:
    """Return the address of the function with a scanner's number."""
    return PCIDeviceAddress(key >> 16, key >> 8 & 0xFF, key >> 3 & 0x1F, key & 7)
