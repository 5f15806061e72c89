# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The kernel's reaction to a written attribute: one ``store_NAME`` for each simulated attribute.

Source: drivers/base/bus.c, drivers/base/driver.c, drivers/pci/pci-driver.c, pci-sysfs.c, iov.c, pci.c (Linux 6.1);
the errnos were measured on 6.1.192 and 6.12.117
"""

from __future__ import annotations

import errno

from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.release import has_change
from pyhostdev.testing.simdevice import UNSET_OVERRIDE, SimDevice, find_device, list_devices
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.testing.drivercore import DriverCore
    from pyhostdev.testing.driverspec import DriverSpec

OVERRIDE_LIMIT = 4095  # a page less one byte, for pages of 4 KiB
_RESET_NAMES = ("device_specific", "acpi", "flr", "af_flr", "pm", "bus")


def c_string(value: bytes) -> bytes:
    """Return the bytes up to the first NUL, as C code sees them."""
    return value.split(b"\0", 1)[0]


def named_device(core: DriverCore, value: bytes) -> SimDevice | None:
    """Return the function whose complete name was written, with at most one trailing newline."""
    name = c_string(value).removesuffix(b"\n")
    return find_device(core.tree, name.decode("latin-1"))


def store_bind(core: DriverCore, driver: DriverSpec, value: bytes) -> None:
    """
    Bind a function to this driver, regardless of other matching drivers.

    Raises:
        Refusal: ENODEV if they do not match, EBUSY if the function is bound, else the errno of the probe.
    """
    device = named_device(core, value)
    if device is None or not core.matches(driver, device):
        raise Refusal(errno.ENODEV)
    core.wait_for_lock(device)
    if device.driver is not None:
        raise Refusal(errno.EBUSY)
    core.attach(driver, device)


def store_unbind(core: DriverCore, driver: DriverSpec, value: bytes) -> None:
    """
    Unbind a function from this driver.

    Raises:
        Refusal: ENODEV if the function is not bound to it.
    """
    device = named_device(core, value)
    holder = None if device is None else core.lock_holder(device)
    if device is not None and holder is not None and holder.driver == driver.name:
        core.wait_for_lock(device)
    if device is None or device.driver != driver.name:
        raise Refusal(errno.ENODEV)
    if driver.remove == "vfs":
        from pyhostdev.testing import sriov

        sriov.disable(core, device)  # as igb_remove does; it waits for a VF that is held
    core.detach(device)


def _read_id(value: bytes) -> str:
    """Return vendor and device as in an id table; further fields, which narrow the match, are not simulated."""
    try:
        vendor, device, *_ = (int(field, 16) for field in c_string(value).split())
    except ValueError:
        raise Refusal(errno.EINVAL) from None
    return f"{vendor:04x}:{device:04x}"


def store_new_id(core: DriverCore, driver: DriverSpec, value: bytes) -> None:
    """
    Add a dynamic id and offer all unbound functions to the driver.

    Raises:
        Refusal: EINVAL for fewer than two fields, EEXIST for an id that the driver already has.
    """
    pattern = _read_id(value)
    known = core.state.dynamic.setdefault(driver.name, [])
    if pattern in known or (driver.kind != "vfio" and pattern in driver.ids):
        raise Refusal(errno.EEXIST)
    known.append(pattern)
    core.state.has_hidden_state = True
    core.attach_all(driver)


def store_remove_id(core: DriverCore, driver: DriverSpec, value: bytes) -> None:
    """
    Remove a dynamic id; functions bound through it stay bound.

    Raises:
        Refusal: EINVAL for fewer than two fields, ENODEV for an id that was not added.
    """
    pattern = _read_id(value)
    known = core.state.dynamic.get(driver.name, [])
    if pattern not in known:
        raise Refusal(errno.ENODEV)
    known.remove(pattern)
    core.state.has_hidden_state = True


def store_drivers_probe(core: DriverCore, value: bytes) -> None:
    """
    Offer a function to all drivers; it is a success if none matches, the probe fails, or the function is bound.

    Raises:
        Refusal: ENODEV for an unknown name, EINVAL while user space owns the group.
    """
    device = named_device(core, value)
    if device is None:
        raise Refusal(errno.ENODEV)
    if device.driver is not None or core.lock_holder(device) is not None:
        return
    try:
        core.attach_any(device)
    except Refusal:
        raise Refusal(errno.EINVAL) from None


def store_rescan(core: DriverCore, value: bytes) -> None:
    """
    Find removed functions again.

    Raises:
        Refusal: EINVAL for anything but a number.
    """
    if _number(value):
        from pyhostdev.testing import hotplug

        hotplug.rescan(core)


def _number(value: bytes) -> int:
    text = c_string(value).strip().decode("latin-1")
    try:
        return int(text, 0)
    except ValueError:
        raise Refusal(errno.EINVAL) from None


def store_driver_override(core: DriverCore, device: SimDevice, value: bytes) -> None:
    """
    Set or clear the override; the binding does not change.

    Raises:
        Refusal: EINVAL for a page or more.
    """
    if len(value) >= OVERRIDE_LIMIT:
        raise Refusal(errno.EINVAL)
    if not has_change(core.tree, "override-without-lock"):
        core.wait_for_lock(device)
    name = c_string(value).split(b"\n", 1)[0]
    driver = device.driver
    core.state.override_changed = driver is not None and core.state.driver(driver).kind == "vfio"
    device.update("driver_override", name + b"\n" if name else UNSET_OVERRIDE)


def store_sriov_numvfs(core: DriverCore, device: SimDevice, value: bytes) -> None:
    """
    Create or remove the VFs of a PF.

    Raises:
        Refusal: ERANGE above the maximum, ENOENT without a driver, EBUSY for a change between two non-zero numbers.
    """
    wanted = _number(value)
    if not 0 <= wanted <= device.number("sriov_totalvfs"):
        raise Refusal(errno.ERANGE)
    core.wait_for_lock(device)
    current = device.number("sriov_numvfs")
    if wanted == current:
        return
    if device.driver is None or core.state.driver(device.driver).kind != "host":
        raise Refusal(errno.ENOENT)
    if current and wanted:
        raise Refusal(errno.EBUSY)
    from pyhostdev.testing import sriov

    if wanted:
        sriov.enable(core, device, wanted)
    else:
        sriov.disable(core, device)


def store_sriov_drivers_autoprobe(core: DriverCore, device: SimDevice, value: bytes) -> None:
    """
    Let drivers bind to new VFs, or keep them from all VFs without an override.

    Raises:
        Refusal: EINVAL for anything but a boolean.
    """
    del core
    first = c_string(value)[:1].lower()
    if first not in (b"0", b"1", b"y", b"n", b"t", b"f"):
        raise Refusal(errno.EINVAL)
    device.update("sriov_drivers_autoprobe", b"1\n" if first in (b"1", b"y", b"t") else b"0\n")


def store_reset(core: DriverCore, device: SimDevice, value: bytes) -> None:
    """
    Reset the function by its first usable method.

    Raises:
        Refusal: EINVAL for a value other than 1, ENOTTY if no method is usable.
    """
    if _number(value) != 1:
        raise Refusal(errno.EINVAL)
    core.wait_for_lock(device)
    methods = (device.read("reset_method") or b"pm").split()
    if device.read("reset_method") == b"":
        raise Refusal(errno.ENOTTY)
    if methods == [b"bus"] and not _is_alone(core, device):
        raise Refusal(errno.ENOTTY)


def _is_alone(core: DriverCore, device: SimDevice) -> bool:
    """True if a bus reset affects no other function."""
    bus = device.address[:2]
    return all(other.address[:2] != bus or other.address == device.address for other in list_devices(core.tree))


def _reset_methods(words: list[str], supported: list[str]) -> str:
    for word in words:
        if word not in _RESET_NAMES or word not in supported:
            raise Refusal(errno.EINVAL)
    return " ".join(words) + "\n" if words else ""


def store_reset_method(core: DriverCore, device: SimDevice, value: bytes) -> None:
    """
    Choose the methods to reset a function, in order.

    Raises:
        Refusal: EINVAL for a name unknown to the kernel or not supported by this function.
    """
    name = str(device.address)
    present = (device.read("reset_method") or b"").decode("latin-1")
    default = core.state.reset_methods.get(name, present)
    words = c_string(value).decode("latin-1").split()
    text = default if words == ["default"] else _reset_methods(words, default.split())
    device.update("reset_method", text.encode("latin-1"))
    core.state.reset_methods[name] = default
    if text == default:
        del core.state.reset_methods[name]


def store_remove(core: DriverCore, device: SimDevice, value: bytes) -> None:
    """
    Remove a function from the bus.

    Raises:
        Refusal: EINVAL for anything but a number.
    """
    if _number(value):
        from pyhostdev.testing import hotplug

        core.wait_for_lock(device)
        hotplug.remove(core, device)


DRIVER_ATTRIBUTES = {
    "bind": store_bind,
    "unbind": store_unbind,
    "new_id": store_new_id,
    "remove_id": store_remove_id,
}
BUS_ATTRIBUTES = {"drivers_probe": store_drivers_probe, "rescan": store_rescan}
DEVICE_ATTRIBUTES = {
    "driver_override": store_driver_override,
    "sriov_numvfs": store_sriov_numvfs,
    "sriov_drivers_autoprobe": store_sriov_drivers_autoprobe,
    "reset": store_reset,
    "reset_method": store_reset_method,
    "remove": store_remove,
}
