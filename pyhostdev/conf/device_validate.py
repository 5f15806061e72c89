# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules for single devices that all hypervisors share.

Mirrors: virDomainDeviceDefValidateInternal (src/conf/domain_validate.c)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.device_conf import WORD_NUMBERS
from pyhostdev.conf.domain_limits import PCI_INDEX_MAX
from pyhostdev.conf.hostdev_conf import SCSIHostSource
from pyhostdev.conf.peripheral_validate import memory_errors, rng_errors, tpm_errors
from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_INVALID_ARG,
    VIR_ERR_NO_SOURCE,
    VIR_ERR_NO_TARGET,
    VIR_ERR_XML_DETAIL,
    ConfigError,
    ConfigUnsupportedError,
    XMLError,
)
from pyhostdev.util.virxml import parse_elements, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.chr_conf import ChrSource, ChrSourceElement, DomainChrDef, DomainRedirdevDef, DomainSmartcardDef
    from pyhostdev.conf.controller_conf import DomainControllerDef
    from pyhostdev.conf.device_conf import DeviceInfo
    from pyhostdev.conf.disk_conf import DomainDiskDef
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.fs_conf import DomainFSDef
    from pyhostdev.conf.graphics_conf import DomainGraphicsDef
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.net_conf import DomainNetDef
    from pyhostdev.conf.rng_conf import DomainRNGDef
    from pyhostdev.conf.small_device_conf import DomainInputDef, DomainShmemDef, DomainVsockDef
    from pyhostdev.conf.xml.xmldef import ElementDef
    from pyhostdev.util.virxml import Element

    Errors = Iterator[ConfigError]


SPAPR_REG_MAX = 0xFFFFFFFF
TARGET_INDEX_MAX = 30
# option of a PCI controller -> least and largest value
_PCI_RANGES = {"chassis_nr": (1, 255), "chassis": (0, 255), "port": (0, 255), "bus_nr": (1, 254)}

_WWPN = r"naa\.[0-9a-fA-F]{16}"
_CHANNEL_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def device_errors(dom: DomainFields, device: ElementDef) -> Errors:
    """Yield the errors of one device."""
    info = getattr(device, "info", None)
    if info is not None:
        yield from _info_errors(dom, device, info)
    rule = _RULES.get(device.tag)
    if rule is not None:
        yield from rule(dom, device)


def _info_errors(dom: DomainFields, device: ElementDef, info: DeviceInfo) -> Errors:
    """
    Yield the errors of ROM and address.

    Mirrors: qemuValidateDomainDeviceInfo (src/qemu/qemu_validate.c)
    """
    line = device.line
    address: Any = info.address  # of any kind
    kind = None if address is None else address.kind
    is_tuned = info.rom_bar is not None or info.rom_file is not None
    has_rom = is_tuned or info.rom_enabled is not None
    if info.rom_enabled is False and is_tuned:
        yield ConfigUnsupportedError("A ROM that is not enabled cannot have 'bar' or 'file'", line=line)
    if has_rom and kind not in (None, "pci", "unassigned"):
        yield ConfigUnsupportedError("Only PCI devices can have a ROM", line=line)
    if kind == "spapr-vio" and (address.reg or 0) > SPAPR_REG_MAX:
        yield ConfigUnsupportedError(f"A register of spapr-vio can be at most {SPAPR_REG_MAX:#x}", line=line)
    if info.acpi_index is not None and kind not in (None, "pci"):
        yield ConfigUnsupportedError("Only PCI devices can have an ACPI index", line=line)
    has_zpci = kind == "pci" and (address.zpci_uid, address.zpci_fid) != (None, None)
    if has_zpci and dom.os.arch not in ("s390x", "s390", None):
        yield ConfigUnsupportedError(f"The architecture {dom.os.arch} does not support zPCI", line=line)


def _internal(message: str, line: int | None) -> ConfigError:
    """Return an error that libvirt reports as internal."""
    return ConfigUnsupportedError(message, line=line, libvirt_code=VIR_ERR_INTERNAL_ERROR)


def _controller_errors(dom: DomainFields, device: DomainControllerDef) -> Errors:
    """Mirrors: virDomainControllerDefValidate (src/conf/domain_validate.c)"""
    if not device.is_pci:
        return
    line, index = device.line, device.index or 0
    if device.is_pci_root and device.info.address is not None:
        yield ConfigUnsupportedError(f"A {device.model} cannot have an address", line=line)
    if index > PCI_INDEX_MAX:
        yield ConfigUnsupportedError(f"PCI controller index {index} is too high", line=line)
    if device.target_index is not None:
        yield from _target_index_errors(device, index)
    for name, (least, largest) in _PCI_RANGES.items():
        value = getattr(device, name)
        if value is not None and not least <= value <= largest:
            yield ConfigUnsupportedError(
                f"{name} {value} of PCI controller {index} is not within {least} and {largest}", line=line
            )
    if device.numa_node is not None and index == 0:
        yield ConfigUnsupportedError("PCI controller 0 cannot be on a NUMA node", line=line)


