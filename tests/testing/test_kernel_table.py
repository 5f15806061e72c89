# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of write results, measured on real kernels: one test a row, named after it."""

from __future__ import annotations

import os

import pytest
from bench import Bench, Benches

from pyhostdev.testing.faults import Vanish
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.pciaddress import PCIDeviceAddress

F0, F1, F2, F3 = (f"0001:09:00.{function}" for function in range(4))
BRIDGE = "0001:08:00.0"


# driver_override


def test_override_4094_bytes_is_accepted(card: Bench) -> None:
    """A page less two bytes fits."""
    assert "ok" == card.override(F0, b"x" * 4094)
    assert b"x" * 4094 + b"\n" == card.read(F0, "driver_override")


@pytest.mark.parametrize("length", [4095, 4096, 5000])
def test_override_4095_bytes_is_einval_and_keeps_the_old(card: Bench, length: int) -> None:
    """A page less one byte is too long, and the old value stays."""
    card.override(F0, "vfio-pci")
    assert "EINVAL" == card.override(F0, b"x" * length)
    assert b"vfio-pci\n" == card.read(F0, "driver_override")


def test_override_zero_length_write_changes_nothing(card: Bench) -> None:
    """An empty write succeeds and never reaches the handler."""
    card.override(F0, "vfio-pci")
    assert "ok" == card.write(f"devices/{F0}/driver_override", b"", kernel=card.kernel.foreign())
    assert b"vfio-pci\n" == card.read(F0, "driver_override")


@pytest.mark.parametrize("value", [b"\n", b"\0"])
def test_override_newline_or_nul_clears(card: Bench, value: bytes) -> None:
    """One newline, or one NUL, unsets the override."""
    card.override(F0, "vfio-pci")
    assert "ok" == card.override(F0, value)
    assert b"(null)\n" == card.read(F0, "driver_override")


@pytest.mark.parametrize(("value", "kept"), [(b"name\n", b"name"), (b"a\nb", b"a"), (b"ab\0cd", b"ab")])
def test_override_is_kept_up_to_newline_or_nul(card: Bench, value: bytes, kept: bytes) -> None:
    """What follows the first newline or NUL is dropped."""
    assert "ok" == card.override(F0, value)
    assert kept + b"\n" == card.read(F0, "driver_override")


@pytest.mark.parametrize("value", [b" vfio-pci", b"vfio-pci "])
def test_override_spaces_are_verbatim_and_match_nothing(card: Bench, value: bytes) -> None:
    """A space is part of the name, so no driver has that name."""
    card.unbind("tg3", F0)
    card.override(F0, value)
    assert value + b"\n" == card.read(F0, "driver_override")
    assert "ENODEV" == card.bind("vfio-pci", F0)


def test_override_bytes_that_are_not_utf8(card: Bench) -> None:
    """Any byte is kept and read back."""
    assert "ok" == card.override(F0, b"\xff\xfe\x80")
    assert b"\xff\xfe\x80\n" == card.read(F0, "driver_override")


def test_override_unknown_driver_binds_nothing(card: Bench) -> None:
    """An unknown driver name is accepted, and keeps all drivers away."""
    card.unbind("tg3", F0)
    assert "ok" == card.override(F0, "nosuchdriver")
    assert "ok" == card.write("drivers_probe", F0)
    assert card.driver(F0) is None


def test_override_literal_null_reads_like_unset(card: Bench) -> None:
    """The text (null) is accepted, and looks like an unset override."""
    unset = card.read(F0, "driver_override")
    assert "ok" == card.override(F0, "(null)")
    assert unset == card.read(F0, "driver_override")


# unbind


@pytest.mark.parametrize("address", [F0, "0000:55:00.0"])
def test_unbind_of_a_device_not_bound_to_it_is_enodev(card: Bench, address: str) -> None:
    """A function of another driver, or of no driver, gives ENODEV."""
    assert "ENODEV" == card.unbind("vfio-pci", address)
    assert "tg3" == card.driver(F0)


@pytest.mark.parametrize(("suffix", "result"), [("\n", "ok"), ("\n\n", "ENODEV")])
def test_unbind_accepts_one_newline(card: Bench, suffix: str, result: str) -> None:
    """echo's newline is accepted; with two newlines the name is unknown."""
    assert result == card.unbind("tg3", F0 + suffix)


# bind


def test_bind_without_match_is_enodev(card: Bench) -> None:
    """A driver whose table lacks the device, and a driver other than the override."""
    assert "ENODEV" == card.bind("vfio-pci", F0)
    card.unbind("tg3", F0)
    card.override(F0, "vfio-pci")
    assert "ENODEV" == card.bind("tg3", F0)


@pytest.mark.parametrize("override", ["tg3", "vfio-pci"])
def test_bind_of_a_bound_device_is_ebusy(card: Bench, override: str) -> None:
    """Bound to that driver or to any other: EBUSY once the driver matches."""
    card.override(F0, override)
    assert "EBUSY" == card.bind(override, F0)
    assert "tg3" == card.driver(F0)


