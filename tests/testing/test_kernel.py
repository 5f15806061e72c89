# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's effects of a write: links, groups, IDs, modules, VFs, removal; two objects share one kernel."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from bench import Bench, Benches

from pyhostdev.errors import ConfigError, InDoubtError, InternalError, OperationError, SysfsError
from pyhostdev.testing.faults import Kill, NotSimulated, SimulatedKill
from pyhostdev.testing.guest import SimulatedGuest
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress

F0, F1, F2, F3 = (f"0001:09:00.{function}" for function in range(4))
FIRST = PCIDeviceAddress.parse(F0)
PF = "0000:03:00.0"


def names(card: Bench, path: str) -> list[str]:
    return sorted(os.listdir(card.root.join(path)))


def snapshot(card: Bench) -> dict[str, bytes | str | None]:
    from pyhostdev.testing.fakehost import snapshot_tree

    return snapshot_tree(card.root.path)


# Binding


def test_detach_and_give_back_leave_the_tree_as_it_was(card: Bench) -> None:
    """Override, unbind and bind, and the reverse, restore every byte, link and directory."""
    before = snapshot(card)
    card.to_vfio(F0, F1, F2, F3)
    assert before != snapshot(card)
    for address in (F0, F1, F2, F3):
        card.override(address)
        card.unbind("vfio-pci", address)
        card.bind("tg3", address)
    assert before == snapshot(card)


def test_override_binds_and_unbinds_nothing(card: Bench) -> None:
    """An override only affects later matching."""
    card.override(F0, "vfio-pci")
    assert "tg3" == card.driver(F0)
    card.unbind("tg3", F0)
    card.override(F0)
    assert card.driver(F0) is None


def test_bound_function_is_listed_by_its_driver_only(card: Bench) -> None:
    """The link, the driver's entry, uevent and what the old driver had made follow the driver."""
    card.to_vfio(F0)
    assert F0 not in names(card, "sys/bus/pci/drivers/tg3")
    assert F0 in names(card, "sys/bus/pci/drivers/vfio-pci")
    assert card.read(F0, "uevent").startswith(b"DRIVER=vfio-pci\n")
    assert not card.exists(f"sys/bus/pci/devices/{F0}/net")
    assert not card.exists("sys/class/net/enp9s0f0")
    assert [b"0\n", b"D3hot\n"] == [card.read(F0, name) for name in ("enable", "power_state")]


def test_device_driver_unbind_is_the_same_file(card: Bench) -> None:
    """devices/A/driver/unbind works while there is a driver, and is ENOENT after it."""
    assert "ok" == card.write(f"devices/{F0}/driver/unbind", F0)
    assert "ENOENT" == card.write(f"devices/{F0}/driver/unbind", F0)


def test_two_step_restore_where_override_is_not_the_driver(card: Bench) -> None:
    """With the recorded override back first the bind is ENODEV; naming the driver in between works."""
    card.unbind("tg3", F0)
    card.override(F0, "vfio-pci")
    assert "ENODEV" == card.bind("tg3", F0)
    card.override(F0, "tg3")
    assert "ok" == card.bind("tg3", F0)
    card.override(F0, "vfio-pci")
    assert "tg3" == card.driver(F0)


def test_failed_probe_takes_the_link_away(card: Bench) -> None:
    """A failed probe leaves no link."""
    card.unbind("tg3", F0)
    before = snapshot(card)
    card.kernel.change_driver("tg3", probe="EIO")
    assert "EIO" == card.bind("tg3", F0)
    assert before == snapshot(card)


def test_port_driver_leaves_conventional_bridges_alone(bench: Benches) -> None:
    """pcieport matches every bridge and takes ports only, so shpchp comes second and gets the bridge."""
    host = bench("bridge-group")
    assert "ok" == host.unbind("shpchp", "0000:01:00.0")
    assert "ENODEV" == host.bind("pcieport", "0000:01:00.0")
    assert "ok" == host.write("drivers_probe", "0000:01:00.0")
    assert "shpchp" == host.driver("0000:01:00.0")