def _target_index_errors(device: DomainControllerDef, index: int) -> Errors:
    target = device.target_index or 0
    if target > TARGET_INDEX_MAX:
        yield ConfigUnsupportedError(f"Target index {target} is too high", line=device.line)
    if (index == 0) != (target == 0):
        yield ConfigUnsupportedError("PCI controller 0 must have target index 0, and no other can", line=device.line)


# type of host device -> its valid types of address, and libvirt's number for any other
_HOSTDEV_ADDRESSES: dict[str, tuple[tuple[str, ...], int | None]] = {
    "pci": (("pci", "unassigned"), VIR_ERR_INTERNAL_ERROR),
    "scsi": (("drive",), None),
    "scsi_host": (("pci", "ccw"), None),
    "usb": (("usb",), None),
}


def _hostdev_errors(dom: DomainFields, device: DomainHostdevDef) -> Errors:
    """Mirrors: virDomainHostdevDefValidate (src/conf/domain_validate.c)"""
    line, address = device.line, device.info.address
    kinds, code = _HOSTDEV_ADDRESSES.get(device.type, ((), None))
    if device.mode == "subsystem" and kinds and address is not None and address.kind not in kinds:
        text = f"A host device of type {device.type} cannot have an address of type {address.kind}"
        yield ConfigUnsupportedError(text, line=line, libvirt_code=code)
    source = device.source_def
    if isinstance(source, SCSIHostSource) and not re.fullmatch(_WWPN, source.wwpn or ""):
        yield XMLError("The wwpn of a <hostdev> must be naa. and 16 hexadecimal digits", line=line)
    for name in device.guest_side_names() if device.assigned is False else ():
        yield XMLError(f"A <hostdev> with assigned='no' cannot have <{name}>", line=line)
    if device.sgio == "unfiltered":
        yield ConfigUnsupportedError("sgio='unfiltered' is no longer supported", line=line)
    if device.teaming_type is not None or device.teaming_persistent is not None:
        yield from _teaming_errors(device)


def _teaming_errors(device: DomainHostdevDef) -> Errors:
    line = device.line
    if device.teaming_type is None:
        yield ConfigUnsupportedError("<teaming> of a host device needs a type", line=line)
    elif device.teaming_type != "transient":
        yield ConfigUnsupportedError("A host device must be the transient part of a team", line=line)
    elif device.teaming_persistent is None:
        yield ConfigUnsupportedError("<teaming> does not name its persistent part", line=line)
    if not device.is_pci:
        yield ConfigUnsupportedError("Only PCI host devices can be in a team", line=line)


def _net_errors(dom: DomainFields, device: DomainNetDef) -> Errors:
    """Mirrors: virDomainNetDefValidate (src/conf/domain_validate.c)"""
    line = device.line
    if device.teaming_type is None and device.teaming_persistent is not None:
        yield ConfigUnsupportedError("<teaming> of an interface needs a type", line=line)
    if device.teaming_type == "transient" and device.teaming_persistent is None:
        yield ConfigUnsupportedError("<teaming> does not name its persistent part", line=line)
    if device.teaming_type == "persistent" and device.teaming_persistent is not None:
        yield ConfigUnsupportedError("<teaming> of the persistent part cannot name another device", line=line)
    if device.teaming_type == "persistent" and not device.is_virtio:
        yield ConfigUnsupportedError("The persistent part of a team must be a virtio interface", line=line)
    if not device.is_virtio:
        for name in device.virtio.given():
            yield ConfigUnsupportedError(f"Only a virtio interface can have '{name}'", line=line)
    if device.target_managed is False and device.type != "ethernet":
        yield ConfigUnsupportedError(f"An interface of type {device.type} cannot be unmanaged", line=line)
    if device.port_isolated and device.type not in ("network", "bridge"):
        yield ConfigUnsupportedError(f"An interface of type {device.type} cannot be isolated", line=line)
    if device.mtu and device.type == "hostdev":
        yield ConfigUnsupportedError("A host device cannot have <mtu>", line=line)
    if device.type == "udp" and device.source is not None and device.source.local_address is None:
        yield XMLError("An interface of type udp needs <local> in its <source>", line=line)
    for part in parse_elements(device.bandwidth)[:1]:
        for rate in part.iterchildren("inbound", "outbound"):
            yield from _rate_errors(device, rate)