def test_bind_returns_the_probe_errno_for_a_bridge(card: Bench) -> None:
    """vfio-pci refuses a bridge with EINVAL, after its driver is gone."""
    card.override(BRIDGE, "vfio-pci")
    card.unbind("pcieport", BRIDGE)
    assert "EINVAL" == card.bind("vfio-pci", BRIDGE)
    assert card.driver(BRIDGE) is None


def test_bind_returns_the_probe_errno_for_a_pf_with_vfs(bench: Benches) -> None:
    """vfio-pci refuses a PF with VFs with EBUSY; it ends driverless and its VFs remain."""
    host = bench("sriov")
    host.override("0000:03:00.0", "vfio-pci")
    host.unbind("ixgbe", "0000:03:00.0")
    assert "EBUSY" == host.bind("vfio-pci", "0000:03:00.0")
    assert host.driver("0000:03:00.0") is None
    assert b"4\n" == host.read("0000:03:00.0", "sriov_numvfs")


def test_bind_while_user_space_owns_the_group_is_ebusy(card: Bench) -> None:
    """A host driver cannot have a member of a group that a guest has."""
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14, [PCIDeviceAddress.parse(F0)]):
        card.unbind("vfio-pci", F2)
        card.override(F2)
        assert "EBUSY" == card.bind("tg3", F2)
    assert "ok" == card.bind("tg3", F2)


def test_bind_with_deferred_probe_is_eagain(card: Bench) -> None:
    """A driver that is not ready defers its probe."""
    card.unbind("tg3", F0)
    card.kernel.change_driver("tg3", probe="defer")
    assert "EAGAIN" == card.bind("tg3", F0)
    assert card.driver(F0) is None


def test_bind_without_the_module_is_enoent(bench: Benches) -> None:
    """Without the module, the directory of its driver does not exist."""
    host = bench("non-pci-member")
    assert "ENOENT" == host.bind("vfio-pci", "0000:7d:00.0")


# drivers_probe


@pytest.mark.parametrize("name", ["0000:55:00.0", "09:00.0", F0 + "x", F0 + "\n\n", " " + F0])
def test_drivers_probe_of_another_name_is_enodev(card: Bench, name: str) -> None:
    """Unknown addresses, short forms and junk are not names."""
    assert "ENODEV" == card.write("drivers_probe", name)


def test_drivers_probe_without_match_is_a_success(card: Bench) -> None:
    """If no driver matches, the write succeeds and nothing is bound."""
    assert "ok" == card.write("drivers_probe", "0001:00:00.0")
    assert card.driver("0001:00:00.0") is None


def test_drivers_probe_with_failing_probe_is_a_success(card: Bench) -> None:
    """The driver's errno is not reported."""
    card.unbind("tg3", F0)
    card.kernel.change_driver("tg3", probe="EIO")
    assert "ok" == card.write("drivers_probe", F0)
    assert card.driver(F0) is None


def test_drivers_probe_of_a_bound_device_does_nothing(card: Bench) -> None:
    """For a bound function the write succeeds, whatever the override."""
    card.override(F0, "vfio-pci")
    assert "ok" == card.write("drivers_probe", F0)
    assert "tg3" == card.driver(F0)


def test_drivers_probe_while_an_unbind_is_stuck_is_a_success_at_once(card: Bench) -> None:
    """The device still counts as bound: nothing happens, and nothing waits."""
    card.to_vfio(*(F0, F1, F2, F3))
    with card.kernel.open_group(14):
        shell = card.kernel.foreign()
        assert "in-doubt" == card.write("drivers/vfio-pci/unbind", F0, kernel=shell)
        assert "ok" == card.write("drivers_probe", F0, kernel=shell)
        assert card.driver(F0) is None


def test_drivers_probe_while_user_space_owns_the_group_is_einval(card: Bench) -> None:
    """Here the errno is EINVAL, where bind gives EBUSY."""
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14, [PCIDeviceAddress.parse(F0)]):
        card.unbind("vfio-pci", F2)
        card.override(F2)
        assert "EINVAL" == card.write("drivers_probe", F2)


# new_id and remove_id


def test_new_id_twice_is_eexist_and_one_field_is_einval(card: Bench) -> None:
    """Known in the table or in the dynamic list: EEXIST; one number is not an id."""
    assert "EEXIST" == card.write("drivers/tg3/new_id", "14e4 1657")
    assert "ok" == card.write("drivers/vfio-pci/new_id", "14e4 1657")
    assert "EEXIST" == card.write("drivers/vfio-pci/new_id", "14e4 1657\n")
    assert "EINVAL" == card.write("drivers/vfio-pci/new_id", "14e4")