def test_dynamic_id_steals_the_function_from_its_driver(bench: Benches) -> None:
    """drivers_probe takes the driver that registered first: with a dynamic id on vfio-pci that is not the host's."""
    host = bench("driver vfio-pci\ndriver tg3 14e4:1657\n0000:01:00.0 14e4:1657 020000 driver=tg3 group=1\n")
    host.write("drivers/vfio-pci/new_id", "14e4 1657")
    host.unbind("tg3", "0000:01:00.0")
    assert "ok" == host.write("drivers_probe", "0000:01:00.0")
    assert "vfio-pci" == host.driver("0000:01:00.0")


def test_new_id_takes_every_function_without_a_driver(card: Bench) -> None:
    """All at once, and remove_id leaves them bound."""
    for address in (F2, F3):
        card.unbind("tg3", address)
    card.write("drivers/vfio-pci/new_id", "14e4 1657")
    card.write("drivers/vfio-pci/remove_id", "14e4 1657")
    assert ["tg3", "tg3", "vfio-pci", "vfio-pci"] == [card.driver(a) for a in (F0, F1, F2, F3)]


def test_denied_accelerator_is_einval(bench: Benches) -> None:
    """vfio-pci denies devices that are unsafe to assign."""
    host = bench("driver vfio-pci\n0000:01:00.0 8086:37c8 0b4000 group=1\n")
    host.override("0000:01:00.0", "vfio-pci")
    assert "EINVAL" == host.bind("vfio-pci", "0000:01:00.0")


def test_denied_accelerator_with_the_list_disabled(bench: Benches) -> None:
    """The module's parameter decides whether the denylist is checked."""
    host = bench("driver vfio-pci\n0000:01:00.0 8086:37c8 0b4000 group=1\n")
    parameters = Path(host.root.module("vfio-pci"), "parameters")
    parameters.mkdir(parents=True)
    (parameters / "disable_denylist").write_text("Y\n")
    host.override("0000:01:00.0", "vfio-pci")
    assert "ok" == host.bind("vfio-pci", "0000:01:00.0")


def test_function_without_group_is_einval(bench: Benches) -> None:
    """vfio-pci refuses a function without an IOMMU group."""
    host = bench("driver vfio-pci\n0000:01:00.0 14e4:1657 020000\n")
    host.override("0000:01:00.0", "vfio-pci")
    assert "EINVAL" == host.bind("vfio-pci", "0000:01:00.0")


def test_variant_driver_takes_what_the_override_names(bench: Benches) -> None:
    """Its ids are for modules.alias: without an override they match nothing."""
    host = bench("driver mlx5_vfio_pci 15b3:101e\n0000:01:00.0 15b3:101e 020000 group=1\n")
    assert "ENODEV" == host.bind("mlx5_vfio_pci", "0000:01:00.0")
    host.override("0000:01:00.0", "mlx5_vfio_pci")
    assert "ok" == host.bind("mlx5_vfio_pci", "0000:01:00.0")
    assert host.exists("dev/vfio/1")


# Groups


def test_group_node_comes_with_the_first_and_goes_with_the_last(card: Bench) -> None:
    """dev/vfio/14 exists while any member is on vfio-pci."""
    seen = []
    card.to_vfio(F0, F1)
    for address in (F0, F1):
        seen.append(names(card, "dev/vfio"))
        card.unbind("vfio-pci", address)
    assert [["14", "vfio"], ["14", "vfio"]] == seen
    assert ["vfio"] == names(card, "dev/vfio")


def test_vfio_devices_are_numbered_from_0(card: Bench) -> None:
    """The lowest free number, as vfio-dev/vfioN."""
    card.to_vfio(F0, F1, F2)
    card.unbind("vfio-pci", F1)
    card.to_vfio(F3)
    found = [names(card, f"sys/bus/pci/devices/{a}/vfio-dev") for a in (F0, F2, F3)]
    assert [["vfio0"], ["vfio2"], ["vfio1"]] == found


