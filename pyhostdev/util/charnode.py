# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Open character devices that a definition names, with this process's privileges, for QEMU.

The kind of device is checked first: a path in a definition could name a disk, which root may open and QEMU must not
get.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pyhostdev.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

# Documentation/admin-guide/devices.txt
TUN = (10, 200)
VHOST_NET = (10, 238)
USB_MAJOR = 189


def open_character_device(path: str, what: str, is_expected: Callable[[int, int], bool]) -> int:
    """
    Open a character device for reading and writing; the caller closes the descriptor.

    Args:
        what: the purpose of the device, as the object of "Cannot open".
        is_expected: decides by the major and minor number, before the device is opened.

    Raises:
        OperationError: the path is another kind of file, or the kernel refuses.
    """
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return _open_checked(place, is_expected)
        finally:
            os.close(place)
    except OSError as err:
        raise OperationError(f"Cannot open {what} '{path}': {err.strerror or err}") from err


def _open_checked(place: int, is_expected: Callable[[int, int], bool]) -> int:
    facts = os.fstat(place)
    numbers = os.major(facts.st_rdev), os.minor(facts.st_rdev)
    if not stat.S_ISCHR(facts.st_mode) or not is_expected(*numbers):
        raise OSError(errno.ENODEV, "it is another kind of file")
    # Opens the file that was checked, even if the path has changed
    return os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_CLOEXEC)


def is_tun(*numbers: int) -> bool:
    """True for ``/dev/net/tun``."""
    return numbers == TUN


def is_vhost_net(*numbers: int) -> bool:
    """True for ``/dev/vhost-net``."""
    return numbers == VHOST_NET
