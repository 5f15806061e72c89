# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fake hosts look like real ones, and every shipped host matches its name."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.errors import ConfigError
from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.util import pciconfig
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciscan_ref import scan

F0 = PCIDeviceAddress.parse("0001:09:00.0")
NVME = PCIDeviceAddress.parse("0001:07:00.0")


def read(fake: FakeHost, path: str) -> str:
    with open(fake.root.join(path), encoding="ascii") as file:
        return file.read()


@pytest.mark.parametrize("name", named_hosts())
def test_shipped_host_is_as_described(name: str, tmp_path: Path) -> None:
    """Every function of its text is on its bus, in its group, on its driver, below its PF, with ids and class."""
    fake = FakeHost.named(name, tmp_path)
    for spec in fake.spec.functions.values():
        top = fake.root.pci_device(spec.address)
        links = {n: os.path.basename(os.readlink(f"{top}/{n}")) if os.path.islink(f"{top}/{n}") else None
                 for n in ("driver", "iommu_group", "physfn")}  # fmt: skip
        group = None if spec.group is None else str(spec.group)
        physfn = None if spec.physfn is None else str(spec.physfn)
        assert {"driver": spec.driver, "iommu_group": group, "physfn": physfn} == links
        texts = [read(fake, f"sys/bus/pci/devices/{spec.address}/{n}") for n in ("vendor", "device", "class")]
        assert [f"0x{spec.vendor:04x}\n", f"0x{spec.device:04x}\n", f"0x{spec.class_:06x}\n"] == texts
        config = pathbytes(f"{top}/config")
        assert (256 if spec.express is None else 4096) == len(config)
        assert (0 if spec.bridge is None else 1) == pciconfig.header_type(config)
        assert spec.express == pciconfig.express_type(config)
        assert (spec.physfn is None and spec.multifunction) == pciconfig.is_multifunction(config)


def pathbytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("name", named_hosts())
def test_shipped_host_can_be_scanned(name: str, tmp_path: Path) -> None:
    """The plain scanner sees the functions of the description."""
    fake = FakeHost.named(name, tmp_path)
    assert sorted(map(str, fake.spec.functions)) == sorted(record.address for record in scan(fake.root))


@pytest.mark.skipif(shutil.which("lspci") is None, reason="no lspci here")
@pytest.mark.parametrize("name", named_hosts())
def test_lspci_reads_a_shipped_host(name: str, tmp_path: Path) -> None:
    """An independent reader sees the same functions and drivers, and its capability walk ends without complaint."""
    fake = FakeHost.named(name, tmp_path)
    command = ["lspci", "-A", "linux-sysfs", "-O", f"sysfs.path={fake.root.pci_bus}", "-D", "-n", "-k", "-vv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(fake.spec.functions) == sum(not line.startswith("\t") for line in done.stdout.splitlines() if line)
    bound = sum(spec.driver is not None for spec in fake.spec.functions.values())
    assert bound == done.stdout.count("Kernel driver in use")
    assert not [word for word in ("<chain", "<access denied", "broken") if word in done.stdout]


def test_functions_lie_below_their_bridge(fakehost: Callable[[str], FakeHost]) -> None:
    """As in sysfs: the host bridge's bus, the port, the function; links lead there."""
    fake = fakehost("bcm5719")
    place = "sys/devices/pci0001:08/0001:08:00.0/0001:09:00.0"
    assert fake.root.join(place) == os.path.realpath(fake.root.pci_device(F0))
    assert "../../../../bus/pci/drivers/tg3" == os.readlink(fake.root.join(place, "driver"))


def test_vfs_lie_beside_their_pf(fakehost: Callable[[str], FakeHost]) -> None:
    """VFs are in the directory of their bus, and virtfnN and physfn link to them."""
    fake = fakehost("sriov")
    pf = os.path.realpath(fake.root.join("sys/bus/pci/devices/0000:03:00.0"))
    assert "../0000:03:10.4" == os.readlink(f"{pf}/virtfn2")
    assert "../0000:03:00.0" == os.readlink(f"{pf}/virtfn2/physfn")


def test_ari_shows_on_the_bus_below_the_port(fakehost: Callable[[str], FakeHost]) -> None:
    """ari_enabled is a fact of the bus: functions in slot 0 and slot 1 have it, the port does not."""
    fake = fakehost("ari")
    found = [
        read(fake, f"sys/bus/pci/devices/0000:{a}/ari_enabled") for a in ("05:00.7", "05:01.0", "05:02.0", "00:01.1")
    ]
    assert ["1\n", "1\n", "1\n", "0\n"] == found


def test_reset_methods_are_as_measured(fakehost: Callable[[str], FakeHost]) -> None:
    """Only the first function of a bus can be reset by it; ports and functions of the root bus have no such file."""
    fake = fakehost("bcm5719")
    assert ["flr pm bus\n", "flr pm\n"] == [
        read(fake, f"sys/bus/pci/devices/0001:09:00.{f}/reset_method") for f in (0, 1)
    ]
    assert "flr bus\n" == read(fake, f"sys/bus/pci/devices/{NVME}/reset_method")
    for address in ("0001:08:00.0", "0001:00:00.0"):
        assert not os.path.exists(fake.root.join("sys/bus/pci/devices", address, "reset"))


def test_modules_lists_tell_loaded_available_and_builtin(fakehost: Callable[[str], FakeHost]) -> None:
    """modules.dep, modules.builtin and modules.alias, as modprobe reads them; a missing module is not listed."""
    fake = fakehost(
        "release 6.1\ndriver tg3 14e4:1657\ndriver vfio-pci available\ndriver pcieport class:0604 builtin\n"
        "driver mlx5_vfio_pci 15b3:101e available\ndriver lost missing\n0000:00:00.0 8086:0000 060000\n"
    )
    texts = [read(fake, f"lib/modules/6.1/modules.{n}") for n in ("dep", "builtin", "alias")]
    assert [
        "kernel/drivers/tg3.ko:\nkernel/drivers/vfio-pci.ko:\nkernel/drivers/mlx5-vfio-pci.ko:\n",
        "kernel/drivers/pcieport.ko\n",
        "alias pci:v000014E4d00001657sv*sd*bc*sc*i* tg3\n"
        "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
        "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n",
    ] == texts


def test_mounts_and_routes_lead_to_functions(fakehost: Callable[[str], FakeHost]) -> None:
    """proc names a block device and an interface, and sysfs shows the functions above them."""
    fake = fakehost("sriov")
    assert read(fake, "proc/mounts").startswith("/dev/nvme0n1 / ext4 ")
    assert "enp3s0\t00000000\t" in read(fake, "proc/net/route")
    disk, interface = (os.path.realpath(fake.root.join("sys/class", n)) for n in ("block/nvme0n1", "net/enp3s0"))
    assert disk.endswith("/0000:02:00.0/block/nvme0n1")
    assert interface.endswith("/0000:03:00.0/net/enp3s0")
    assert disk == os.path.realpath(fake.root.join("sys/dev/block/259:0"))


def test_snapshot_sees_every_change(fakehost: Callable[[str], FakeHost]) -> None:
    """A snapshot contains every file, link and directory, except the simulation's own files; run only on request."""
    fake = fakehost("bcm5719")
    before, books = fake.snapshot(), fake.snapshot(books=True)
    assert before == books
    os.makedirs(fake.root.state_dir)
    assert before == fake.snapshot()
    assert {"run", "run/pyhostdev"} == fake.snapshot(books=True).keys() - books.keys()
    with open(fake.root.pci_device(F0) + "/config", "r+b") as file:
        file.write(b"\0")
    os.unlink(fake.root.pci_device(F0) + "/driver")
    os.mkdir(fake.root.pci_device(F0) + "/new")
    after = fake.snapshot()
    top = "sys/devices/pci0001:08/0001:08:00.0/0001:09:00.0/"
    assert {f"{top}config", f"{top}driver", f"{top}new"} == {
        name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)
    }


