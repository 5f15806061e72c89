# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VFIO driver for a function: the best match of the aliases, the names of drivers and modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyhostdev import ConfigError, Host, HostdevManager, OperationError, RefusedError
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.vfiodriver import DriverChoice, VFIODrivers, parse_aliases

Build = Callable[[str], FakeHost]

NIC, DISK = "0000:01:00.0", "0000:02:00.0"
TREE = """\
driver mlx5_core 15b3:101e
driver nvme class:010802
driver vfio-pci
driver pci-stub builtin
driver mlx5_vfio_pci 15b3:101e
driver any_vfio_pci 15b3:* class:02
driver xe-vfio-pci 8086:e20b available
0000:01:00.0 15b3:101e 020000 driver=mlx5_core group=1 express=endpoint flr
0000:02:00.0 8086:e20b 010802 driver=nvme group=2 express=endpoint flr
0000:03:00.0 1b36:0010 010802 driver=nvme group=3 express=endpoint flr
0000:04:00.0 15b3:6001 070000 group=4 nodriver
0000:05:00.0 1af4:1041 020000 group=5 nodriver
"""


def choose(fake: FakeHost, address: str, name: str | None = None) -> DriverChoice:
    dev = Host(fake.root).pci_device(address)
    assert dev is not None
    return VFIODrivers(fake.root).choose(dev, name)


@pytest.mark.parametrize(
    ("address", "driver", "module"),
    [
        (NIC, "mlx5_vfio_pci", None),  # vendor and device are better than vendor alone, and than a class
        (DISK, "xe_vfio_pci", "xe_vfio_pci"),  # the module is not loaded, so its driver has no name yet
        ("0000:03:00.0", "vfio-pci", None),
        ("0000:04:00.0", "any_vfio_pci", None),
        ("0000:05:00.0", "any_vfio_pci", None),  # by its class
    ],
)
def test_best_match_has_the_fewest_wildcards(fakehost: Build, address: str, driver: str, module: str | None) -> None:
    """Each function gets the driver whose alias matches it best."""
    assert (driver, module) == choose(fakehost(TREE), address)[:2]


def test_first_of_equal_matches_is_taken(fakehost: Build) -> None:
    """Of two modules for the same device, the first of the list is taken."""
    fake = fakehost(TREE.replace("driver mlx5_vfio_pci", "driver first_vfio_pci 15b3:101e\ndriver mlx5_vfio_pci"))
    assert "first_vfio_pci" == choose(fake, NIC).driver


def test_reason_names_the_alias(fakehost: Build) -> None:
    """The choice of a variant says which line it comes from; vfio-pci needs no reason."""
    fake = fakehost(TREE)
    assert "the best match of modules.alias, vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*" == choose(fake, NIC).why
    assert "" == choose(fake, "0000:03:00.0").why


@pytest.mark.parametrize("name", ["xe_vfio_pci", "xe-vfio-pci"])
def test_driver_named_unlike_its_module(fakehost: Build, name: str) -> None:
    """A name may be that of the driver or of the module; the answer is the registered driver."""
    fake = fakehost(TREE.replace(" available", ""))
    assert "xe-vfio-pci" == choose(fake, NIC, name).driver
    assert "mlx5_vfio_pci" == choose(fake, NIC, "mlx5-vfio-pci").driver


def test_before_variants_were_chosen(fakehost: Build) -> None:
    """A release without variants takes vfio-pci for every device."""
    fake = fakehost(TREE)
    dev = Host(fake.root).pci_device(NIC)
    assert dev is not None
    assert "vfio-pci" == VFIODrivers(fake.root, variants=False).choose(dev).driver


