# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fake host with short ways to write and to look."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pyhostdev.errors import InDoubtError, InvalidAddressError, SysfsError
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress

CARD = [f"0001:09:00.{function}" for function in range(4)]
OTHER = PCIDeviceAddress(0, 0, 0, 0)


class Bench:
    """One tree and one kernel; addresses and paths as short texts."""

    def __init__(self, root: HostRoot, kernel: SimulatedKernel) -> None:
        self.root = root
        self.kernel = kernel

    def write(self, where: str, value: bytes | str, *, kernel: SimulatedKernel | None = None) -> str:
        """Write below sys/bus/pci; return "ok", "in-doubt" or the errno's name."""
        data = value.encode() if isinstance(value, str) else value
        named = where.split("/")[1] if where.startswith("devices/") else data.decode("latin-1").strip()
        try:
            device = PCIDeviceAddress.parse(named)
        except InvalidAddressError:
            device = OTHER
        try:
            (kernel or self.kernel).write(self.root.join("sys/bus/pci", where), data, device=device)
        except SysfsError as err:
            return errno.errorcode[err.errno or 0]
        except InDoubtError:
            return "in-doubt"
        return "ok"

    def override(self, address: str, value: bytes | str = b"\n") -> str:
        return self.write(f"devices/{address}/driver_override", value)

    def bind(self, driver: str, address: str) -> str:
        return self.write(f"drivers/{driver}/bind", address)

    def unbind(self, driver: str, address: str) -> str:
        return self.write(f"drivers/{driver}/unbind", address)

    def to_vfio(self, *addresses: str) -> None:
        """Detach functions from whatever they have."""
        for address in addresses:
            assert "ok" == self.override(address, "vfio-pci")
            driver = self.driver(address)
            if driver is not None:
                assert "ok" == self.unbind(driver, address)
            assert "ok" == self.bind("vfio-pci", address)

    def read(self, address: str, name: str) -> bytes:
        with open(self.root.join("sys/bus/pci/devices", address, name), "rb") as file:
            return file.read()

    def driver(self, address: str) -> str | None:
        link = self.root.join("sys/bus/pci/devices", address, "driver")
        return os.path.basename(os.readlink(link)) if os.path.islink(link) else None

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root.join(path))


Benches = Callable[[str], Bench]  # makes the bench of a host by its name or its text
