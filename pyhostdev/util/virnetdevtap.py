# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Tap devices: host interfaces whose other end is a descriptor.

A tap vanishes with the last program that has it open, so a crash leaves none behind.

Mirrors: src/util/virnetdevtap.c
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import ExitStack

from pyhostdev.util.charnode import is_tun, open_character_device
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virnetdev import doing, request

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000

GENERATED = "vnet%d"  # the kernel inserts the first free number


class Tap(NamedTuple):
    """A tap device, with one descriptor per queue."""

    name: str
    fds: tuple[int, ...]


def open_tap(path: str, name: str | None, *, queues: int = 1, has_header: bool = False, is_new: bool = True) -> Tap:
    """
    Open a tap device; the caller closes its descriptors.

    Args:
        path: the node of the kernel's driver.
        name: of the interface; None lets the kernel choose one.
        has_header: packets start with the virtio-net header, which carries offloads.
        is_new: True if the interface must not exist yet, False if it must exist.

    Raises:
        OperationError: the kernel refuses.
    """
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if has_header else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    with ExitStack() as undo, doing("open the tap", name or GENERATED):
        for number in range(queues):
            fds.append(open_character_device(path, "the node of taps", is_tun))
            undo.callback(os.close, fds[-1])
            once = _IFF_TUN_EXCL if is_new and number == 0 else 0
            name = _attach(fds[-1], name or GENERATED, flags | once)
        undo.pop_all()
    return Tap(str(name), tuple(fds))


def _attach(fd: int, name: str, flags: int) -> str:
    """Connect a descriptor with an interface, and return the interface's name."""
    answer = fcntl.ioctl(fd, _TUNSETIFF, request(name, "H", flags))
    return os.fsdecode(struct.unpack_from("=16s", answer)[0].rstrip(b"\0"))


def set_up_macvtap(fd: int, *, has_header: bool, queues: int) -> None:
    """
    Configure the packet format of a macvtap's descriptor.

    Raises:
        OSError: the kernel refuses.

    Mirrors: virNetDevMacVLanTapSetup (src/util/virnetdevmacvlan.c)
    """
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if has_header else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fcntl.ioctl(fd, _TUNSETIFF, request("", "H", flags))