def test_lines_that_are_not_aliases_of_vfio_drivers() -> None:
    """Comments, other buses, broken lines and a missing newline at the end do no harm."""
    lines = [
        b"# Aliases",
        b"alias pci:v*d*sv*sd*bc*sc*i* ordinary",
        b"alias vfio_pci:v*d* broken",
        b"alias vfio_pci:d*v*sv*sd*bc*sc*i* out_of_order",
        b"alias vfio_pci:v*d*sv*sd*bc*sc*i** more_than_a_field",
        b"alias vfio_pci:v00001af4d*sv*sd*bc*sc*i* small_letters",
        b"alias vfio_pci:v*d*sv*sd*bc*sc*i* two words",
        b"alias vfio_pci:v*d*sv*sd*bc*sc*i* ",
        b"alias vfio_pci:v00001AF4d00001041sv*sd*bc*sc*i* virtio_vfio_pci",
    ]
    (alias,) = parse_aliases(b"\n".join(lines))
    assert ("virtio_vfio_pci", 5) == (alias.module, alias.wildcards)
    assert [] == parse_aliases(b"")


def test_module_is_loaded_and_the_record_has_the_real_name(fakehost: Build) -> None:
    """The driver's name is known only after its module is loaded, and the record takes that."""
    fake = fakehost(TREE)
    before = fake.snapshot()
    manager = HostdevManager(Host(fake.root, writer=fake.kernel))
    manager.nodedev_detach(DISK)
    (record,) = manager.journal.read()[0].values()
    dev = manager.host.pci_device(DISK)
    assert dev is not None
    assert ("xe-vfio-pci", "xe-vfio-pci") == (record.target, dev.driver)
    manager.nodedev_reattach(DISK)
    loaded = {name for name in fake.snapshot() if "xe" in name}
    assert before == {name: value for name, value in fake.snapshot().items() if name not in loaded}


def test_variant_that_is_not_for_the_device(fakehost: Build) -> None:
    """The kernel would bind it; so would it a host driver that a definition names."""
    fake = fakehost(TREE.replace(" available", ""))
    manager = HostdevManager(Host(fake.root, writer=fake.kernel))
    before = fake.snapshot()
    for name in ("xe-vfio-pci", "xe_vfio_pci", "nvme"):
        with pytest.raises(RefusedError) as refusal:
            manager.nodedev_detach(NIC, name)
        assert "driver-mismatch" == refusal.value.reason
    assert before == fake.snapshot()
    manager.nodedev_detach(NIC, "pci-stub")
    manager.nodedev_detach(NIC, "vfio-pci")


def test_name_that_no_driver_can_have(fakehost: Build) -> None:
    """The number is libvirt's for a module that cannot be loaded."""
    with pytest.raises(ConfigError) as refusal:
        choose(fakehost(TREE), NIC, "a b")
    assert VIR_ERR_INTERNAL_ERROR == refusal.value.libvirt_code


def test_variant_that_is_not_installed(fakehost: Build) -> None:
    """An alias whose module is missing is an obstacle, with libvirt's number; nothing is touched."""
    fake = fakehost(TREE)
    where = fake.root.modules_dep(fake.spec.release)
    with open(where) as file:
        text = file.read()
    with open(where, "w") as file:
        file.write(text.replace("kernel/drivers/xe-vfio-pci.ko:\n", ""))
    manager = HostdevManager(Host(fake.root, writer=fake.kernel))
    with pytest.raises(RefusedError) as refusal:
        manager.nodedev_detach(DISK)
    assert ("driver-missing", VIR_ERR_INTERNAL_ERROR) == (refusal.value.reason, refusal.value.libvirt_code)
    assert 0 == fake.kernel.writes


def test_module_without_a_driver(fakehost: Build) -> None:
    """A module that registers no PCI driver is an error after it is loaded, and before a device is touched."""
    fake = fakehost(TREE)

    class Broken:
        """A kernel whose modules register nothing."""

        def __init__(self) -> None:
            self.write, self.is_in_flight = fake.kernel.write, fake.kernel.is_in_flight

        def load_module(self, name: str) -> None:
            """Load nothing."""

    manager = HostdevManager(Host(fake.root, writer=Broken()))
    with pytest.raises(OperationError, match="no PCI driver") as failure:
        manager.nodedev_detach(DISK)
    assert ("driver-missing", 0) == (failure.value.reason, fake.kernel.writes)
    assert {} == manager.journal.read()[0]