@pytest.mark.parametrize("how", ["host driver", "no driver", "pci-stub"])
def test_group_is_viable_when_no_member_is_the_hosts(card: Bench, how: str) -> None:
    """A peer on its host driver gives EPERM; one without a driver, or on pci-stub, does not."""
    card.to_vfio(F0, F2, F3)
    if how == "host driver":
        with pytest.raises(SysfsError) as error, card.kernel.open_group(14):
            pass
        assert 1 == error.value.errno
        return
    card.unbind("tg3", F1)
    if how == "pci-stub":
        card.override(F1, "pci-stub")
        card.bind("pci-stub", F1)
    with card.kernel.open_group(14):
        assert "EBUSY" == open_error(SimulatedKernel(card.root))


def open_error(kernel: SimulatedKernel) -> str:
    with pytest.raises(SysfsError) as error, kernel.open_group(14):
        pass
    return {2: "ENOENT", 16: "EBUSY", 1: "EPERM"}[error.value.errno or 0]


def test_function_that_vanishes_while_its_driver_lets_go(card: Bench) -> None:
    """What vfio-pci had made goes with it, so that what is found at the address again is a plain function."""
    card.to_vfio(F0)
    card.kernel.inject(1, Kill("blocked"))
    with pytest.raises(SimulatedKill):
        card.unbind("vfio-pci", F0)
    assert card.driver(F0) is None
    other = SimulatedKernel(card.root)
    other.vanish(FIRST)
    assert not os.path.exists(card.root.vfio_group(14))
    card.write("rescan", "1", kernel=other)
    assert ("tg3", False) == (card.driver(F0), os.path.exists(f"{card.root.pci_device(FIRST)}/vfio-dev"))


def test_group_node_is_single_open(card: Bench) -> None:
    """A second open gives EBUSY and works after the first is closed; without a node it gives ENOENT."""
    assert "ENOENT" == open_error(card.kernel)
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14):
        assert "EBUSY" == open_error(SimulatedKernel(card.root))
    with card.kernel.open_group(14):
        pass


def test_holder_is_seen_in_proc(card: Bench) -> None:
    """While a group is open some process has its node, and its functions', among its descriptors."""
    card.to_vfio(F0, F1, F2, F3)
    before = snapshot(card)
    with card.kernel.open_group(14):
        (pid,) = [name for name in names(card, "proc") if name.isdigit()]
        links = {os.readlink(card.root.join(f"proc/{pid}/fd", n)) for n in names(card, f"proc/{pid}/fd")}
        assert {"/dev/vfio/vfio", "/dev/vfio/14", "anon_inode:[vfio-device]"} == links
    assert before == snapshot(card)


def test_deprecated_name_of_the_start_of_an_exit(card: Bench) -> None:
    """``begin_to_end`` still starts the exit of a holder, and names ``begin_exit``."""
    card.to_vfio(F0, F1, F2, F3)
    guest = SimulatedGuest(card.kernel, 14)
    with pytest.warns(DeprecationWarning, match="begin_exit"):
        guest.begin_to_end()
    (pid,) = [name for name in names(card, "proc") if name.isdigit()]
    assert " R " in Path(card.root.join(f"proc/{pid}/stat")).read_text()
    guest.let_go()


def test_unused_member_can_leave_while_the_group_is_open(card: Bench) -> None:
    """The user holds the functions it has opened, not its group's others; vfio-pci may take them again."""
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14, [FIRST]):
        assert "ok" == card.unbind("vfio-pci", F1)
        assert "ok" == card.bind("vfio-pci", F1)


