# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Limits on a definition's name, and on its requests: a small document must not keep a program busy for minutes.

Numbers in the XML create controllers, threads and ports. libvirt trusts the author of a domain; a program that reads
untrusted definitions cannot. Each limit is far above what a guest can have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigUnsupportedError, XMLError
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_fields import DomainFields

PCI_INDEX_MAX = 255  # bus numbers have 8 bits (PCI30 3.2.2.3.2)
CONTROLLERS_MAX = 1024  # in all, and of indexes; a SCSI controller takes a PCI function, and there are 256 buses
GRAPHICS_MAX = 64  # QEMU has one of each type
DEVICES_MAX = 4096  # of all kinds; 256 buses of one device each leave room for disks on shared controllers
VCPUS_MAX = 16384  # QEMU itself supports 4096 (max_cpus of its hw/i386/pc_q35.c)
NUMA_CELLS_MAX = 1024  # QEMU itself supports 128 (MAX_NODES of its sysemu/numa.h)
IOTHREADS_MAX = 1024  # one object of QEMU each
USB_PORTS_MAX = 15  # XHCI has room for 15 ports of each kind (QEMU's hw/usb/hcd-xhci.h)
SERIAL_PORTS_MAX = 511  # of a virtio-serial controller, whose queues are numbered up to 1024 (QEMU's virtio.h)


def name_errors(dom: DomainFields) -> Iterator[XMLError]:
    """
    Yield an error if the name is not a valid file name, or contains line breaks: it names files and records.

    Mirrors: virDomainDefPostParse for the slash, qemuDomainDefineXMLFlags for the line break
    """
    for character, what in (("/", "a slash"), ("\n", "a line break")):
        if character in (dom.name or ""):
            yield XMLError(f"The name '{shown(dom.name)}' has {what}", line=dom.line)
    if "\n" in (dom.title or ""):
        yield XMLError("The <title> has a line break", line=dom.line)


def refuse_too_large(dom: DomainFields) -> None:
    """
    Refuse a definition with more than any guest can have, before it is processed.

    Raises:
        ConfigUnsupportedError: a number is too high; the error names it and its line.
    """
    for error in _too_large(dom):
        raise error


def _too_large(dom: DomainFields) -> Iterator[ConfigUnsupportedError]:
    if (dom.iothreads or 0) > IOTHREADS_MAX:
        yield _error(f"<iothreads> is {dom.iothreads}", IOTHREADS_MAX, dom.line)
    if dom.vcpus > VCPUS_MAX:
        yield _error(f"The guest has {dom.vcpus} virtual CPUs", VCPUS_MAX, dom.line)
    cells = dom.cpu.cells if dom.cpu is not None else []
    if len(cells) > NUMA_CELLS_MAX:
        yield _error(f"The guest has {len(cells)} NUMA cells", NUMA_CELLS_MAX, dom.line)
    count = len(dom.devices())
    if count > DEVICES_MAX:
        yield _error(f"The domain has {count} devices", DEVICES_MAX, dom.line)
    if len(dom.graphics) > GRAPHICS_MAX:
        yield _error(f"The domain has {len(dom.graphics)} <graphics>", GRAPHICS_MAX, dom.line)
    if len(dom.controllers) > CONTROLLERS_MAX:
        yield _error(f"The domain has {len(dom.controllers)} controllers", CONTROLLERS_MAX, dom.line)
    yield from _controllers_too_large(dom)
    for device, info in dom.device_infos():
        address: Any = info.address
        is_numbered = address is not None and address.kind in ("drive", "virtio-serial")
        if is_numbered and address.controller >= CONTROLLERS_MAX:
            yield _error(f"A device names controller {address.controller}", CONTROLLERS_MAX - 1, device.line)


def _controllers_too_large(dom: DomainFields) -> Iterator[ConfigUnsupportedError]:
    for controller in dom.controllers:
        index, ports = controller.index or 0, controller.ports or 0
        if controller.is_pci and index > PCI_INDEX_MAX:
            yield ConfigUnsupportedError(f"PCI controller index {index} is too high", line=controller.line)
        if index >= CONTROLLERS_MAX:
            yield _error(f"A controller has index {index}", CONTROLLERS_MAX - 1, controller.line)
        if controller.type == "usb" and ports > USB_PORTS_MAX:
            yield _error(f"A USB controller has {ports} ports", USB_PORTS_MAX, controller.line)
        if controller.type == "virtio-serial" and ports > SERIAL_PORTS_MAX:
            yield _error(f"A virtio-serial controller has {ports} ports", SERIAL_PORTS_MAX, controller.line)


def _error(what: str, most: int, line: int | None) -> ConfigUnsupportedError:
    return ConfigUnsupportedError(f"{what}, more than the limit of {most}", line=line)
