# SPDX-License-Identifier: LGPL-2.1-or-later
"""The functions' own VFIO nodes and iommufd as Linux 7.2.13 has them: one test for each measured fact."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench, Benches

from pyhostdev.errors import ConfigError, SysfsError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.treefile import parse_host
from pyhostdev.testing.treeformat import format_host
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.vfioholders import read_group_holders

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
F0, F1, F2, F3 = map(str, CARD)


@pytest.fixture
def new(bench: Benches) -> Bench:
    """The seed's host with a kernel of 2026, its functions on vfio-pci."""
    host = bench(described())
    host.to_vfio(F0, F1, F2, F3)
    return host


def described(*lines: str, release: str = "7.2.13", iommufd: str = "available") -> str:
    text = (Path(str(sys.modules[FakeHost.__module__].__file__)).parent / "hosts/bcm5719.tree").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("release")]
    more = [f"iommufd {iommufd}"] if iommufd else []
    return "\n".join([*kept, f"release {release}", *more, *lines]) + "\n"


def node(host: Bench, address: str) -> str:
    (name,) = os.listdir(host.root.join("sys/bus/pci/devices", address, "vfio-dev"))
    return os.path.join(host.root.dev_vfio_devices, name)


def opened(host: Bench, address: PCIDeviceAddress) -> int:
    return host.kernel.open_node(node(host, str(address)), None, device=address)


def answer(function: Callable[..., object], *args: object) -> str:
    try:
        function(*args)
    except SysfsError as err:
        return errno.errorcode[err.errno or 0]
    return "ok"


def bind(host: Bench, address: PCIDeviceAddress, fd: int, iommufd: int) -> str:
    return answer(host.kernel.bind_iommufd, address, fd, iommufd)


def iommufd_of(host: Bench) -> int:
    return host.kernel.open_iommufd(host.root.dev_iommu)


# Modules and nodes


def test_opening_does_not_load_iommufd(bench: Benches) -> None:
    """dev/iommu comes with the module; vfio-pci pulls it in."""
    host = bench(described().replace("driver vfio-pci", "driver vfio-pci available"))
    assert "ENOENT" == answer(iommufd_of, host)
    host.kernel.load_module("vfio-pci")
    os.close(iommufd_of(host))


def test_iommufd_can_be_loaded_alone(bench: Benches) -> None:
    """modprobe iommufd makes the node; a kernel without it has no such module."""
    host = bench(described().replace("driver vfio-pci", "driver vfio-pci available"))
    host.kernel.load_module("iommufd")
    assert host.exists("dev/iommu")
    with pytest.raises(Exception, match="no such module"):
        bench(described(iommufd="")).kernel.load_module("iommufd")


def test_kernel_without_iommufd_makes_no_node(bench: Benches) -> None:
    """Debian's kernels: vfio-dev is there, without a device number, and the group's node alone in dev."""
    host = bench(described(release="6.12.117", iommufd=""))
    host.to_vfio(F0)
    assert ["uevent"] == os.listdir(host.root.join("sys/bus/pci/devices", F0, "vfio-dev/vfio0"))
    assert ["14", "vfio"] == sorted(os.listdir(host.root.dev_vfio))


def test_bind_makes_a_node_of_root(new: Bench) -> None:
    """dev/vfio/devices/vfioN has mode 0600, and sysfs its device number; only groups have plain numbers."""
    assert 0o600 == stat.S_IMODE(os.stat(node(new, F0)).st_mode)
    assert b"239:0\n" == new.read(F0, "vfio-dev/vfio0/dev")
    assert ["14", "devices", "vfio"] == sorted(os.listdir(new.root.dev_vfio))


def test_description_tells_how_iommufd_is_there(bench: Benches) -> None:
    """A line of the description; other words are refused."""
    host = parse_host(described(iommufd="loaded"))
    assert ("loaded", host.settings) == (host.iommufd, parse_host(format_host(host)).settings)
    assert bench(described(iommufd="loaded")).exists("dev/iommu")
    with pytest.raises(ConfigError, match="Invalid iommufd 'maybe'"):
        parse_host(described(iommufd="maybe"))