def test_non_pci_member_on_a_host_driver_makes_the_group_not_viable(bench: Benches) -> None:
    """Members of other buses count."""
    host = bench("non-pci-member")
    host.kernel.load_module("vfio-pci")
    host.to_vfio("0000:7d:00.0")
    with pytest.raises(SysfsError) as error, host.kernel.open_group(5):
        pass
    assert 1 == error.value.errno


# Stuck writes


def test_unbind_of_a_held_function_is_stuck_until_its_release(card: Bench) -> None:
    """Link and entry go at once; the node stays and is busy; the write ends with the holder."""
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14):
        assert "in-doubt" == card.unbind("vfio-pci", F0)
        assert card.driver(F0) is None
        assert F0 not in names(card, "sys/bus/pci/drivers/vfio-pci")
        assert card.exists("dev/vfio/14")
        assert card.exists(f"sys/bus/pci/devices/{F0}/vfio-dev")
        assert "EBUSY" == open_error(card.kernel)
        assert card.kernel.is_in_flight(FIRST)
    assert not card.exists(f"sys/bus/pci/devices/{F0}/vfio-dev")
    assert not card.kernel.is_in_flight(FIRST)


def test_node_stays_for_a_stuck_member(card: Bench) -> None:
    """When all others have left, the one that is being removed still has the group."""
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14, [FIRST]):
        card.unbind("vfio-pci", F0)
        assert ["ok"] * 3 == [card.unbind("vfio-pci", address) for address in (F1, F2, F3)]
        assert card.exists("dev/vfio/14")
    assert not card.exists("dev/vfio/14")


def test_writer_keeps_off_a_device_in_flight(card: Bench) -> None:
    """A SysfsWriter does not begin another write there; other devices are free."""
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14, [FIRST]):
        card.unbind("vfio-pci", F0)
        second = SimulatedKernel(card.root)
        assert "in-doubt" == card.write(f"devices/{F0}/driver_override", "x", kernel=second)
        assert "ok" == card.write(f"devices/{F1}/driver_override", "x", kernel=second)
    assert b"vfio-pci\n" == card.read(F0, "driver_override")


@pytest.mark.parametrize(("name", "value"), [("driver_override", "\n"), ("reset", "1"), ("remove", "1")])
def test_shell_waits_for_the_lock_and_its_write_lands_later(card: Bench, name: str, value: str) -> None:
    """Override, reset and removal need the device's lock: abandoned writes still take effect."""
    card.to_vfio(F0, F1, F2, F3)
    with card.kernel.open_group(14, [FIRST]):
        card.unbind("vfio-pci", F0)
        assert "in-doubt" == card.write(f"devices/{F0}/{name}", value, kernel=card.kernel.foreign())
    assert not card.kernel.is_in_flight(FIRST)
    gone = not card.exists(f"sys/bus/pci/devices/{F0}")
    assert gone == (name == "remove")
    if name == "driver_override":
        assert b"(null)\n" == card.read(F0, "driver_override")


def test_shell_binds_behind_a_stuck_unbind(card: Bench) -> None:
    """A matching driver waits for the lock and then binds the function; another driver fails at once."""
    card.to_vfio(F0, F1, F2, F3)
    shell = card.kernel.foreign()
    with card.kernel.open_group(14, [FIRST]):
        card.unbind("vfio-pci", F0)
        assert "ENODEV" == card.write("drivers/tg3/bind", F0, kernel=shell)
        assert "in-doubt" == card.write("drivers/vfio-pci/bind", F0, kernel=shell)
        assert card.driver(F0) is None
    assert "vfio-pci" == card.driver(F0)


def test_hanging_remove_and_probe_end_by_complete(card: Bench) -> None:
    """A driver that hangs: the link is gone, or there, long before the write is back."""
    card.kernel.change_driver("tg3", remove="hang")
    assert "in-doubt" == card.unbind("tg3", F0)
    assert (None, True) == (card.driver(F0), card.exists(f"sys/bus/pci/devices/{F0}/net"))
    card.kernel.complete(FIRST)
    assert not card.exists(f"sys/bus/pci/devices/{F0}/net")
    card.kernel.change_driver("tg3", probe="hang")
    assert "in-doubt" == card.bind("tg3", F0)
    assert ("tg3", False) == (card.driver(F0), card.exists(f"sys/bus/pci/devices/{F0}/net"))
    card.kernel.complete()
    assert not card.kernel.is_in_flight(FIRST)
    assert card.exists(f"sys/bus/pci/devices/{F0}/net")