def _rate_errors(device: DomainNetDef, rate: Element) -> Errors:
    """Mirrors: virNetDevBandwidthParseRate (src/conf/netdev_bandwidth_conf.c)"""
    line, floor = device.line, rate.get("floor")
    for name in ("average", "peak", "burst", "floor"):
        value = rate.get(name)
        if value is not None and not value.isdecimal():
            text = f"Invalid {name} '{shown(value)}' in <bandwidth>: expected a number"
            yield ConfigUnsupportedError(text, line=line, renumbered=WORD_NUMBERS)
    if floor is not None and (rate.tag == "outbound" or device.type != "network"):
        yield ConfigUnsupportedError("Only <inbound> of an interface of type network has a floor", line=line)
    elif rate.get("average") is None and floor is None:
        yield XMLError("<bandwidth> needs an average or a floor", line=line, libvirt_code=VIR_ERR_XML_DETAIL)


# character device -> its target types
_CHR_TARGETS = {
    "serial": (
        *("isa-serial", "usb-serial", "pci-serial", "spapr-vio-serial"),
        *("system-serial", "sclp-serial", "isa-debug"),
    ),
    "console": ("serial", "xen", "uml", "virtio", "lxc", "openvz", "sclp", "sclplm"),
    "channel": ("guestfwd", "virtio", "xen"),
}


def _chr_errors(dom: DomainFields, device: DomainChrDef) -> Errors:
    known = _CHR_TARGETS.get(device.tag, ())
    if known and device.target_type not in (None, *known):
        text = f"A {device.tag} cannot have target type '{shown(str(device.target_type))}'"
        yield ConfigUnsupportedError(text, line=device.line)
    is_virtio_channel = device.tag == "channel" and device.target_type in ("virtio", "xen")
    yield from chr_source_errors(device.source, device.line, may_choose_path=is_virtio_channel)


def chr_source_errors(source: ChrSource, line: int | None, *, may_choose_path: bool = False) -> Errors:
    """
    Yield the errors of the host side of a character device.

    Mirrors: virDomainChrSourceDefValidate (src/conf/domain_validate.c)
    """
    kind = source.type
    if kind in ("file", "dev", "pipe") and source.path is None:
        yield _internal(f"A character device of type {kind} has no path", line)
    if kind == "unix" and source.path is None and not may_choose_path:
        yield _internal("A character device of type unix has no path", line)
    if kind in ("tcp", "udp"):
        yield from _socket_errors(source, line)
    for part in source.sources if kind in ("tcp", "unix") else ():
        yield from _reconnect_errors(part, listens=part.mode == "bind" or (kind == "unix" and part.path is None))
    if kind in ("spiceport", "dbus"):
        yield from _channel_name_errors(source, line)


def _channel_name_errors(source: ChrSource, line: int | None) -> Errors:
    channel = source.sources[0].channel if source.sources else None
    if channel is None:
        yield ConfigUnsupportedError(f"A character device of type {source.type} has no channel", line=line)
    elif set(channel) - _CHANNEL_NAME_CHARACTERS:
        yield XMLError(f"Invalid channel name '{shown(channel)}'", line=line, libvirt_code=VIR_ERR_INVALID_ARG)


def _reconnect_errors(part: ChrSourceElement, *, listens: bool) -> Errors:
    if part.reconnect_enabled is not None and listens:
        yield _internal("<reconnect> needs mode='connect'", part.line)
    if part.reconnect_enabled and part.reconnect_timeout == 0:
        yield XMLError("The timeout of <reconnect> must not be 0", line=part.line, libvirt_code=VIR_ERR_INVALID_ARG)


def _socket_errors(source: ChrSource, line: int | None) -> Errors:
    parts = source.sources
    hosts = [part.host for part in parts if part.host is not None]
    connects = [part.service for part in parts if part.mode != "bind" or source.type == "tcp"]
    if source.type == "tcp" and not hosts:
        yield _internal("A TCP character device has no host", line)
    if not any(connects):
        yield _internal(f"A {source.type} character device has no service", line)


def _redirdev_errors(dom: DomainFields, device: DomainRedirdevDef) -> Errors:
    """Mirrors: virDomainRedirdevDefValidate (src/conf/domain_validate.c)"""
    usb = [controller for controller in dom.controllers if controller.type == "usb"]
    if usb and all(controller.model == "none" for controller in usb):
        yield ConfigUnsupportedError("USB is disabled, so nothing can be redirected", line=device.line)
    yield from chr_source_errors(device.source, device.line)


