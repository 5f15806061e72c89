# SPDX-License-Identifier: LGPL-2.1-or-later
"""After any sequence of writes, the tree is consistent and can be restored."""

from __future__ import annotations

import os
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import examples

from pyhostdev.errors import HostdevError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.simdevice import list_devices
from pyhostdev.testing.tree import Tree
from pyhostdev.util.pciaddress import PCIDeviceAddress

CARD = [f"0001:09:00.{function}" for function in range(4)]
DRIVERS = ["tg3", "vfio-pci", "pci-stub", "nvme", "nosuch"]

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

addresses = st.sampled_from([*CARD, "0001:07:00.0", "0001:08:00.0", "0009:00:00.0"])
drivers = st.sampled_from(DRIVERS)
writes = st.one_of(
    st.tuples(addresses, drivers.map(str.encode)).map(lambda a: (f"devices/{a[0]}/driver_override", a[1])),
    addresses.map(lambda address: (f"devices/{address}/driver_override", b"\n")),
    st.tuples(drivers, addresses).map(lambda a: (f"drivers/{a[0]}/bind", a[1].encode())),
    st.tuples(drivers, addresses).map(lambda a: (f"drivers/{a[0]}/unbind", a[1].encode())),
    addresses.map(lambda address: (f"devices/{address}/driver/unbind", address.encode())),
    addresses.map(lambda address: ("drivers_probe", address.encode())),
    addresses.map(lambda address: (f"devices/{address}/remove", b"1")),
    st.just(("rescan", b"1")),
)


def write(fake: FakeHost, where: str, value: bytes) -> None:
    """Write as a shell does, and ignore a refusal."""
    try:
        fake.kernel.foreign().write(fake.root.join("sys/bus/pci", where), value, device=PCIDeviceAddress(0, 0, 0, 0))
    except HostdevError as err:
        assert err.errno is not None  # type: ignore[attr-defined]


def check(fake: FakeHost) -> None:
    """The links between drivers, functions, groups and nodes agree in both directions."""
    with Tree(fake.root) as tree:
        _check(fake, tree)


def _check(fake: FakeHost, tree: Tree) -> None:
    list_dir = tree.list_dir
    listed = {
        (name, driver)
        for driver in list_dir(fake.root.pci_drivers)
        for name in list_dir(fake.root.pci_driver(driver))
        if name.count(":") == 2
    }
    devices = list_devices(tree)
    assert listed == {(str(d.address), d.driver) for d in devices if d.driver}
    members = {
        (name, int(group))
        for group in list_dir(fake.root.iommu_groups)
        for name in list_dir(fake.root.iommu_group_devices(int(group)))
    }
    assert members == {(str(d.address), d.group) for d in devices}
    vfio = [d for d in devices if d.driver == "vfio-pci"]
    assert {str(d.group) for d in vfio} == {name for name in list_dir(fake.root.dev_vfio) if name != "vfio"}
    for device in devices:
        assert (device.driver == "vfio-pci") == os.path.isdir(device.join("vfio-dev"))
        shown = (device.read("uevent") or b"").startswith(f"DRIVER={device.driver}\n".encode())
        assert shown == (device.driver is not None)


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(writes, max_size=12))
def test_tree_never_contradicts_itself(sequence: list[tuple[str, bytes]]) -> None:
    """The invariants hold after every write, and at the end the tree can be restored completely."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        fake = FakeHost.named("bcm5719", directory)
        before = fake.snapshot()
        for where, value in sequence:
            write(fake, where, value)
            check(fake)
        write(fake, "rescan", b"1")
        for address, spec in fake.spec.functions.items():
            write(fake, f"devices/{address}/driver/unbind", str(address).encode())
            write(fake, f"devices/{address}/driver_override", (spec.driver or "\n").encode())
            write(fake, f"drivers/{spec.driver}/bind", str(address).encode())
            write(fake, f"devices/{address}/driver_override", b"\n")
        assert before == fake.snapshot()
