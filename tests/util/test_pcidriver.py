# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moving a function between drivers: the order of writes, verification, and one contract for all writers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import DeviceMissingError, InDoubtError, OperationError, PCIDeviceAddress, SysfsError
from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.testing.faults import Hang, Interfere
from pyhostdev.util.pcidriver import Binding, DriverMover, read_binding
from pyhostdev.util.sysfs_writer import ForkedWriter, SysfsWriter

ADDRESS = PCIDeviceAddress(1, 9, 0, 1)


def mover_of(fake: FakeHost) -> DriverMover:
    return DriverMover(fake.root, fake.kernel)


def shown(fake: FakeHost) -> tuple[str | None, str | None]:
    now = read_binding(fake.root, ADDRESS)
    return now.driver, now.override


def test_detach_writes_override_unbind_bind(bcm5719: FakeHost) -> None:
    """The override is written before the unbind, and the bind names its driver: no other driver can take the device."""
    mover_of(bcm5719).detach(ADDRESS, read_binding(bcm5719.root, ADDRESS), "vfio-pci")
    written = [(os.path.basename(e.path), e.value) for e in bcm5719.kernel.trace]
    assert [("driver_override", b"vfio-pci"), ("unbind", b"0001:09:00.1"), ("bind", b"0001:09:00.1")] == written
    assert ("vfio-pci", "vfio-pci") == shown(bcm5719)


@pytest.mark.parametrize("override", [None, "tg3", "vfio-pci"])
@pytest.mark.parametrize("driver", ["tg3", None])
def test_give_back_restores_driver_and_override(bcm5719: FakeHost, driver: str | None, override: str | None) -> None:
    """Any recorded pair of driver and override is restored."""
    mover = mover_of(bcm5719)
    if driver is None:
        mover.unbind(ADDRESS)
    mover.set_override(ADDRESS, override)
    before = bcm5719.snapshot()
    original = read_binding(bcm5719.root, ADDRESS)
    mover.detach(ADDRESS, original, "vfio-pci")
    mover.give_back(ADDRESS, original)
    assert (driver, override) == shown(bcm5719)
    assert before == bcm5719.snapshot()


def test_give_back_of_what_was_not_touched_writes_nothing(bcm5719: FakeHost) -> None:
    """Restoring is idempotent."""
    mover_of(bcm5719).give_back(ADDRESS, read_binding(bcm5719.root, ADDRESS))
    assert [] == bcm5719.kernel.trace


def test_dynamic_id_does_not_steal_the_device(fakehost: Callable[[str], FakeHost]) -> None:
    """With the card's id on vfio-pci, a probe would bind the function to vfio-pci again; a bind by name does not."""
    text = Path(HOSTS, "bcm5719.tree").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("driver vfio-pci")]
    fake = fakehost("driver vfio-pci\n" + "\n".join(lines) + "\n")  # registered first, as ids= at boot makes it
    mover = mover_of(fake)
    original = read_binding(fake.root, ADDRESS)
    mover.detach(ADDRESS, original, "vfio-pci")
    fake.kernel.write(f"{fake.root.pci_driver('vfio-pci')}/new_id", b"14e4 1657", device=ADDRESS)
    mover.give_back(ADDRESS, original)
    assert ("tg3", None) == shown(fake)


def test_interference_is_reported(bcm5719: FakeHost) -> None:
    """A foreign change of the override after our last write is detected."""
    path = f"{bcm5719.root.pci_device(ADDRESS)}/driver_override"
    bcm5719.kernel.inject(3, Interfere(lambda other: other.write(path, b"pci-stub", device=ADDRESS)))
    with pytest.raises((OperationError, SysfsError)):
        mover_of(bcm5719).detach(ADDRESS, read_binding(bcm5719.root, ADDRESS), "vfio-pci")


