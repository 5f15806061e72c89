# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Selectors: the ways in which a user can name a function: address, network interface, disk, or VF number of a PF.
"""

from __future__ import annotations

import re

from pyhostdev.errors import DeviceMissingError, InvalidAddressError
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple
from pyhostdev.util.virfile import read_link_name

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot

_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_NAME = r"[^/\s\0]{1,255}"
_VF = r"(.+)/vf([0-9]{1,5})"
FORMS = "0000:01:00.0, 01:00.0, pci_0000_01_00_0, net:eno1, block:nvme0n1 or pf:eno1/vf3"


class Selector(NamedTuple):
    """
    A parsed selector: an address, or a kind and a name.

    ``net`` and ``block`` name an interface and a disk; ``pf`` names a PF, by address or interface, with ``vf``.
    """

    text: str
    address: PCIDeviceAddress | None = None
    kind: str = ""
    name: str = ""
    vf: int = 0

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Selector:
        """
        Read a selector.

        Raises:
            InvalidAddressError: the text has none of the forms, or a part of an address is out of range.
        """
        kind, colon, name = text.partition(":")
        if kind in ("net", "block") and colon and _is_name(name):
            return cls(text, kind=kind, name=name)
        vf = re.fullmatch(_VF, name) if kind == "pf" else None
        if vf is not None:
            cls._parse_pf(vf[1])
            return cls(text, kind=kind, name=vf[1], vf=int(vf[2]))
        try:
            return cls(text, PCIDeviceAddress.parse(text))
        except InvalidAddressError as err:
            if "is not a PCI address" not in str(err):
                raise
            raise InvalidAddressError(f"'{text}' is not a PCI address or another selector: {FORMS}") from None

    @staticmethod
    def _parse_pf(text: str) -> PCIDeviceAddress | str:
        """Return the address, else the interface, that names a PF."""
        try:
            return PCIDeviceAddress.parse(text)
        except InvalidAddressError:
            if not _is_name(text):
                raise
            return text

    def resolve(self, root: HostRoot) -> PCIDeviceAddress:
        """
        Return the address of the function; an address is returned as it is, whether the host has it or not.

        Raises:
            DeviceMissingError: the host has no such interface, disk or VF, or it is not on a PCI function.
            InvalidAddressError: the name matches several functions.
            SysfsError: the host cannot be read.
        """
        if self.address is not None:
            return self.address
        from pyhostdev.util.hostusage import (  # rarely needed: most selectors are addresses
            block_device_paths,
            net_device_paths,
        )

        if self.kind == "net":
            return _only(self.text, net_device_paths(root, self.name))
        if self.kind == "block":
            return _only(self.text, block_device_paths(root, self.name))
        return self._resolve_vf(root)

    def _resolve_vf(self, root: HostRoot) -> PCIDeviceAddress:
        from pyhostdev.util.hostusage import net_device_paths

        found = self._parse_pf(self.name)
        if isinstance(found, str):
            found = _only(f"net:{found}", net_device_paths(root, found))
        name = read_link_name(root, f"{root.pci_device(found)}/virtfn{self.vf}")
        if name is None:
            raise _missing(self.text, f"device {found} has no VF {self.vf}")
        return PCIDeviceAddress.parse(name)


def _is_name(text: str) -> bool:
    return re.fullmatch(_NAME, text) is not None and text not in (".", "..")


def _only(text: str, paths: list[str]) -> PCIDeviceAddress:
    """Return the one function that all devices at these sysfs paths belong to: the last function of each path."""
    if not paths:
        raise _missing(text, "the host has no such device")
    found = {parts[-1] for parts in (re.findall(_ADDRESS, path) for path in paths) if parts}
    if not found:
        raise _missing(text, "it is not on a PCI function")
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise InvalidAddressError(f"'{text}' matches several functions: {names}", reason="several-functions")
    return PCIDeviceAddress.parse(found.pop())


def _missing(text: str, why: str) -> DeviceMissingError:
    return DeviceMissingError(f"'{text}' names no function: {why}", reason="device-missing")
