# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The identity of a PCI function, independent of its address: bus numbers change when another card is added.

IDs, revision and the path below the root bus identify a kind of card in a slot. A serial number or a permanent MAC
address proves that it is the same card.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyhostdev.errors import SysfsError
from pyhostdev.util import pciconfig, pciregs, virpci
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import list_names, read_attribute, read_number

if TYPE_CHECKING:
    from collections.abc import Iterator

NET_ADDR_PERM = 0  # include/uapi/linux/netdevice.h: the address comes from the device itself
_DENIED = (errno.EACCES, errno.EPERM)


class DeviceIdentity(NamedTuple):
    """
    The identity of a function; None stands for a fact that the device does not have or that could not be read.

    ``path`` is the root bus and the slots of the bridges above, without bus numbers. A VF has ``vf``, its number, and
    ``pf``, its physical function, instead of a path. ``unseen`` names facts that this reader could not read.
    """

    vendor: int | None = None
    device: int | None = None
    subsystem_vendor: int | None = None
    subsystem_device: int | None = None
    class_: int | None = None
    revision: int | None = None
    function: int | None = None
    path: str | None = None
    serial: str | None = None
    mac: str | None = None
    vf: int | None = None
    pf: DeviceIdentity | None = None
    unseen: tuple[str, ...] = ()


class Difference(NamedTuple):
    """One fact that differs from the pinned one."""

    fact: str
    pinned: str
    now: str

    def __str__(self) -> str:
        return f"{self.fact} is {self.now}, not {self.pinned}"


_NUMBERS = (
    ("vendor", "vendor", 4),
    ("device", "device", 4),
    ("subsystem_vendor", "subsystem vendor", 4),
    ("subsystem_device", "subsystem", 4),
    ("class_", "class", 6),
    ("revision", "revision", 2),
)
_PROOFS = (("serial", "serial number"), ("mac", "MAC address"))


def read_identity(dev: virpci.PCIDevice) -> DeviceIdentity:
    """
    Return the identity of a function, as far as this user may read it.

    Raises:
        SysfsError: an attribute exists but cannot be read, for another reason than a lack of privileges.
    """
    pf = None if dev.physfn is None else virpci.read_pci_device(dev.root, dev.physfn)
    return _read_identity(dev, pf)


def _read_identity(dev: virpci.PCIDevice, pf: virpci.PCIDevice | None) -> DeviceIdentity:
    """Return the identity of a function; a PF has no PF, whatever a directory in the place of / says."""
    unseen: list[str] = []
    serial, mac = _read_serial(dev, unseen), _read_mac(dev, unseen)
    return DeviceIdentity(
        vendor=dev.vendor,
        device=dev.device,
        subsystem_vendor=dev.subsystem_vendor,
        subsystem_device=dev.subsystem_device,
        class_=dev.class_,
        revision=dev.revision,
        function=None if dev.is_virtual_function else dev.address.function,
        path=None if dev.is_virtual_function else device_path(dev),
        serial=serial,
        mac=mac,
        vf=None if pf is None else _vf_number(pf, dev),
        pf=None if pf is None else _read_identity(pf, None),
        unseen=tuple(unseen),
    )


def device_path(dev: virpci.PCIDevice) -> str:
    """Return the root bus, then slot and function of each bridge above and of the function itself."""
    steps = dev.read_path()
    first = steps[0]
    return "/".join([f"{first.domain:04x}:{first.bus:02x}", *(f"{a.slot:02x}.{a.function:x}" for a in steps)])


def _vf_number(pf: virpci.PCIDevice, dev: virpci.PCIDevice) -> int | None:
    vfs = pf.read_virtual_functions()
    return vfs.index(dev.address) if dev.address in vfs else None


def _read_serial(dev: virpci.PCIDevice, unseen: list[str]) -> str | None:
    """
    Return the serial number as the kernel prints it, from its attribute or from configuration space.

    Source: PCIE50 7.9.3; ``serial_number`` since Linux 6.18, for root only
    """
    try:
        text = read_attribute(dev.root, dev.path("serial_number"))
    except SysfsError as err:
        if err.errno not in _DENIED:
            raise
        unseen.append("serial")
        return None
    if text is not None:
        return text.strip() or None
    config = dev.read_config(pciregs.CONFIG_SIZE_EXPRESS)
    offset = pciconfig.find_extended_capability(config, pciregs.EXT_CAP_ID_DSN)
    if offset is None and dev.is_pci_express():
        unseen.append("serial")
    return pciconfig.serial_number(config, offset) if offset else None


def _read_mac(dev: virpci.PCIDevice, unseen: list[str]) -> str | None:
    """Return the permanent MAC addresses of the network interfaces; they exist while a host driver is bound."""
    if dev.class_ is None or dev.class_ >> 16 != pciregs.CLASS_BASE_NETWORK:
        return None
    names = sorted(list_names(dev.root, dev.path("net")))
    if not names:
        unseen.append("mac")
    found = []
    for name in names:
        address = read_attribute(dev.root, dev.path(f"net/{name}/address"))
        if address and read_number(dev.root, dev.path(f"net/{name}/addr_assign_type")) == NET_ADDR_PERM:
            found.append(address.strip().lower())
    return " ".join(sorted(found)) or None


def differences(pinned: DeviceIdentity, now: DeviceIdentity) -> list[Difference]:
    """
    Return the differences between a function and the pinned one; facts that were not pinned or are unseen are skipped.

    The path is also skipped if the serial number or the MAC address proves that it is the same card.
    """
    found = list(_number_differences(pinned, now))
    for name, words in _PROOFS:
        before, after = getattr(pinned, name), getattr(now, name)
        if before is not None and before != after and name not in now.unseen:
            found.append(Difference(words, before, after or "unknown"))
    if pinned.function is not None and pinned.function != now.function:
        found.append(Difference("function number", str(pinned.function), str(now.function)))
    if pinned.path is not None and pinned.path != now.path and not is_proven(pinned, now):
        found.append(Difference("place", pinned.path, now.path or "unknown"))
    return found + _vf_differences(pinned, now)


def _number_differences(pinned: DeviceIdentity, now: DeviceIdentity) -> Iterator[Difference]:
    for name, words, digits in _NUMBERS:
        before, after = getattr(pinned, name), getattr(now, name)
        if before is not None and before != after:
            text = "unknown" if after is None else f"0x{after:0{digits}x}"
            yield Difference(words, f"0x{before:0{digits}x}", text)


def _vf_differences(pinned: DeviceIdentity, now: DeviceIdentity) -> list[Difference]:
    found = []
    if pinned.vf is not None and pinned.vf != now.vf:
        found.append(Difference("VF number", str(pinned.vf), "unknown" if now.vf is None else str(now.vf)))
    if pinned.pf is not None:
        parts = differences(pinned.pf, now.pf or DeviceIdentity())
        found += [part._replace(fact=f"{part.fact} of the PF") for part in parts]
    return found


def is_proven(pinned: DeviceIdentity, now: DeviceIdentity) -> bool:
    """Tell whether a serial number or a MAC address proves that both identities belong to the same card."""
    pairs = ((getattr(pinned, name), getattr(now, name)) for name, _ in _PROOFS)
    return any(before is not None and before == after for before, after in pairs)


def unchecked(pinned: DeviceIdentity, now: DeviceIdentity) -> list[str]:
    """Return the pinned facts that cannot be compared because they cannot be read now."""
    found = [words for name, words in _PROOFS if getattr(pinned, name) is not None and name in now.unseen]
    if pinned.pf is not None and now.pf is not None:
        found += [f"{words} of the PF" for words in unchecked(pinned.pf, now.pf)]
    return found
