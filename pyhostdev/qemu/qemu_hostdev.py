# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Find the host's USB devices that a domain names, by vendor and product or by bus and device number.

Mirrors: qemuHostdevPrepareUSBDevices (src/qemu/qemu_hostdev.c), virHostdevFindUSBDevice (src/hypervisor/virhostdev.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.hostdev_conf import USBSource
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, VIR_ERR_OPERATION_FAILED, ConfigError, raise_all
from pyhostdev.util import virusb
from pyhostdev.util.finding import NOTE, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.virusb import USBDevice


def find_usb_devices(dom: DomainDef, host: HostFacts | None, *, may_be_absent: bool = False) -> None:
    """
    Look up the USB devices that a domain names by vendor and product; store their address in the definition.

    Args:
        may_be_absent: True accepts an absent device, which QEMU then looks for by vendor and product.

    Raises:
        ConfigError: a device is absent, or more than one has its vendor and product; ``others`` has the rest.
        SysfsError: the host's devices cannot be read.

    Mirrors: qemuHostdevPrepareUSBDevices (src/qemu/qemu_hostdev.c), virHostdevFindUSBDevice
    """
    errors: list[ConfigError] = []
    for hostdev in dom.hostdevs:
        source = hostdev.source_def
        if isinstance(source, USBSource) and source.vendor_id is not None and hostdev.mode == "subsystem":
            found = [] if host is None else usb_candidates(host.root, source)
            if len(found) == 1:
                source.bus, source.device = found[0].bus, found[0].device
            elif found or not (may_be_absent or source.startup_policy == "optional"):
                errors.append(_usb_error(hostdev, source, found, is_known=host is not None))
    raise_all(errors)


def usb_candidates(root: HostRoot, source: USBSource) -> list[USBDevice]:
    """
    Return the host's devices that match a source.

    Raises:
        SysfsError: the host's devices cannot be read.
    """
    return virusb.find_usb_devices(root, source.vendor_id, source.product_id, source.bus, source.device)


def _usb_error(hostdev: Any, source: USBSource, found: list[USBDevice], *, is_known: bool) -> ConfigError:
    name = f"USB device {source.vendor_id or 0:04x}:{source.product_id or 0:04x}"
    if not is_known:
        text = f"{name} cannot be looked up without a host"
        return ConfigError(text, line=hostdev.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    if not found:
        text = f"{name} is not on this host"
        return ConfigError(text, line=hostdev.line, libvirt_code=VIR_ERR_INTERNAL_ERROR, reason="device-missing")
    places = ", ".join(f"bus {device.bus} device {device.device}" for device in found)
    text = f"{name} is on this host {len(found)} times ({places}); add an <address> to choose one"
    return ConfigError(text, line=hostdev.line, libvirt_code=VIR_ERR_OPERATION_FAILED, reason="usb-ambiguous")


def unfound_usb(dom: DomainDef, host: HostFacts) -> list[Finding]:
    """Return a note for each USB device that the host lacks; ``start`` would refuse it."""
    try:
        find_usb_devices(dom.copy(), host)
    except ConfigError as err:
        return [Finding("device-missing", NOTE, None, part.message, part.line) for part in (err, *err.others)]
    return []


def absent_usb(dom: DomainDef, host: HostFacts) -> Iterator[Finding]:
    """Yield a note for each absent USB device that is optional; other absent devices are errors elsewhere."""
    for hostdev in _optional_usb(dom, host):
        message = "The USB device is not on this host; the guest starts without it (startupPolicy='optional')"
        yield Finding("ignored", NOTE, None, message, hostdev.line)


def without_absent_usb(dom: DomainDef, host: HostFacts) -> DomainDef:
    """
    Remove the absent optional USB devices from a domain and return it.

    Without an address, usb-host matches any USB device of the host, so the guest must not get such a device.
    """
    absent = {id(hostdev) for hostdev in _optional_usb(dom, host)}
    dom.hostdevs = [hostdev for hostdev in dom.hostdevs if id(hostdev) not in absent]
    return dom


def _optional_usb(dom: DomainDef, host: HostFacts) -> list[DomainHostdevDef]:
    """Return the absent USB devices that are optional."""
    return [
        hostdev
        for hostdev in dom.hostdevs
        if isinstance(source := hostdev.source_def, USBSource) and source.startup_policy == "optional"
        if not usb_candidates(host.root, source)
    ]
