# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The host drivers of USB devices that a guest gets.

QEMU unbinds the driver of each interface, and binds it again when it ends by itself. A QEMU that is killed leaves the
interfaces without a driver, so they are recorded first and bound again after its end.
"""

from __future__ import annotations

import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from pyhostdev.hypervisor.netdev_journal import NetdevJournal
from pyhostdev.util.deadline import within
from pyhostdev.util.virfile import read_link_name
from pyhostdev.util.virusb import bind_interface, find_usb_name, interface_drivers, read_usb_numbers

if TYPE_CHECKING:
    from contextlib import ExitStack

BIND_TIMEOUT_S = 10.0
USBFS = "usbfs"  # the driver of interfaces that a program has through the device's node
_NAME = re.compile(r"usb[0-9]{1,4}|[0-9]{1,4}-[0-9.]{1,64}")


class USBJournal(NetdevJournal):
    """The USB devices of guests by their name in sysfs; ``drivers`` are those of their interfaces."""

    suffix = ".usb"
    fields = frozenset({"bus", "device", "drivers"})
    directory = "usb"
    subject = "USB device"

    def give(self, owner: str, bus: int, device: int, undo: ExitStack) -> int | None:
        """
        Record the drivers of a device; ``undo`` binds them again. Return the record's lock, None for an absent device.

        Raises:
            OperationError: another guest has the device, or a dead one left it without a driver that can be bound.
            SysfsError: the record cannot be written, or the device cannot be read.
        """
        root = self.host.root
        name = find_usb_name(root, bus, device)
        if name is None:
            return None
        self.undo_leftover(name)
        drivers = {place: driver for place, driver in interface_drivers(root, name).items() if driver != USBFS}
        facts: dict[str, Any] = {"bus": bus, "device": device, "drivers": drivers}
        lock = self.begin(name, owner, **facts)
        undo.callback(self.finish, name, lock, partial(self.undo, name, facts))
        return lock

    def undo(self, name: str, facts: dict[str, Any]) -> str:
        """Bind the interfaces that have no driver now, if this is still the same device."""
        drivers = facts["drivers"]
        if not isinstance(drivers, dict):
            raise TypeError("drivers has another type")
        if _NAME.fullmatch(name) is None or not all(_is_interface(name, entry) for entry in drivers.items()):
            raise ValueError(name)
        root = self.host.root
        if read_usb_numbers(root, name) != (facts["bus"], facts["device"]):
            return "the device is gone"
        for interface, driver in drivers.items():
            if read_link_name(root, os.path.join(root.usb_devices, interface, "driver")) is None:
                what = f"bind the USB interface {interface}"
                within(BIND_TIMEOUT_S, what, partial(bind_interface, root, interface, driver))
        return "its interfaces are bound to their drivers"


def _is_interface(name: str, entry: tuple[Any, Any]) -> bool:
    """Tell whether a recorded interface is one of this device, with a text as its driver."""
    interface, driver = entry
    return re.fullmatch(rf"{re.escape(name)}:[0-9.]{{1,16}}", interface) is not None and isinstance(driver, str)