def test_added_function_goes_to_its_driver(fakehost: Callable[[str], FakeHost]) -> None:
    """Hot-plug: a matching driver binds, unless the line forbids it; a removal leaves no trace."""
    fake = fakehost("bcm5719")
    before = fake.snapshot()
    added = fake.add_function("0001:09:00.4 14e4:1657 020000 group=14 multifunction express=endpoint flr")
    assert "tg3" == added.driver
    fake.remove_function(added.address)
    assert before == fake.snapshot()
    fake.kernel.foreign().write(fake.root.join("sys/bus/pci/rescan"), b"1", device=F0)
    assert before == fake.snapshot()
    assert None is fake.add_function("0001:09:00.4 14e4:1657 020000 group=14 nodriver").driver


@pytest.mark.parametrize(
    "line", ["0001:09:00.0 14e4:1657 020000", "0001:0a:00.0 14e4:1657", "0001:0a:00.0 14e4:1657 020000 driver=x"]
)
def test_function_that_cannot_be_added_is_refused(fakehost: Callable[[str], FakeHost], line: str) -> None:
    """There is one, or the line is wrong: nothing changes."""
    fake = fakehost("bcm5719")
    before = fake.snapshot()
    with pytest.raises(ConfigError):
        fake.add_function(line)
    assert before == fake.snapshot()


def test_reboot_starts_anew(fakehost: Callable[[str], FakeHost]) -> None:
    """A reboot drops bindings, overrides, held groups and run; the boot ID is new; the rest is as described."""
    fake = fakehost("bcm5719")
    before = fake.snapshot()
    fake.kernel.write(f"{fake.root.pci_device(F0)}/driver_override", b"vfio-pci", device=F0)
    fake.kernel.write(f"{fake.root.pci_driver('tg3')}/unbind", str(F0).encode(), device=F0)
    os.makedirs(fake.root.state_dir)
    fake.reboot()
    after = fake.snapshot(books=True)
    assert before.pop("proc/sys/kernel/random/boot_id") != after.pop("proc/sys/kernel/random/boot_id")
    assert before == after


def test_directory_with_a_host_is_refused(fakehost: Callable[[str], FakeHost], tmp_path: Path) -> None:
    """A second host in the same directory is refused."""
    fake = fakehost("bcm5719")
    with pytest.raises(FileExistsError):
        FakeHost.named("sriov", fake.root.path)


def test_unknown_host_is_refused_with_those_there_are(tmp_path: Path) -> None:
    """A misspelled name is an error at once."""
    with pytest.raises(ConfigError, match="bcm5719"):
        FakeHost.named("bcm5791", tmp_path)
