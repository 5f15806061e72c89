# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The real kernel's answers to the scripts of ``kernel_scripts``, compared with those on record.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from labhost import NIC_DRIVER, NVME, PCI, check, driver, iommu_group, say

sys.path.insert(0, str(Path(__file__).parents[1]))
import kernel_scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

# Source: VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU (kernel, include/uapi/linux/vfio.h)
VFIO_GROUP_SET_CONTAINER = 0x3B68
VFIO_SET_IOMMU = 0x3B66
VFIO_TYPE1V2_IOMMU = 3


class RealKernel:
    """The kernel we run on."""

    def write(self, path: str, value: bytes) -> str:
        """One write, as the library does it."""
        try:
            fd = os.open(PCI / path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as err:
            return errno.errorcode[err.errno or 0]
        try:
            os.write(fd, value)
        except OSError as err:
            return errno.errorcode[err.errno or 0]
        finally:
            os.close(fd)
        return "ok"

    def driver(self, address: str) -> str | None:
        """The driver link's name."""
        return driver(address)

    def override(self, address: str) -> str:
        """The bytes of driver_override; what is not UTF-8 escaped."""
        text = (PCI / "devices" / address / "driver_override").read_bytes()
        return text.removesuffix(b"\n").decode(errors="backslashreplace")

    @contextmanager
    def hold(self, address: str) -> Iterator[None]:
        """Own the group's DMA as a VFIO user does before it asks for a device."""
        group = os.open(f"/dev/vfio/{iommu_group(address)}", os.O_RDWR)
        container = os.open("/dev/vfio/vfio", os.O_RDWR)
        try:
            fcntl.ioctl(group, VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
            fcntl.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU)
            yield
        finally:
            os.close(group)
            os.close(container)


HOME = {
    **{f"0000:01:00.{number}": NIC_DRIVER for number in range(4)},
    kernel_scripts.PORT: "pcieport",
    kernel_scripts.EDU: None,
    kernel_scripts.NVME: "nvme",
    **{f"0000:02:00.{number}": None for number in range(1, 5)},
}


def go_home(kernel: RealKernel) -> None:
    """Bring every function a script may move back to where it was."""
    for address, home in HOME.items():
        now = driver(address)
        if now != home and now is not None:
            kernel.write(f"drivers/{now}/unbind", address.encode())
        # always: an override of the text "(null)" reads like none
        kernel.write(f"devices/{address}/driver_override", b"\n")
        if home is not None and driver(address) is None:
            kernel.write(f"drivers/{home}/bind", address.encode())
        assert home == driver(address), f"{address} was not restored"


def real_answers() -> dict[str, list[str]]:
    """Run every script, each from the original state."""
    kernel = RealKernel()
    answers = {}
    for script in kernel_scripts.SCRIPTS:
        answers[script.name] = kernel_scripts.run(script, kernel)
        go_home(kernel)
    return answers


def same_answers() -> None:
    """The kernel answers every script as recorded; the simulated kernel is tested with the same record."""
    check([kernel_scripts.NVME], NVME, "the host is the one the scripts are about")
    answers = real_answers()
    kernel_scripts.record(answers, Path(os.environ["LAB_OUT"]) / "kernel_answers.json")
    expected = kernel_scripts.recorded(os.uname().release) if kernel_scripts.ANSWERS.exists() else {}
    other = [name for name in answers | expected if answers.get(name) != expected.get(name)]
    for name in other:
        say(f"    {name}: {answers.get(name)}, on record {expected.get(name)}")
    check([], other, f"{len(answers)} scripts are answered as on record")
