# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A keyboard of the lab's host that has no hardware: keys that a program presses, at an ordinary input node.

Source: linux/uinput.h, linux/input.h
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path
from types import TracebackType

UI_DEV_CREATE, UI_DEV_SETUP = 0x5501, 0x405C5503
UI_SET_EVBIT, UI_SET_KEYBIT = 0x40045564, 0x40045565
UI_GET_SYSNAME = 0x8040552C  # into 64 bytes
EVIOCGRAB = 0x40044590
EV_SYN, EV_KEY = 0, 1
KEY_A = 30
BUS_VIRTUAL = 6
EVENT = struct.Struct("@qqHHi")
NAME = "lab keyboard"


class Keyboard:
    """The keyboard, as a context manager; ``node`` is where programs of the host read it."""

    node = ""

    def __enter__(self) -> Keyboard:
        self._fd = os.open("/dev/uinput", os.O_WRONLY | os.O_CLOEXEC)
        fcntl.ioctl(self._fd, UI_SET_EVBIT, EV_KEY)
        for key in range(1, 128):
            fcntl.ioctl(self._fd, UI_SET_KEYBIT, key)
        name = NAME.encode().ljust(80, b"\0")
        fcntl.ioctl(self._fd, UI_DEV_SETUP, struct.pack("@4H80sI", BUS_VIRTUAL, 1, 1, 1, name, 0))
        fcntl.ioctl(self._fd, UI_DEV_CREATE)
        raw = fcntl.ioctl(self._fd, UI_GET_SYSNAME, bytes(64))
        (event,) = Path("/sys/devices/virtual/input", raw.rstrip(b"\0").decode()).glob("event*")
        self.node = f"/dev/input/{event.name}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def press(self, key: int = KEY_A) -> None:
        """Press a key and let it go."""
        for value in (1, 0):
            events = EVENT.pack(0, 0, EV_KEY, key, value) + EVENT.pack(0, 0, EV_SYN, 0, 0)
            os.write(self._fd, events)
            time.sleep(0.1)

    def is_grabbed(self) -> bool:
        """Tell whether a program has the keyboard for itself."""
        fd = os.open(self.node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, EVIOCGRAB, 1)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            return True
        finally:
            os.close(fd)  # which ends our own grab
        return False


def pressed(events: bytes) -> list[tuple[int, int]]:
    """Return key and value of each key event that a program has read."""
    whole = len(events) // EVENT.size * EVENT.size
    found = (EVENT.unpack_from(events, offset) for offset in range(0, whole, EVENT.size))
    return [(code, value) for _, _, kind, code, value in found if kind == EV_KEY]