def test_remove_id_of_an_unknown_id_is_enodev(card: Bench) -> None:
    """Only dynamic ids can be removed, and once."""
    assert "ENODEV" == card.write("drivers/tg3/remove_id", "14e4 1657")
    card.write("drivers/vfio-pci/new_id", "14e4 1657")
    assert "ok" == card.write("drivers/vfio-pci/remove_id", "14e4 1657")
    assert "ENODEV" == card.write("drivers/vfio-pci/remove_id", "14e4 1657")


# sriov_numvfs


def test_sriov_numvfs_beyond_total_is_erange(bench: Benches) -> None:
    """More VFs than the device supports is ERANGE."""
    assert "ERANGE" == bench("sriov").write("devices/0000:03:00.0/sriov_numvfs", "9")


def test_sriov_numvfs_from_one_number_to_another_is_ebusy(bench: Benches) -> None:
    """The number must be set to 0 in between; the same number again is accepted."""
    host = bench("sriov")
    assert "EBUSY" == host.write("devices/0000:03:00.0/sriov_numvfs", "2")
    assert "ok" == host.write("devices/0000:03:00.0/sriov_numvfs", "4")


def test_sriov_numvfs_without_driver_is_enoent(bench: Benches) -> None:
    """The PF's driver creates the VFs, so a PF without a driver is refused."""
    host = bench("sriov")
    host.unbind("ixgbe", "0000:03:00.0")
    assert "ENOENT" == host.write("devices/0000:03:00.0/sriov_numvfs", "0")


# reset and reset_method


@pytest.mark.parametrize("value", ["0", "2", "x", "\n"])
def test_reset_of_anything_but_1_is_einval(card: Bench, value: str) -> None:
    """Only 1 resets."""
    assert "EINVAL" == card.write(f"devices/{F0}/reset", value)
    assert "ok" == card.write(f"devices/{F0}/reset", "1\n")


def test_reset_without_a_method_left_is_enotty(card: Bench) -> None:
    """The attribute stays when the methods are gone."""
    card.write(f"devices/{F0}/reset_method", "\n")
    assert "ENOTTY" == card.write(f"devices/{F0}/reset", "1")
    assert card.exists(f"sys/bus/pci/devices/{F0}/reset")


def test_reset_by_the_bus_alone_needs_the_bus_alone(card: Bench) -> None:
    """With neighbours the bus reset does not work, although the attribute lists it; alone it works."""
    assert "ok" == card.write(f"devices/{F0}/reset_method", "bus")
    assert "ENOTTY" == card.write(f"devices/{F0}/reset", "1")
    nvme = "0001:07:00.0"
    assert "ok" == card.write(f"devices/{nvme}/reset_method", "bus")
    assert "ok" == card.write(f"devices/{nvme}/reset", "1")


def test_reset_method_unknown_empty_default(card: Bench) -> None:
    """Unknown is EINVAL, an empty line disables all, default restores."""
    before = card.read(F0, "reset_method")
    assert "EINVAL" == card.write(f"devices/{F0}/reset_method", "warm")
    assert "EINVAL" == card.write(f"devices/{F0}/reset_method", "af_flr")
    assert "ok" == card.write(f"devices/{F0}/reset_method", "pm")
    assert b"pm\n" == card.read(F0, "reset_method")
    assert "ok" == card.write(f"devices/{F0}/reset_method", "\n")
    assert b"" == card.read(F0, "reset_method")
    assert "ok" == card.write(f"devices/{F0}/reset_method", "default")
    assert before == card.read(F0, "reset_method")


# any attribute


@pytest.mark.parametrize(("opened", "result"), [(True, "ENODEV"), (False, "ENOENT")])
def test_attribute_of_a_device_that_went_away(card: Bench, opened: bool, result: str) -> None:
    """Opened before it went: ENODEV; by its path afterwards: ENOENT."""
    card.kernel.inject(1, Vanish(PCIDeviceAddress.parse(F0), opened=opened))
    assert result == card.override(F0, "vfio-pci")
    assert not card.exists(f"sys/bus/pci/devices/{F0}")


def test_attribute_that_a_function_does_not_have_is_enoent(card: Bench) -> None:
    """A port has no reset; only a PF has sriov_numvfs."""
    assert "ENOENT" == card.write(f"devices/{BRIDGE}/reset", "1")
    assert "ENOENT" == card.write(f"devices/{F0}/sriov_numvfs", "1")


def test_attribute_without_root_is_eacces(card: Bench) -> None:
    """The modes of the files refuse other users at open."""
    kernel = SimulatedKernel(card.root, privileged=False)
    assert "EACCES" == card.write(f"devices/{F0}/driver_override", "vfio-pci", kernel=kernel)


def test_attribute_in_read_only_sysfs_is_erofs(card: Bench) -> None:
    """A container's sysfs."""
    kernel = SimulatedKernel(card.root, read_only=True)
    assert "EROFS" == card.write("drivers/tg3/unbind", F0, kernel=kernel)
    assert "tg3" == card.driver(F0)
    assert os.path.isdir(card.root.pci_driver("tg3"))