def test_in_doubt_is_seen_by_another_process(card: Bench) -> None:
    """The kernel's state is in the tree, so a second object sees the stuck write and can end it."""
    card.kernel.change_driver("tg3", remove="hang")
    card.unbind("tg3", F0)
    second = SimulatedKernel(HostRoot(card.root.path))
    assert second.is_in_flight(FIRST)
    second.complete()
    assert not card.kernel.is_in_flight(FIRST)


# Modules


def test_module_load_makes_the_driver_appear_and_take_its_devices(bench: Benches) -> None:
    """What matches and has no driver is bound; a second load changes nothing."""
    host = bench("driver tg3 14e4:1657 available\ndriver vfio-pci available\n0000:01:00.0 14e4:1657 020000 group=1\n")
    assert not host.exists("dev/vfio/vfio")
    host.kernel.load_module("tg3")
    host.kernel.load_module("vfio-pci")
    assert "tg3" == host.driver("0000:01:00.0")
    assert host.exists("sys/module/vfio_pci/drivers/pci:vfio-pci")
    assert host.exists("dev/vfio/vfio")
    before = snapshot(host)
    host.kernel.load_module("vfio_pci")
    assert before == snapshot(host)


@pytest.mark.parametrize("name", ["vfio-pci", "nosuch"])
def test_missing_module_cannot_be_loaded(bench: Benches, name: str) -> None:
    """Like modprobe: the error names the module, and nothing changes."""
    host = bench("driver vfio-pci missing\n0000:01:00.0 14e4:1657 020000 group=1\n")
    before = snapshot(host)
    with pytest.raises(OperationError, match=f"'{name}'.*no such module"):
        host.kernel.load_module(name)
    assert before == snapshot(host)


# SR-IOV


def test_vfs_go_and_come_back(bench: Benches) -> None:
    """numvfs 0 and 4 again: same addresses, same ids, own groups, bound."""
    host = bench("sriov")
    vfs = [f"0000:03:10.{function}" for function in (0, 2, 4, 6)]
    assert "ok" == host.write(f"devices/{PF}/sriov_numvfs", "0")
    assert ([], False) == (
        [v for v in vfs if host.exists(f"sys/bus/pci/devices/{v}")],
        host.exists("sys/class/net/enp3s0v0"),
    )
    assert "ok" == host.write(f"devices/{PF}/sriov_numvfs", "4")
    assert vfs == [
        os.path.basename(os.readlink(host.root.join(f"sys/bus/pci/devices/{PF}/virtfn{n}"))) for n in range(4)
    ]
    assert ["ixgbevf"] * 4 == [host.driver(v) for v in vfs]
    groups = {os.readlink(host.root.join(f"sys/bus/pci/devices/{v}/iommu_group")) for v in vfs}
    assert 4 == len(groups)
    assert b"\xff\xff\xff\xff" == host.read(vfs[0], "config")[:4]


def test_vfs_can_be_on_the_next_bus(bench: Benches) -> None:
    """Routing ids continue on the next bus; it has no bridge, so no ARI, and is listed beside the PF."""
    host = bench(
        "driver a 1234:0001\n0000:00:01.0 8086:1901 060400 bridge=01-02 express=root-port ari\n"
        "0000:01:00.0 1234:0001 020000 driver=a group=5 express=endpoint "
        "ari sriov=300 vf-device=0002 vf-offset=255 vf-stride=2\n"
    )
    assert "ok" == host.write("devices/0000:01:00.0/sriov_numvfs", "2")
    vfs = ["0000:01:1f.7", "0000:02:00.1"]
    assert [b"1\n", b"0\n"] == [host.read(v, "ari_enabled") for v in vfs]
    places = {os.path.dirname(os.path.realpath(host.root.join("sys/bus/pci/devices", v))) for v in vfs}
    assert {host.root.join("sys/devices/pci0000:00/0000:00:01.0")} == places


