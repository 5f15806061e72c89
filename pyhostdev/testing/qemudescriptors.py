# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The descriptors that a simulated QEMU received over its monitor and that no command has used yet, and its iommufds.

Source: monitor/fds.c, backends/iommufd.c (QEMU 11.1)
"""

from __future__ import annotations

import os
from typing import Any

from pyhostdev.testing.qemuslots import QMPRefusal

_IOMMUFD_SINCE = (9, 0)
_MISSING = "Could not parse object fd {0}: File descriptor named '{0}' not found"


class NamedDescriptors:
    """The descriptors and iommufds of one QEMU."""

    def __init__(self) -> None:
        self.sent: list[int] = []  # not named yet
        self.names: dict[str, int] = {}
        self.iommufds: dict[str, int] = {}
        self.remembered: set[str] = set()  # the ids of devices that were refused after their node was taken

    def name(self, name: str) -> None:
        """
        Name the descriptor that was received last; an earlier one of this name is closed.

        Raises:
            QMPRefusal: no unnamed descriptor was received.
        """
        if not self.sent:
            raise QMPRefusal("No file descriptor supplied via SCM_RIGHTS")
        if name in self.names:
            os.close(self.names.pop(name))
        self.names[name] = self.sent.pop()

    def take(
        self, name: str, missing: str = "Could not parse object fd {0}: File descriptor named '{0}' not found"
    ) -> int:
        """
        Return the descriptor of a name, and forget the name.

        Raises:
            QMPRefusal: no descriptor has this name.
        """
        if name not in self.names:
            raise QMPRefusal(missing.format(name))
        return self.names.pop(name)

    def check(self, properties: dict[str, Any]) -> None:
        """
        Check a device's properties about iommufd.

        Raises:
            QMPRefusal: a node without an iommufd, or an unknown iommufd.
        """
        iommufd = properties.get("iommufd")
        if iommufd is None and "fd" in properties:
            raise QMPRefusal("Use FD passing only with iommufd backend")
        if iommufd is not None and iommufd not in self.iommufds:
            raise QMPRefusal(f"Device '{iommufd}' not found", "DeviceNotFound")

    def add_iommufd(self, properties: dict[str, Any], version: tuple[int, int]) -> None:
        """
        Add an iommufd on a descriptor.

        Raises:
            QMPRefusal: this QEMU has no iommufd, or the name is taken.
        """
        kind, name = properties.get("qom-type"), str(properties.get("id"))
        if kind != "iommufd" or version < _IOMMUFD_SINCE:
            raise QMPRefusal(f"Invalid parameter '{kind}'")
        if name in self.iommufds:
            raise QMPRefusal(f"attempt to add duplicate property '{name}' to object (type 'container')")
        self.iommufds[name] = self.take(str(properties.get("fd")))

    def close(self) -> None:
        """Close all descriptors, as the end of the process does."""
        for fd in (*self.sent, *self.names.values(), *self.iommufds.values()):
            os.close(fd)
        self.sent.clear()
        self.names.clear()
        self.iommufds.clear()
