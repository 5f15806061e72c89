# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The descriptors of a guest's devices that QEMU inherits: taps, vhost, vDPA, vsock and USB nodes.

QEMU's user needs no permission to open them. When the guest has ended, all are closed and their set-up is undone.

Mirrors: qemuProcessPrepareHostNetwork, qemuProcessOpenVhostVsock (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.hostdev_conf import USBSource
from pyhostdev.errors import OperationError
from pyhostdev.hypervisor.usb_journal import USBJournal
from pyhostdev.qemu.qemu_alias import assign_aliases
from pyhostdev.qemu.qemu_command.misc import VSOCK_CID_MIN
from pyhostdev.qemu.qemu_command.net import TAP_TYPES
from pyhostdev.qemu.qemu_hostdev import find_usb_devices
from pyhostdev.qemu.qemu_process.interface import InterfaceConnector, open_vhosts
from pyhostdev.util.charnode import USB_MAJOR, open_character_device
from pyhostdev.util.undo import UndoOnExit
from pyhostdev.util.virfile import read_link_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host

_VHOST_VSOCK_SET_GUEST_CID = 0x4008AF60  # linux/vhost.h
_TRIES_MAX = 1 << 16  # guests on one host


class DeviceDescriptors(UndoOnExit):
    """
    The descriptors of one guest's devices; on exit they are closed.

    Entering stores the chosen CID in the domain's ``<vsock>``.

    Raises:
        OperationError: a device cannot be opened or connected; the others are closed again.
    """

    def __init__(self, dom: DomainDef, host: Host) -> None:
        super().__init__()
        self.dom = dom
        self.host = host
        self._open: dict[tuple[str, str], list[int]] = {}
        self._inherited: list[int] = []
        self.links_down: list[str] = []  # aliases of network cards whose link is down at the start

    def _begin(self, undo: contextlib.ExitStack) -> None:
        named = self.dom.copy()
        assign_aliases(named)
        cards = (net for net in named.interfaces if net.hostdev is None)  # of a host device, the PF switches the link
        self.links_down = [str(net.info.alias) for net in cards if net.link_state == "down"]
        for disk in named.disks:
            if disk.type == "vhostvdpa" and disk.source is not None:
                self._add("vdpa", disk, [self._opened(str(disk.source.dev), "the vDPA device", self._is_vdpa, undo)])
        self._connect_interfaces(named, undo)
        self._open_usb(named, undo)
        self._open_vsock(named, undo)

    def fd(self, purpose: str, device: Any) -> int:
        """Return the next descriptor for a purpose of a device."""
        return self._open[purpose, str(device.info.alias)].pop(0)

    @property
    def fds(self) -> list[int]:
        """All descriptors that QEMU inherits."""
        return list(self._inherited)

    def _add(self, purpose: str, device: Any, fds: list[int]) -> None:
        self._open[purpose, str(device.info.alias)] = list(fds)
        self._inherited += fds

    def _connect_interfaces(self, named: DomainDef, undo: contextlib.ExitStack) -> None:
        connector = InterfaceConnector(self.host, named.name or "", undo)
        for number, net in enumerate(named.interfaces):
            if net.type in TAP_TYPES:
                self._add("tap", net, list(connector.connect(net).fds))
                self._connect_vhost(named, number, undo)
            elif net.type == "vdpa" and net.source is not None:
                self._add("vdpa", net, [self._opened(str(net.source.dev), "the vDPA device", self._is_vdpa, undo)])
        self._inherited += connector.lock_fds

    def _connect_vhost(self, named: DomainDef, number: int, undo: contextlib.ExitStack) -> None:
        """Open vhost for an interface; without it, QEMU itself moves the packets."""
        net = named.interfaces[number]
        fds = open_vhosts(named, net, self.host.root)
        for fd in fds:
            undo.callback(os.close, fd)
        if fds:
            self._add("vhost", net, fds)
        elif net.is_virtio:
            self.dom.interfaces[number].driver_name = "qemu"

    def _opened(self, path: str, what: str, is_expected: Callable[[int, int], bool], undo: contextlib.ExitStack) -> int:
        fd = open_character_device(path, what, is_expected)
        undo.callback(os.close, fd)
        return fd

    def _is_vdpa(self, major: int, minor: int) -> bool:
        root = self.host.root
        return (read_link_name(root, root.character_device(major, minor)) or "").startswith("vhost-vdpa")

    def _open_usb(self, named: DomainDef, undo: contextlib.ExitStack) -> None:
        find_usb_devices(named, self.host)
        journal = USBJournal(self.host)
        for hostdev in named.hostdevs:
            source = hostdev.source_def
            if isinstance(source, USBSource) and source.bus is not None and source.device is not None:
                lock = journal.give(named.name or "", source.bus, source.device, undo)
                self._inherited += [] if lock is None else [lock]
                path = self.host.root.usb_node(source.bus, source.device)
                self._add("usb", hostdev, [self._opened(path, "the USB device", _is_usb, undo)])

    def _open_vsock(self, named: DomainDef, undo: contextlib.ExitStack) -> None:
        """
        Open the vsock node and reserve a CID.

        Mirrors: virVsockSetGuestCid, virVsockAcquireGuestCid (src/util/virvsock.c)
        """
        if named.vsock is None or self.dom.vsock is None:
            return
        fd = self._opened(self.host.root.dev_vhost_vsock, "the node of <vsock>", _is_any, undo)
        self.dom.vsock.cid_address = _take_cid(fd, named.vsock.cid_address)
        self._add("vsock", named.vsock, [fd])


def _is_usb(major: int, _minor: int) -> bool:
    return major == USB_MAJOR


def _is_any(_major: int, _minor: int) -> bool:
    """Accept any device number: the path is fixed, and the kernel assigns the number."""
    return True


def _take_cid(fd: int, wanted: int | None) -> int:
    """
    Reserve a CID on vsock: the wanted one, or the first free one.

    Raises:
        OperationError: another guest has the CID, or no CID is free.
    """
    for cid in (wanted,) if wanted else range(VSOCK_CID_MIN, VSOCK_CID_MIN + _TRIES_MAX):
        try:
            fcntl.ioctl(fd, _VHOST_VSOCK_SET_GUEST_CID, struct.pack("=Q", cid))
        except OSError as err:
            if wanted or err.errno != errno.EADDRINUSE:
                raise OperationError(f"Cannot reserve the vsock CID {cid}: {err.strerror or err}") from err
        else:
            return cid
    raise OperationError("No vsock CID is free")