def test_autoprobe_off_keeps_drivers_from_vfs_without_override(bench: Benches) -> None:
    """drivers_probe is a success that binds nothing, bind is ENODEV; an override lifts it."""
    host = bench("sriov")
    vf = "0000:03:10.0"
    assert "ok" == host.write(f"devices/{PF}/sriov_drivers_autoprobe", "0")
    host.unbind("ixgbevf", vf)
    assert "ok" == host.write("drivers_probe", vf)
    assert "ENODEV" == host.bind("ixgbevf", vf)
    assert host.driver(vf) is None
    host.override(vf, "ixgbevf")
    assert "ok" == host.bind("ixgbevf", vf)


def test_sriov_drivers_autoprobe_takes_booleans(bench: Benches) -> None:
    """Anything else is EINVAL."""
    host = bench("sriov")
    assert "EINVAL" == host.write(f"devices/{PF}/sriov_drivers_autoprobe", "2")


def test_vfs_cannot_go_while_one_is_held(bench: Benches) -> None:
    """The write waits for the VF's holder, then takes them all."""
    host = bench("sriov")
    vf = "0000:03:10.0"
    host.to_vfio(vf)
    with host.kernel.open_group(5):
        assert "in-doubt" == host.write(f"devices/{PF}/sriov_numvfs", "0")
        assert host.exists(f"sys/bus/pci/devices/{vf}")
    assert not host.kernel.is_in_flight(PCIDeviceAddress.parse(PF))
    assert (b"0\n", False) == (host.read(PF, "sriov_numvfs"), host.exists(f"sys/bus/pci/devices/{vf}"))


# Removal


def test_remove_and_rescan_make_another_incarnation(card: Bench) -> None:
    """The same address comes back with another inode, on its driver, without its override."""
    card.override(F0, "vfio-pci")
    path = card.root.join("sys/bus/pci/devices", F0)
    before = os.stat(path).st_ino
    assert "ok" == card.write(f"devices/{F0}/remove", "1")
    assert F0 not in names(card, "sys/kernel/iommu_groups/14/devices")
    assert "ok" == card.write("rescan", "1")
    assert before != os.stat(path).st_ino
    assert ("tg3", b"(null)\n") == (card.driver(F0), card.read(F0, "driver_override"))


def test_last_member_takes_its_group_along(card: Bench) -> None:
    """A group without members disappears; a rescan creates it again."""
    nvme = "0001:07:00.0"
    before = snapshot(card)
    card.write(f"devices/{nvme}/remove", "1")
    assert not card.exists("sys/kernel/iommu_groups/15")
    card.write("rescan", "1")
    assert before == snapshot(card)


# The writer


def test_trace_tells_path_value_and_result(card: Bench) -> None:
    """The trace has one entry per write or module."""
    card.override(F0, "vfio-pci")
    card.bind("tg3", F0)
    card.kernel.load_module("tg3")
    assert [
        (f"sys/bus/pci/devices/{F0}/driver_override", b"vfio-pci", "ok"),
        ("sys/bus/pci/drivers/tg3/bind", F0.encode(), "ENODEV"),
        ("modprobe/tg3", b"", "ok"),
    ] == card.kernel.trace


