# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Matching, binding and unbinding of functions and drivers, as in the kernel's driver core.

A bind and an unbind have two halves, because the ``driver`` link changes between them: it appears before the probe
runs, and it disappears before the driver's remove runs.

Source: drivers/base/dd.c, drivers/base/bus.c, drivers/pci/pci-driver.c (Linux 6.1)
"""

from __future__ import annotations

import contextlib
import errno
import os
import re

from pyhostdev.testing import vfio
from pyhostdev.testing.answers import Blocked, Refusal
from pyhostdev.testing.driverspec import VMD
from pyhostdev.testing.iommu import IOMMUGroups
from pyhostdev.testing.kernelstate import PARKED, Pending
from pyhostdev.testing.release import has_change
from pyhostdev.testing.simdevice import SimDevice, find_device, list_devices
from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.testing.driverspec import DriverSpec
    from pyhostdev.testing.kernelstate import KernelState
    from pyhostdev.testing.tree import Tree

_DEVICE_NUMBER = rb"[0-9]{1,10}:[0-9]{1,10}\n?"
_DRIVER_CLASSES = ("net", "block")  # directories that a driver creates below its device and removes again
_EXPRESS_PORTS = (0x4, 0x5, 0x6, pciregs.EXP_TYPE_RC_EVENT_COLLECTOR)  # PCIE50 7.5.3.2


def id_matches(pattern: str, device: SimDevice) -> bool:
    """True if an entry of an id table matches the function."""
    first, second = pattern.split(":")
    if first == "class":
        return f"{device.number('class') & 0xFFFFFF:06x}".startswith(second)
    wanted = ((first, device.number("vendor")), (second, device.number("device")))
    return all(text in ("*", f"{number & 0xFFFF:04x}") for text, number in wanted)


class DriverCore:
    """The drivers and functions of the PCI bus, and the pending writes between them."""

    def __init__(self, tree: Tree, state: KernelState, save: Callable[[], None] = lambda: None) -> None:
        self.tree = tree
        self.root = tree.root
        self.state = state
        self.groups = IOMMUGroups(tree, state)
        self.save = save
        self.ours = True  # the current writer is a SysfsWriter
        self.events: list[tuple[str, str]] = []
        self.block_next = False  # the next probe or remove hangs
        self.waiting_for: str | None = None  # the device whose lock a write waits for

    # Matching

    def matches(self, driver: DriverSpec, device: SimDevice) -> bool:
        """
        True if the driver matches the function; an override alone decides.

        Source: pci_match_device (drivers/pci/pci-driver.c)
        """
        override = device.override
        if override is not None:
            return override == driver.name
        ids = list(self.state.dynamic.get(driver.name, ()))
        if driver.kind != "vfio":  # the ids of vfio drivers only serve the aliases of their modules
            ids += driver.ids
        return any(id_matches(pattern, device) for pattern in ids)

    def can_probe(self, device: SimDevice) -> bool:
        """
        True unless the PF keeps drivers from its VFs; an override lifts this restriction.

        Source: pci_device_can_probe (drivers/pci/pci-driver.c)
        """
        if device.physfn is None or device.override is not None:
            return True
        parent = SimDevice(self.tree, device.physfn)
        return parent.read("sriov_drivers_autoprobe") != b"0\n"

    def registered(self) -> list[DriverSpec]:
        """Return the drivers with a directory, in the order of their registration."""
        names = self.tree.list_dir(self.root.pci_drivers)
        known = [name for name in self.state.drivers if name in names]
        return [self.state.driver(name) for name in known + [n for n in names if n not in known]]

    # Pending

    def is_in_flight(self, device: str) -> bool:
        """True while a write of a SysfsWriter to the device has not returned."""
        return any(entry.device == device and entry.ours for entry in self.state.pending)

    def lock_holder(self, device: SimDevice) -> Pending | None:
        """Return the write that holds the device's lock, if one is stuck inside its driver."""
        for entry in self.state.pending:
            if entry.device == str(device.address) and entry.stage in ("probe", "remove"):
                return entry
        return None

    def wait_for_lock(self, device: SimDevice) -> None:
        """
        Take the device's lock.

        Raises:
            Blocked: a write that is stuck in the device's driver holds it.
        """
        if self.lock_holder(device) is not None:
            self.waiting_for = str(device.address)
            raise Blocked

    def _start(self, stage: str, device: SimDevice, driver: str) -> Pending:
        entry = Pending(str(device.address), "", "", stage, driver, "running", lands=True, ours=self.ours)
        self.state.pending.append(entry)
        if not self.state.described:
            self.state.moved.setdefault(entry.device, device.driver)
        self.save()
        return entry

    def _block(self, entry: Pending, reason: str) -> None:
        """Leave the entry on the list and stop waiting for it."""
        self.block_next = False
        where = self.state.pending.index(entry)
        self.state.pending[where] = entry._replace(reason=reason)
        raise Blocked

    # Binding

    def bind_as_described(self, device: SimDevice, driver: str) -> None:
        """Bind a function to a driver as described for the host; no probe runs."""
        self._put_links(device, driver)
        self._bound(device, driver)

    def attach(self, driver: DriverSpec, device: SimDevice) -> None:
        """
        Bind a function to a driver.

        Raises:
            Refusal: with the errno of the step that failed.
            Blocked: the probe has not returned.

        Source: really_probe (drivers/base/dd.c)
        """
        self.groups.claim_for_host(device, driver.name)
        if not self.can_probe(device):
            raise Refusal(errno.ENODEV)
        entry = self._start("probe", device, driver.name)
        self._put_links(device, driver.name)
        if driver.probe == "hang" or self.block_next:
            self._block(entry, "hang")
        self.state.pending.remove(entry)
        self._end_probe(device, driver.name)

    def detach(self, device: SimDevice) -> None:
        """
        Unbind a function from its driver.

        Raises:
            Blocked: the driver's remove has not returned.

        Source: __device_release_driver (drivers/base/dd.c)
        """
        driver = device.driver
        assert driver is not None
        entry = self._start("remove", device, driver)
        self._drop_links(device, driver)
        spec = self.state.driver(driver)
        if spec.remove == "hang" or self.block_next:
            self._block(entry, "hang")
        if spec.kind == "vfio" and self.groups.is_device_held(device):
            if self.tree.exists(self.root.dev_iommu):
                vfio.withdraw_device(self.groups, device)
            self._block(entry, "held")
        self.state.pending.remove(entry)
        self._removed(device, driver)

    def finish(self, entry: Pending) -> None:
        """
        Run the second half of a bind or an unbind that was left pending; its first half may have been interrupted.

        Raises:
            Refusal: the probe failed; the link is removed again.
        """
        self.state.pending.remove(entry)
        device = find_device(self.tree, entry.device)
        if device is None:
            return
        if entry.stage == "remove":
            self._drop_links(device, entry.driver)
            self._removed(device, entry.driver)
            return
        self._put_links(device, entry.driver)
        self._end_probe(device, entry.driver)

    def _end_probe(self, device: SimDevice, driver: str) -> None:
        failure = self._probe(self.state.driver(driver), device)
        if failure:
            self._drop_links(device, driver)
            self._moved(device, None)
            raise Refusal(failure)
        self._bound(device, driver)

    def force_off(self, device: SimDevice, driver: str) -> None:
        """Unbind a removed function, even if it is held open."""
        self._drop_links(device, driver)
        self._removed(device, driver)

    def _put_links(self, device: SimDevice, driver: str) -> None:
        directory = self.root.pci_driver(driver)
        self.tree.put_link(os.path.join(directory, str(device.address)), device.path)
        self.tree.put_link(device.join("driver"), directory)

    def _drop_links(self, device: SimDevice, driver: str) -> None:
        self.tree.drop_file(device.join("driver"))
        self.tree.drop_file(os.path.join(self.root.pci_driver(driver), str(device.address)))

    def _probe(self, driver: DriverSpec, device: SimDevice) -> int:
        """Return the errno with which the driver refuses the function, 0 if it accepts it."""
        if driver.probe == "defer":
            return errno.EAGAIN
        if driver.probe not in (None, "hang"):
            return int(getattr(errno, driver.probe or ""))
        if driver.name == "pcieport":
            return 0 if _is_express_port(device) else errno.ENODEV
        if driver.name == "nvme" and device.is_offline_controller and has_change(self.tree, "nvme-enables-in-probe"):
            return errno.ENODEV
        return vfio.probe(device) if driver.kind == "vfio" else 0

    def _bound(self, device: SimDevice, driver: str) -> None:
        kind = self.state.driver(driver).kind
        if kind == "vfio":
            vfio.add_device(self.groups, device)
        device.update("enable", b"0\n" if kind == "vfio" else b"1\n")
        device.update("power_state", b"D3hot\n" if kind == "vfio" else b"D0\n")
        self._unpark(device, driver)
        if driver == VMD:
            from pyhostdev.testing import hotplug

            hotplug.bring_back_domain(self, device)
        if self.state.uevent_driver:
            lines = _uevent_without_driver(device)
            device.update("uevent", b"DRIVER=" + os.fsencode(driver) + b"\n" + lines)
        self._moved(device, driver)
        self.tell("bind", device)

    def _removed(self, device: SimDevice, driver: str) -> None:
        if self.state.driver(driver).kind == "vfio":
            vfio.remove_device(self.groups, device)
        device.update("enable", b"0\n")
        device.update("power_state", b"unknown\n")
        self._park(device, driver)
        if driver == VMD:
            from pyhostdev.testing import hotplug

            hotplug.remove_domain(self, device)
        if self.state.uevent_driver:
            device.update("uevent", _uevent_without_driver(device))
        self._moved(device, None)
        self.tell("unbind", device)

    def tell(self, action: str, device: SimDevice) -> None:
        """
        Send an event; the event of a bind or an unbind comes last of all.

        Source: driver_bound, __device_release_driver (drivers/base/dd.c)
        """
        self.events.append((action, str(device.address)))

    def _moved(self, device: SimDevice, driver: str | None) -> None:
        """Forget the function's original driver once it is bound to that driver again."""
        name = str(device.address)
        if name in self.state.moved and self.state.moved[name] == driver:
            del self.state.moved[name]

    def _parking_place(self, device: SimDevice, driver: str) -> str:
        return self.root.join(PARKED, f"{device.address}.{driver}")

    def _class_links(self, device: SimDevice, name: str) -> Iterator[tuple[str, str]]:
        """Yield the links to a driver's directories, with their targets; a sparse tree has none."""
        for entry in self.tree.list_dir(device.join(name)):
            target = device.join(name, entry)
            links = [self.root.join("sys/class", name, entry)]
            number = device.read(f"{name}/{entry}/dev")
            if number is not None and re.fullmatch(_DEVICE_NUMBER, number):  # other content does not come from a kernel
                links.append(self.root.join("sys/dev", name, number.decode().strip()))
            yield from ((link, target) for link in links if self.tree.is_directory(os.path.dirname(link)))

    def _park(self, device: SimDevice, driver: str) -> None:
        """Move away the directories that the driver created below its device, until it is bound again."""
        for name in _DRIVER_CLASSES:
            if self.tree.is_directory(device.join(name)):
                for link, _ in self._class_links(device, name):
                    self.tree.drop_file(link)
                place = self._parking_place(device, driver)
                self.tree.make_dirs(place)
                self.tree.move(device.join(name), os.path.join(place, name))

    def _unpark(self, device: SimDevice, driver: str) -> None:
        place = self._parking_place(device, driver)
        for name in self.tree.list_dir(place):
            self.tree.move(os.path.join(place, name), device.join(name))
        for name in _DRIVER_CLASSES:
            for link, target in self._class_links(device, name):
                self.tree.put_link(link, target)
        if self.tree.drop_empty(place):
            self.tree.drop_empty(os.path.dirname(place))  # may still hold parked directories of others

    # Whole-bus events

    def load_module(self, name: str) -> None:
        """
        Register the drivers of a module and offer them all unbound functions.

        Raises:
            Refusal: ENOENT if no driver belongs to that module.
        """
        from pyhostdev.testing.driverfiles import (  # most modules are loaded already
            IOMMUFD,
            has_iommufd_module,
            put_driver,
            put_iommufd,
        )

        module = name.replace("-", "_")
        if module == IOMMUFD and has_iommufd_module(self.tree):
            put_iommufd(self.tree)
            return
        found = [spec for spec in self.state.drivers.values() if spec.module == module]
        found = [spec for spec in found if spec.availability != "missing"]
        if not found and not self.tree.is_directory(self.root.module(name)):
            raise Refusal(errno.ENOENT)
        for spec in found:
            if not self.tree.is_directory(self.root.pci_driver(spec.name)):
                put_driver(self.tree, spec)
                self.attach_all(spec)

    def attach_any(self, device: SimDevice) -> None:
        """
        Offer a function to the drivers in turn; after a failed probe, the next driver is tried.

        Raises:
            Refusal: the group's DMA is not available to the host.
            Blocked: a probe has not returned.

        Source: __device_attach (drivers/base/dd.c)
        """
        for driver in self.registered():
            if self.matches(driver, device):
                self.groups.claim_for_host(device, driver.name)
                if self._offer(driver, device):
                    return

    def attach_new(self, device: SimDevice) -> None:
        """
        Offer a new function to the drivers; a failure is not reported.

        Raises:
            Blocked: a probe has not returned.

        Source: pci_bus_add_device (drivers/pci/bus.c)
        """
        with contextlib.suppress(Refusal):
            self.attach_any(device)

    def attach_all(self, driver: DriverSpec) -> None:
        """
        Offer all unbound functions to a new driver, or to a driver with a new id.

        Source: driver_attach (drivers/base/bus.c)
        """
        for device in list_devices(self.tree):
            if device.driver is None and self.matches(driver, device):
                self._offer(driver, device)

    def _offer(self, driver: DriverSpec, device: SimDevice) -> bool:
        try:
            self.attach(driver, device)
        except Refusal:
            return False
        return True


def _is_express_port(device: SimDevice) -> bool:
    """
    True for the bridges that the port driver accepts; in a tree without config space, every bridge is a port.

    Source: pcie_portdrv_probe (drivers/pci/pcie/portdrv_pci.c), Linux 6.1
    """
    config = device.read("config")
    return config is None or pciconfig.express_type(config) in _EXPRESS_PORTS


def _uevent_without_driver(device: SimDevice) -> bytes:
    lines = (device.read("uevent") or b"").splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b"DRIVER="))