# Binding to an iommufd


def test_group_rule_is_the_same_for_nodes(new: Bench) -> None:
    """EPERM while a sibling is on its host driver; a sibling without a driver, or on vfio-pci, does not matter."""
    new.unbind("vfio-pci", F3)
    new.override(F3)
    assert "ok" == new.bind("tg3", F3)
    fd, iommufd = opened(new, CARD[0]), iommufd_of(new)
    assert "EPERM" == bind(new, CARD[0], fd, iommufd)
    new.unbind("tg3", F3)
    assert "ok" == bind(new, CARD[0], fd, iommufd)
    os.close(fd)
    os.close(iommufd)


def test_sibling_stays_off_its_host_driver_while_a_node_is_bound(new: Bench) -> None:
    """bind says EBUSY, drivers_probe EINVAL; vfio-pci takes it."""
    new.unbind("vfio-pci", F3)
    with new.kernel.open_devices(CARD[:1]):
        new.override(F3)
        assert ("EBUSY", "EINVAL") == (new.bind("tg3", F3), new.write("drivers_probe", F3))
        new.override(F3, "vfio-pci")
        assert "ok" == new.bind("vfio-pci", F3)


def test_functions_of_a_group_share_one_iommufd(new: Bench) -> None:
    """EPERM with another iommufd; the same one by another descriptor is the same."""
    with new.kernel.open_devices(CARD[:1]) as (_, iommufd):
        fd, other, copy = opened(new, CARD[1]), iommufd_of(new), os.dup(iommufd)
        assert ("EPERM", "ok") == (bind(new, CARD[1], fd, other), bind(new, CARD[1], fd, copy))
        for number in (fd, other, copy):
            os.close(number)


def test_function_is_bound_once(new: Bench) -> None:
    """A node can be opened twice, but only bound once."""
    with new.kernel.open_devices(CARD[:1]) as (first, iommufd):
        second = opened(new, CARD[0])
        assert ["EINVAL"] * 2 == [bind(new, CARD[0], fd, iommufd) for fd in (first, second)]
        os.close(second)


def test_binding_belongs_to_the_open_file(new: Bench) -> None:
    """What a child has bound stays bound when the child has gone, for every process with the same open file."""
    fd, iommufd = opened(new, CARD[0]), iommufd_of(new)
    child = os.fork()
    if child == 0:
        os._exit("ok" != bind(new, CARD[0], fd, iommufd))
    assert (child, 0) == os.waitpid(child, 0)
    assert "EINVAL" == bind(new, CARD[0], fd, iommufd)
    os.close(fd)
    os.close(iommufd)


def test_open_group_keeps_nodes_from_being_bound(new: Bench) -> None:
    """EBUSY while the group's node is open, also when idle; the node itself opens."""
    with new.kernel.open_group(14, []):
        fd, iommufd = opened(new, CARD[0]), iommufd_of(new)
        assert "EBUSY" == bind(new, CARD[0], fd, iommufd)
    assert "ok" == bind(new, CARD[0], fd, iommufd)
    os.close(fd)
    os.close(iommufd)


def test_group_opens_unless_a_node_is_bound(new: Bench) -> None:
    """So "the group opens" proves nothing about nodes that are only open."""
    path = new.root.vfio_group(14)
    with new.kernel.open_devices(CARD[:1], bound=False):
        assert not new.kernel.is_group_open(path)
    with new.kernel.open_devices(CARD[:1]):
        assert new.kernel.is_group_open(path)
        with pytest.raises(SysfsError) as error, new.kernel.open_group(14):
            pass
        assert errno.EBUSY == error.value.errno
    assert not new.kernel.is_group_open(path)


# Unbinding while a node is open


@pytest.mark.parametrize("bound", [False, True])
def test_unbind_waits_for_an_open_node(new: Bench, bound: bool) -> None:
    """Bound or only open: it waits until the descriptor is closed, and then ends by itself."""
    with new.kernel.open_devices(CARD[:1], bound=bound):
        assert "in-doubt" == new.unbind("vfio-pci", F0)
        assert new.kernel.is_in_flight(CARD[0])
    assert not new.kernel.is_in_flight(CARD[0])
    assert not new.exists("fakehost.withdrawn")


