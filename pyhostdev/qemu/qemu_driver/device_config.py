# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Change the devices of an inactive definition: attach, detach, update.

Each function returns a changed copy with defaults and addresses, or raises and leaves the definition unchanged. A
running guest is not touched.

Mirrors: qemuDomainAttachDeviceConfig, qemuDomainDetachDeviceConfig, qemuDomainUpdateDeviceConfig
(src/qemu/qemu_driver.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.controller_conf import DomainControllerDef
from pyhostdev.conf.device_validate import device_errors
from pyhostdev.conf.disk_conf import DomainDiskDef
from pyhostdev.conf.hostdev_conf import DomainHostdevDef, misplaced_assigned
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.conf.net_conf import DomainNetDef
from pyhostdev.errors import (
    VIR_ERR_DEVICE_MISSING,
    VIR_ERR_OPERATION_INVALID,
    VIR_ERR_OPERATION_UNSUPPORTED,
    ConfigError,
    raise_all,
)
from pyhostdev.qemu.qemu_domain.define import define
from pyhostdev.qemu.qemu_validate import QEMURules
from pyhostdev.util.virxml import parse_document

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities


_DEFINITIONS: dict[str, type[ElementDef]] = {
    definition.tag: definition for definition in (DomainHostdevDef, DomainDiskDef, DomainNetDef, DomainControllerDef)
}
_LISTS = {"hostdev": "hostdevs", "disk": "disks", "interface": "interfaces", "controller": "controllers"}
_UPDATABLE = ("disk", "interface")


def parse_device(xml: str | bytes) -> Any:
    """
    Read the XML of one device.

    Raises:
        XMLError: the XML is not well-formed, or invalid.
        ConfigError: this kind of device cannot be attached.
    """
    root = parse_document(xml)
    tag = str(root.tag)
    if tag not in _DEFINITIONS:
        raise ConfigError(
            f"Cannot attach or detach a <{tag}>: expected hostdev, disk, interface or controller",
            libvirt_code=VIR_ERR_OPERATION_UNSUPPORTED,
        )
    raise_all(misplaced_assigned(root))
    return _DEFINITIONS[tag].from_element(root)


def attach_device(
    dom: DomainDef,
    xml: str | bytes,
    capabilities: QEMUCapabilities,
    host: HostFacts | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> DomainDef:
    """
    Return the definition with one more device.

    Args:
        dom: a complete definition, as ``define`` returns it.
        host, release: as for ``define``.

    Raises:
        ConfigError: the device is invalid, present already, or finds no free address.

    Mirrors: qemuDomainAttachDeviceConfig (src/qemu/qemu_driver.c)
    """
    device = parse_device(xml)
    if device.tag in ("hostdev", "controller"):
        for error in (*device_errors(dom, device), *QEMURules(capabilities, release).device_errors(dom, device)):
            raise error
    others = dom.all_hostdevs() if device.tag == "hostdev" else getattr(dom, _LISTS[device.tag])
    if _find(others, device) is not None:
        raise ConfigError(f"The domain already has this {device.tag}", libvirt_code=VIR_ERR_OPERATION_INVALID)
    changed = dom.copy()
    getattr(changed, _LISTS[device.tag]).append(device)
    return define(changed, capabilities, host, release=release)


def attach_hostdevs(
    dom: DomainDef,
    hostdevs: Sequence[DomainHostdevDef],
    capabilities: QEMUCapabilities,
    host: HostFacts | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> DomainDef:
    """
    Return the definition with several more host devices; the functions of one device share a guest slot.

    Raises:
        ConfigError: one of them is invalid, present already, or finds no free address.
    """
    changed = dom.copy()
    for hostdev in hostdevs:
        for error in (*device_errors(dom, hostdev), *QEMURules(capabilities, release).device_errors(dom, hostdev)):
            raise error
        if _find(changed.all_hostdevs(), hostdev) is not None:
            raise ConfigError("The domain already has this hostdev", libvirt_code=VIR_ERR_OPERATION_INVALID)
        changed.hostdevs.append(hostdev.copy())
    return define(changed, capabilities, host, keep_together=len(hostdevs) > 1, release=release)


def detach_hostdevs(
    dom: DomainDef,
    hostdevs: Sequence[DomainHostdevDef],
    capabilities: QEMUCapabilities,
    host: HostFacts | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> DomainDef:
    """
    Return the definition without several host devices; controllers that were added for them stay.

    Raises:
        ConfigError: the definition lacks one of them.
    """
    changed = dom.copy()
    for hostdev in hostdevs:
        del changed.hostdevs[_place(changed, hostdev)]
    return define(changed, capabilities, host, release=release)


def detach_device(
    dom: DomainDef,
    xml: str | bytes,
    capabilities: QEMUCapabilities,
    host: HostFacts | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> DomainDef:
    """
    Return the definition without one device; controllers that were added for it stay.

    Raises:
        ConfigError: the definition lacks the device.

    Mirrors: qemuDomainDetachDeviceConfig (src/qemu/qemu_driver.c)
    """
    device = parse_device(xml)
    place = _place(dom, device)
    changed = dom.copy()
    del getattr(changed, _LISTS[device.tag])[place]
    return define(changed, capabilities, host, release=release)


def update_device(
    dom: DomainDef,
    xml: str | bytes,
    capabilities: QEMUCapabilities,
    host: HostFacts | None = None,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> DomainDef:
    """
    Return the definition with one device replaced by a new version of it.

    Raises:
        ConfigError: the definition lacks the device, or this kind of device cannot be updated.

    Mirrors: qemuDomainUpdateDeviceConfig (src/qemu/qemu_driver.c)
    """
    device = parse_device(xml)
    if device.tag not in _UPDATABLE:
        raise ConfigError(
            f"A {device.tag} of a definition cannot be updated", libvirt_code=VIR_ERR_OPERATION_UNSUPPORTED
        )
    place = _place(dom, device)
    changed = dom.copy()
    devices = getattr(changed, _LISTS[device.tag])
    if device.info.address is None:
        device.info.address = devices[place].info.address
    devices[place] = device
    return define(changed, capabilities, host, release=release)


def _place(dom: DomainDef, device: Any) -> int:
    place = _find(getattr(dom, _LISTS[device.tag]), device)
    if place is None:
        raise ConfigError(f"The domain does not have this {device.tag}", libvirt_code=VIR_ERR_DEVICE_MISSING)
    return place


def _find(devices: Sequence[Any], device: Any) -> int | None:
    """Return the index of the matching device, None without a match."""
    identity = _IDENTITIES[device.tag]
    wanted = identity(device)
    if wanted is None:
        return None
    return next((place for place, other in enumerate(devices) if identity(other) == wanted), None)


def _hostdev_identity(hostdev: Any) -> object:
    """Mirrors: virDomainHostdevMatch (src/conf/domain_conf.c)"""
    if hostdev.is_pci:
        return hostdev.pci_address
    source = hostdev.source_def
    return None if source is None else (hostdev.type, *source.format_lines("source"))


def _controller_identity(controller: Any) -> object:
    return None if controller.index is None else (controller.type, controller.index)


_IDENTITIES: dict[str, Callable[[Any], object]] = {
    "hostdev": _hostdev_identity,
    "disk": lambda disk: disk.target,
    "interface": lambda net: net.mac,
    "controller": _controller_identity,
}
