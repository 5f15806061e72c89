# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The simulated kernel answers as the real ones did: ``kernel_answers*.json`` is what the lab recorded.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pyhostdev.errors import SysfsError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.pciaddress import PCIDeviceAddress

sys.path.insert(0, str(Path(__file__).parent))
import kernel_scripts

TREE = Path(__file__).with_name("lab.tree")


class Simulated:
    """A fake host of the lab's kind, as the scripts see it."""

    def __init__(self, directory: Path, release: str) -> None:
        tree = directory / "lab.tree"
        tree.write_text(f"release {release}\n{TREE.read_text()}")
        self.host = FakeHost.from_tree(tree, directory / "host")
        self.kernel = SimulatedKernel(self.host.root, raw=True)  # the scripts write as a shell does

    def _device(self, address: str, name: str) -> Path:
        return Path(self.host.root.pci_devices) / address / name

    def write(self, path: str, value: bytes) -> str:
        device = PCIDeviceAddress.parse(kernel_scripts.NIC0)
        try:
            self.kernel.write(os.path.join(self.host.root.pci_bus, path), value, device=device)
        except SysfsError as err:
            return errno.errorcode[err.errno or 0]
        return "ok"

    def driver(self, address: str) -> str | None:
        link = self._device(address, "driver")
        return link.readlink().name if link.is_symlink() else None

    def override(self, address: str) -> str:
        text = self._device(address, "driver_override").read_bytes()
        return text.removesuffix(b"\n").decode(errors="backslashreplace")

    def hold(self, address: str) -> AbstractContextManager[int]:
        return self.kernel.open_group(int(self._device(address, "iommu_group").readlink().name))


@pytest.mark.parametrize("release", ["6.1.0-50-amd64", "7.2.13-lab"])
@pytest.mark.parametrize("script", kernel_scripts.SCRIPTS, ids=lambda script: script.name)
def test_simulated_kernel_answers_as_the_real_one(script: kernel_scripts.Script, release: str, tmp_path: Path) -> None:
    """
    Every script gets the errnos, the driver and the override that the lab's kernel gave it.
    """
    assert kernel_scripts.recorded(release)[script.name] == kernel_scripts.run(script, Simulated(tmp_path, release))