def test_unbind_does_not_wait_for_an_idle_group(new: Bench) -> None:
    """Neither an open group without devices nor an open iommufd holds a function."""
    iommufd = iommufd_of(new)
    with new.kernel.open_group(14, []):
        assert "ok" == new.unbind("vfio-pci", F0)
    os.close(iommufd)


def test_child_that_inherited_a_node_holds_it(new: Bench) -> None:
    """The hold ends with the last copy of the descriptor, such as that of a killed child."""
    fd = opened(new, CARD[0])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[fd])
    os.close(fd)
    assert "in-doubt" == new.unbind("vfio-pci", F0)
    child.kill()
    child.wait()
    assert not new.kernel.is_in_flight(CARD[0])


def test_what_a_waiting_unbind_shows_at_once(new: Bench) -> None:
    """Driver, vfio-dev and the node have gone; the group's node stays; the holder's link says (deleted)."""
    before = node(new, F0)
    with new.kernel.open_devices(CARD[:1]):
        new.unbind("vfio-pci", F0)
        assert (None, False, False, True) == (
            new.driver(F0),
            os.path.exists(new.root.join("sys/bus/pci/devices", F0, "vfio-dev")),
            os.path.exists(before),
            os.path.exists(new.root.vfio_group(14)),
        )
        (holder,) = read_group_holders(new.root, [14])[14]
        links = [os.readlink(entry.path) for entry in os.scandir(new.root.join("proc", str(holder.pid), "fd"))]
        assert f"/dev/vfio/devices/{os.path.basename(before)} (deleted)" in links


def test_number_is_not_used_again_before_the_unbind_ends(new: Bench) -> None:
    """The lowest free number is the next one's, and a waiting one is not free."""
    new.unbind("vfio-pci", F3)
    with new.kernel.open_devices(CARD[:1]):
        new.unbind("vfio-pci", F0)
        assert "ok" == new.bind("vfio-pci", F3)
        assert "vfio3" == os.path.basename(node(new, F3))
    new.bind("vfio-pci", F0)
    assert "vfio0" == os.path.basename(node(new, F0))


@pytest.mark.parametrize(("release", "answer"), [("6.1.192", "in-doubt"), ("6.12.117", "ok"), ("7.2.13", "ok")])
def test_override_during_a_waiting_unbind(bench: Benches, release: str, answer: str) -> None:
    """Newer kernels store it without the device's lock; older ones make the writer wait, too."""
    host = bench(described(release=release))
    host.to_vfio(F0, F1, F2, F3)
    with host.kernel.open_devices(CARD[:1]):
        host.unbind("vfio-pci", F0)
        assert answer == host.write(f"devices/{F0}/driver_override", "x", kernel=host.kernel.foreign())


@pytest.mark.parametrize(("release", "is_named"), [("6.12.117", False), ("7.2.13", True)])
def test_fdinfo_of_a_node_names_its_function(bench: Benches, release: str, is_named: bool) -> None:
    """vfio-device-syspath came with 6.18."""
    host = bench(described(release=release))
    host.to_vfio(F0, F1, F2, F3)
    with host.kernel.open_devices(CARD[:1]):
        (holder,) = read_group_holders(host.root, [14])[14]
        top = host.root.join("proc", str(holder.pid), "fdinfo")
        texts = [Path(entry).read_text() for entry in os.scandir(top)]
    assert is_named == any("vfio-device-syspath: /sys/devices" in text and F0 in text for text in texts)


# Accounting of locked memory


def test_mode_of_accounting_needs_a_privilege(new: Bench) -> None:
    """Root sets it; the descriptor keeps it. Without CAP_SYS_RESOURCE it is EPERM."""
    fd = iommufd_of(new)
    new.kernel.charge_to_process(fd, new.root.dev_iommu)
    assert ("dev/iommu", b"rlimit-mode=1", "ok") == new.kernel.trace[-1]
    new.kernel.privileged = False
    assert "EPERM" == answer(new.kernel.charge_to_process, fd, new.root.dev_iommu)
    os.close(fd)
