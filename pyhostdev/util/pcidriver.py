# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Moving a PCI function between drivers: every write goes through a SysfsWriter, every result is verified.

The order is override, unbind, explicit bind. So no other driver can bind to the function in between, and the error
comes from the intended driver. ``drivers_probe`` reports success even if nothing was bound, so it is not used.

Mirrors: virPCIDeviceDetach, virPCIDeviceReattach (src/util/virpci.c)
"""

from __future__ import annotations

import os

from pyhostdev.errors import DeviceMissingError, InDoubtError, OperationError, SysfsError
from pyhostdev.util.hostroot import HostRoot, check_driver_name
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple
from pyhostdev.util.virfile import parse_number, read_attributes, read_link_name, read_status

if TYPE_CHECKING:
    from pyhostdev.util.sysfs_writer import SysfsWriter

_IDENTITY = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class")  # of a fingerprint
VFIO_PCI = "vfio-pci"
OVERRIDE_CLEAR = b"\n"  # an empty write never reaches the kernel's handler


class Binding(NamedTuple):
    """
    The driver and the override of a function, as the kernel shows them, and the identity of the function.

    ``incarnation`` is the inode of its sysfs directory: a device plugged in again at the same address has another one.
    """

    driver: str | None
    override: str | None
    incarnation: int
    fingerprint: str


def read_incarnation(root: HostRoot, address: PCIDeviceAddress) -> int | None:
    """
    Return the inode of the function at an address, None if the address is empty; never waits for a write in flight.

    Raises:
        SysfsError: its directory cannot be examined.
    """
    try:
        status = read_status(root, root.pci_device(address))
    except SysfsError as err:
        raise SysfsError(err.errno or 0, root.pci_device(address), "look at a device", address=address) from err
    return None if status is None else status.st_ino


def read_binding(root: HostRoot, address: PCIDeviceAddress) -> Binding:
    """
    Read the current binding of a function; may wait for a write in flight, because reading the override may.

    Raises:
        DeviceMissingError: the function does not exist.
        SysfsError: an attribute cannot be read.
    """
    top = root.pci_device(address)
    incarnation = read_incarnation(root, address)
    if incarnation is None:
        raise DeviceMissingError(f"Device {address} is not on this host", reason="device-missing", address=address)
    paths = [f"{top}/{name}" for name in ("driver_override", *_IDENTITY)]
    override, *texts = read_attributes(root, paths)
    return Binding(
        driver=read_link_name(root, f"{top}/driver"),
        override=None if override in (None, "", "(null)") else override,
        incarnation=incarnation,
        fingerprint=":".join(map(_shown_number, texts, paths[1:])),
    )


def _shown_number(text: str | None, path: str) -> str:
    return "-" if text is None else f"{parse_number(text, path):04x}"


class DriverMover:
    """Executes the writes that move one host's functions between drivers."""

    def __init__(self, root: HostRoot, writer: SysfsWriter) -> None:
        self.root = root
        self.writer = writer

    def read_binding(self, address: PCIDeviceAddress) -> Binding:
        """
        Read the current binding of a function; refuse while a write is in flight, as the state is then undefined.

        Raises:
            InDoubtError: a write is in flight; up to Linux 6.1, reading the override would hang with it.
            DeviceMissingError, SysfsError: as the module's ``read_binding``.
        """
        if self.writer.is_in_flight(address):
            raise InDoubtError(
                f"Device {address} is in doubt: a write to it has not returned from the kernel",
                reason="in-doubt",
                address=address,
            )
        return read_binding(self.root, address)

    def _write(self, address: PCIDeviceAddress, path: str, value: str) -> None:
        self.writer.write(path, value.encode(), device=address)

    def set_override(self, address: PCIDeviceAddress, driver: str | None) -> None:
        """
        Write ``driver_override``, or clear it with None.

        Raises:
            SysfsError, InDoubtError: from the write.
        """
        value = "\n" if driver is None else check_driver_name(driver)
        self._write(address, os.path.join(self.root.pci_device(address), "driver_override"), value)

    def unbind(self, address: PCIDeviceAddress) -> None:
        """
        Unbind the function from its driver; do nothing if it has no driver.

        Raises:
            SysfsError, InDoubtError: from the write.
        """
        driver = read_link_name(self.root, os.path.join(self.root.pci_device(address), "driver"))
        if driver is not None:
            self._write(address, os.path.join(self.root.pci_driver(driver), "unbind"), str(address))

    def bind(self, address: PCIDeviceAddress, driver: str) -> None:
        """
        Bind the function to a driver.

        Raises:
            SysfsError, InDoubtError: from the write; the errno comes from the driver.
        """
        self._write(address, os.path.join(self.root.pci_driver(driver), "bind"), str(address))

    def reset(self, address: PCIDeviceAddress) -> None:
        """
        Reset the function by the method that the kernel chooses.

        Raises:
            SysfsError, InDoubtError: from the write; ENOTTY if no method can reset the function alone.
        """
        self._write(address, os.path.join(self.root.pci_device(address), "reset"), "1")

    def detach(self, address: PCIDeviceAddress, before: Binding, stub: str) -> None:
        """
        Unbind the function from its host driver and bind it to a stub.

        Raises:
            SysfsError, InDoubtError: from a write.
            OperationError: all writes succeeded but the function is not bound to the stub.
        """
        self.set_override(address, stub)
        if before.driver != stub:
            self.unbind(address)
            self.bind(address, stub)
        self.verify(address, before, driver=stub, override=stub)

    def give_back(self, address: PCIDeviceAddress, original: Binding) -> None:
        """
        Restore the driver and the override of the function, by name.

        During the bind, the override names the driver. With another recorded override, or with no override while
        automatic probing of VFs is off, the kernel would refuse the bind.

        Raises:
            SysfsError, InDoubtError: from a write.
            OperationError: the function does not have its original state.
        """
        now = self.read_binding(address)
        if now.driver != original.driver:
            if original.driver is not None:
                self.set_override(address, original.driver)
            self.unbind(address)
            if original.driver is not None:
                self.bind(address, original.driver)
            now = self.read_binding(address)
        if now.override != original.override:
            self.set_override(address, original.override)
        self.verify(address, original, driver=original.driver, override=original.override)

    def verify(self, address: PCIDeviceAddress, before: Binding, *, driver: str | None, override: str | None) -> None:
        """
        Make sure that the function is still the same and has this driver and this override.

        Raises:
            OperationError, DeviceMissingError: the function was replaced, differs, or is gone.
        """
        now = self.read_binding(address)
        if (now.incarnation, now.fingerprint) != (before.incarnation, before.fingerprint):
            text = f"Device {address} was replaced by another one while it changed drivers"
            raise OperationError(text, reason="changed-device", address=address)
        if (now.driver, now.override) != (driver, override):
            text = f"Device {address} should have driver {_shown(driver)} and override {_shown(override)}"
            text += f", but has {_shown(now.driver)} and {_shown(now.override)}"
            raise OperationError(text, address=address)


def _shown(name: str | None) -> str:
    return "none" if name is None else f"'{name}'"