def test_errors_say_what_was_tried(card: Bench) -> None:
    """A refusal is a SysfsError with errno, path and device; a hang an InDoubtError."""
    path = card.root.join("sys/bus/pci/drivers/vfio-pci/unbind")
    with pytest.raises(SysfsError, match=f"write '{F0}'") as error:
        card.kernel.write(path, F0.encode(), device=FIRST)
    assert (19, path, FIRST) == (error.value.errno, error.value.filename, error.value.address)
    card.kernel.change_driver("tg3", remove="hang")
    with pytest.raises(InDoubtError) as doubt:
        card.kernel.write(card.root.join("sys/bus/pci/drivers/tg3/unbind"), F0.encode(), device=FIRST)
    assert ("in-doubt", FIRST) == (doubt.value.reason, doubt.value.address)


def test_empty_write_of_a_writer_is_a_bug(card: Bench) -> None:
    """The kernel would ignore an empty write, so it is a bug of the caller."""
    with pytest.raises(InternalError):
        card.kernel.write(card.root.drivers_probe, b"", device=FIRST)


@pytest.mark.parametrize("where", [f"devices/{F0}/enable", "drivers/tg3/uevent", "drivers_autoprobe", "slots/1/power"])
def test_what_is_not_modelled_is_said(card: Bench, where: str) -> None:
    """No silent success."""
    with pytest.raises(NotSimulated):
        card.write(where, "1")


def test_live_host_is_not_simulated() -> None:
    """The simulated kernel refuses the live host."""
    with pytest.raises(ConfigError):
        SimulatedKernel(HostRoot("/"))


def move_for_ever(root: HostRoot) -> None:
    """Bind the first function to vfio-pci and back, until this process is killed."""
    kernel = SimulatedKernel(root)
    before, after = "tg3", "vfio-pci"
    while True:
        kernel.write(f"{root.pci_device(FIRST)}/driver_override", after.encode(), device=FIRST)
        kernel.write(f"{root.pci_driver(before)}/unbind", F0.encode(), device=FIRST)
        kernel.write(f"{root.pci_driver(after)}/bind", F0.encode(), device=FIRST)
        before, after = after, before


def test_killed_process_leaves_no_half_write(card: Bench) -> None:
    """SIGKILL at any moment: the next access finds the function completely bound or completely unbound."""
    for number in range(40):
        pid = os.fork()
        if not pid:
            try:
                move_for_ever(card.root)
            finally:
                os._exit(1)
        time.sleep(0.002 + number * 0.0007)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        card.kernel.complete()
        driver = card.driver(F0)
        listed = [d for d in ("tg3", "vfio-pci") if F0 in names(card, f"sys/bus/pci/drivers/{d}")]
        assert ([driver] if driver else []) == listed
        assert (driver == "vfio-pci") == card.exists("dev/vfio/14")
        assert (driver == "tg3") == card.exists(f"sys/bus/pci/devices/{F0}/net")
        assert (driver == "tg3") == card.exists("sys/class/net/enp9s0f0")
        card.override(F0, "tg3")
        if driver is not None:
            card.unbind(driver, F0)
        assert "ok" == card.bind("tg3", F0)


def test_attributes_have_two_paths(card: Bench) -> None:
    """Through the bus's link or at the function's own place: the same file."""
    place = os.path.realpath(card.root.pci_device(FIRST))
    card.kernel.write(f"{place}/driver_override", b"vfio-pci", device=FIRST)
    card.kernel.write(f"{place}/driver/unbind", F0.encode(), device=FIRST)
    assert (None, b"vfio-pci\n") == (card.driver(F0), card.read(F0, "driver_override"))


def test_bridge_takes_along_what_is_behind_it(card: Bench) -> None:
    """Removed together, back together; also when it goes by surprise."""
    before = snapshot(card)
    assert "ok" == card.write("devices/0001:08:00.0/remove", "1")
    assert [] == [path for path in snapshot(card) if "0001:09" in path]
    assert "ok" == card.write("rescan", "1")
    assert before == snapshot(card)
    card.kernel.vanish(PCIDeviceAddress.parse("0001:08:00.0"))
    assert [] == [path for path in snapshot(card) if "0001:09" in path or "enp9s0" in path]