def _smartcard_errors(dom: DomainFields, device: DomainSmartcardDef) -> Errors:
    address = device.info.address
    if address is not None and address.kind != "ccid":
        yield ConfigUnsupportedError("A smartcard needs an address of type ccid", line=device.line)
    if device.mode == "passthrough":
        yield from chr_source_errors(device.source, device.line)
    if device.mode == "host-certificates" and len(device.certificates) != 3:
        yield XMLError("A smartcard of mode host-certificates needs three certificates", line=device.line)


def _vsock_errors(dom: DomainFields, device: DomainVsockDef) -> Errors:
    if device.cid_address in (1, 2):
        yield ConfigUnsupportedError("The vsock CID of a guest must be at least 3", line=device.line)


def _input_errors(dom: DomainFields, device: DomainInputDef) -> Errors:
    """Mirrors: virDomainInputDefValidate (src/conf/domain_validate.c)"""
    line, kind, bus = device.line, device.type, device.bus
    if bus == "ps2" and kind not in ("mouse", "keyboard"):
        yield _internal(f"A {kind} cannot be on bus ps2", line)
    if bus == "xen":
        yield _internal("The bus xen is not supported", line)
    if kind == "passthrough" and bus not in (None, "virtio"):
        yield ConfigUnsupportedError("A passed-through input device must be on bus virtio", line=line)
    if kind == "evdev" and bus not in (None, "none"):
        yield ConfigUnsupportedError("An input device of type evdev cannot have a bus", line=line)
    if device.model is not None and bus not in (None, "virtio"):
        yield ConfigUnsupportedError("Only an input device on bus virtio can have a model", line=line)
    if device.model in ("virtio-transitional", "virtio-non-transitional"):
        yield ConfigUnsupportedError(f"An input device cannot have the model {device.model}", line=line)
    if bus == "ps2" and dom.features.ps2 is False:
        yield ConfigUnsupportedError("An input device on bus ps2 needs <ps2>, which is off", line=line)


def _shmem_errors(dom: DomainFields, device: DomainShmemDef) -> Errors:
    if device.has_msi and not device.has_server:
        yield XMLError("Only shared memory with a server can have <msi>", line=device.line)
    if "/" in device.name or device.name in (".", ".."):
        yield ConfigUnsupportedError(f"Invalid name of shared memory '{shown(device.name)}'", line=device.line)


# type of file system -> the attributes of which its source needs one
_FS_SOURCES = {
    "mount": ("source_dir", "source_socket"),
    "bind": ("source_dir", "source_socket"),
    "block": ("source_dev", "source_socket"),
    "file": ("source_file", "source_socket"),
    "template": ("source_name", "source_socket"),
}


def _fs_errors(dom: DomainFields, device: DomainFSDef) -> Errors:
    needed = _FS_SOURCES.get(device.type)
    if needed is not None and all(getattr(device, name) is None for name in needed):
        yield XMLError("A file system has no source", line=device.line, libvirt_code=VIR_ERR_NO_SOURCE)
    if device.target is None:
        yield XMLError("A file system has no target", line=device.line, libvirt_code=VIR_ERR_NO_TARGET)
    if device.info.boot_order is not None and device.driver_type != "virtiofs":
        yield ConfigUnsupportedError("Only virtiofs can have <boot>", line=device.line)


def _graphics_errors(dom: DomainFields, device: DomainGraphicsDef) -> Errors:
    if device.type == "dbus" and device.p2p and device.address is not None:
        yield XMLError("D-Bus graphics cannot have both an address and p2p", line=device.line)


def _disk_errors(dom: DomainFields, device: DomainDiskDef) -> Errors:
    from pyhostdev.conf.disk_validate import disk_errors  # many domains with host devices have no disk

    yield from disk_errors(dom, device)


def _rng_errors(dom: DomainFields, device: DomainRNGDef) -> Errors:
    yield from rng_errors(dom, device)
    if device.backend is not None and device.backend.model == "egd":
        yield from chr_source_errors(device.backend.chardev, device.line)


_RULES: dict[str, Callable[..., Errors]] = {
    "controller": _controller_errors,
    "hostdev": _hostdev_errors,
    "interface": _net_errors,
    "disk": _disk_errors,
    "serial": _chr_errors,
    "parallel": _chr_errors,
    "channel": _chr_errors,
    "redirdev": _redirdev_errors,
    "smartcard": _smartcard_errors,
    "vsock": _vsock_errors,
    "input": _input_errors,
    "shmem": _shmem_errors,
    "filesystem": _fs_errors,
    "graphics": _graphics_errors,
    "memory": memory_errors,
    "tpm": tpm_errors,
    "rng": _rng_errors,
}