def test_another_device_at_the_address_is_noticed(bcm5719: FakeHost) -> None:
    """An inode that changed means another device, even when driver and override are right."""
    before = read_binding(bcm5719.root, ADDRESS)._replace(incarnation=1)
    with pytest.raises(OperationError) as error:
        mover_of(bcm5719).detach(ADDRESS, before, "vfio-pci")
    assert "changed-device" == error.value.reason


def test_missing_device_is_device_missing(bcm5719: FakeHost) -> None:
    """Libvirt's number for a device that is not there is 99."""
    with pytest.raises(DeviceMissingError) as error:
        read_binding(bcm5719.root, PCIDeviceAddress(7, 0, 0, 0))
    assert (99, "device-missing") == (error.value.libvirt_code, error.value.reason)


def test_literal_null_is_unset(bcm5719: FakeHost) -> None:
    """The kernel prints an unset override as (null)."""
    assert isinstance(read_binding(bcm5719.root, ADDRESS), Binding)
    assert read_binding(bcm5719.root, ADDRESS).override is None


@pytest.fixture(params=["forked", "simulated"])
def writer(request: pytest.FixtureRequest, bcm5719: FakeHost, tmp_path: Path) -> SysfsWriter:
    """Both writers on the same tree."""
    if request.param == "forked":
        return ForkedWriter(bcm5719.root, timeout_s=5, inflight_dir=str(tmp_path / "in-flight"))
    return bcm5719.kernel


def test_contract_a_value_is_written_whole(bcm5719: FakeHost, writer: SysfsWriter) -> None:
    """Every writer: the attribute holds the value afterwards."""
    path = f"{bcm5719.root.pci_device(ADDRESS)}/driver_override"
    writer.write(path, b"vfio-pci\n", device=ADDRESS)
    assert b"vfio-pci\n" == Path(path).read_bytes()[:9]
    assert not writer.is_in_flight(ADDRESS)


def test_contract_a_missing_attribute_is_enoent(bcm5719: FakeHost, writer: SysfsWriter) -> None:
    """Every writer: SysfsError with errno and path, and no file is made."""
    path = f"{bcm5719.root.pci_drivers}/nonsense/bind"
    with pytest.raises(SysfsError) as error:
        writer.write(path, b"0001:09:00.1", device=ADDRESS)
    assert (errno.ENOENT, path, ADDRESS) == (error.value.errno, error.value.filename, error.value.address)
    assert not os.path.exists(path)


def test_hang_leaves_the_device_in_doubt(bcm5719: FakeHost) -> None:
    """Until a hanging write returns, all further writes to the device are refused."""
    bcm5719.kernel.inject(2, Hang())
    mover = mover_of(bcm5719)
    original = read_binding(bcm5719.root, ADDRESS)
    for _ in range(2):
        with pytest.raises(OperationError) as error:
            mover.detach(ADDRESS, original, "vfio-pci")
        assert "in-doubt" == error.value.reason
    bcm5719.kernel.complete()
    mover.give_back(ADDRESS, original)
    assert ("tg3", None) == shown(bcm5719)


def test_binding_is_not_read_while_a_write_is_in_flight(bcm5719: FakeHost) -> None:
    """During a write the device is in doubt; the override is not opened, because reading it might hang, too."""
    override = Path(bcm5719.root.pci_device(ADDRESS), "driver_override")
    before = override.read_bytes()
    bcm5719.kernel.inject(1, Hang())
    mover = mover_of(bcm5719)
    with pytest.raises(InDoubtError):
        mover.unbind(ADDRESS)
    override.unlink()
    override.symlink_to(override.name)  # opening it gives ELOOP
    with pytest.raises(InDoubtError) as error:
        mover.read_binding(ADDRESS)
    assert ("in-doubt", ADDRESS) == (error.value.reason, error.value.address)
    with pytest.raises(SysfsError):
        read_binding(bcm5719.root, ADDRESS)
    override.unlink()
    override.write_bytes(before)
    bcm5719.kernel.complete()
    assert (None, None) == mover.read_binding(ADDRESS)[:2]
