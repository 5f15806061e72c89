# SPDX-License-Identifier: LGPL-2.1-or-later
"""A listing by pyudev, the library that management agents use, equals ours on the machine that runs the tests."""

from __future__ import annotations

from typing import Any

import pytest

import pyhostdev

pyudev = pytest.importorskip("pyudev")


@pytest.fixture(scope="module")
def devices() -> dict[str, Any]:
    found = {device.sys_name: device for device in pyudev.Context().list_devices(subsystem="pci")}
    if not found:
        pytest.skip("this machine has no PCI functions")
    return found


def test_same_functions(devices: dict[str, Any]) -> None:
    """Both list the same addresses."""
    assert sorted(devices) == sorted(str(dev.address) for dev in pyhostdev.scan())


def test_same_facts(devices: dict[str, Any]) -> None:
    """Ids, class and driver are those of the uevent; the node device has udev's path and its parent."""
    host = pyhostdev.Host()
    for dev in host.scan():
        other, node = devices[str(dev.address)], host.node_device(dev.address)
        assert node is not None
        assert other.properties["PCI_ID"] == f"{dev.vendor:04X}:{dev.device:04X}"
        assert int(other.properties["PCI_CLASS"], 16) == dev.class_
        assert (other.driver, other.sys_path) == (dev.driver, node.path)
        above = other.find_parent("pci")
        names = {f"pci_{name.translate(str.maketrans(':.', '__'))}": name for name in devices}
        assert (above.sys_name if above is not None else None) == names.get(node.parent)
