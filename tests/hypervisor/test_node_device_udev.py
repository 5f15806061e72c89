# SPDX-License-Identifier: LGPL-2.1-or-later
"""A function as libvirt's node device: equal to libvirt's recorded output, and to sysfs of other hosts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import etree

from pyhostdev import Host, NodeDeviceDef, PCIDeviceAddress
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools import main

RECORDED = Path(__file__).parents[2] / "testdata" / "nodedev"
NAMES = """# names of the recorded host
1b36  Red Hat, Inc.
\t000c  QEMU PCIe Root port
\t0010  QEMU NVM Express Controller
\t0011  QEMU PVPanic device
8086  Intel Corporation
\t10d3  82574L Gigabit Network Connection
\t\t103c 1250  a subsystem
\t2918  82801IB (ICH9) LPC Interface Controller
"""

Fake = Callable[[str], FakeHost]


@pytest.fixture
def lab(fakehost: Fake) -> Host:
    """The host of the recordings, with the names of its devices."""
    fake = fakehost(str(RECORDED / "lab.tree"))
    listing = Path(fake.root.pci_ids()[0])
    listing.parent.mkdir(parents=True)
    listing.write_text(NAMES)
    return Host(fake.root)


def described(host: Host, address: str) -> NodeDeviceDef:
    found = host.node_device(address)
    assert found is not None
    return found


def with_sorted_group(text: str) -> str:
    """Sort the members of the group: the kernel's hash order has no meaning."""
    root = etree.fromstring(text)
    for group in root.iter("iommuGroup"):
        group[:] = sorted(group, key=lambda member: member.attrib["function"])
    etree.indent(root)
    return etree.tostring(root, encoding="unicode")


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.xml")), ids=lambda path: path.stem)
def test_as_libvirt_printed_it(lab: Host, path: Path) -> None:
    """Every recorded device is printed as libvirt printed it."""
    expected = path.read_text()
    address = path.stem.removeprefix("pci_").replace("_", ":", 2).replace("_", ".")
    actual = described(lab, address).format()
    assert with_sorted_group(expected) == with_sorted_group(actual)
    assert sorted(expected.splitlines()) == sorted(actual.splitlines())


def test_members_are_in_the_order_of_the_directory(lab: Host) -> None:
    """libvirt does not sort the members of a group either."""
    names = os.listdir(lab.root.iommu_group_devices(8))
    assert names == [str(address) for address in described(lab, "0000:01:00.0").pci.iommu_group_devices]


def test_members_that_are_not_pci_are_left_out(fakehost: Fake) -> None:
    """A platform device in the group has no PCI address to print."""
    host = Host(fakehost("non-pci-member").root)
    groups = {dev.address: os.listdir(host.root.iommu_group_devices(dev.iommu_group or 0)) for dev in host.scan()}
    (address, names), *_ = [item for item in groups.items() if any(name.count(":") != 2 for name in item[1])]
    shown = described(host, str(address)).pci.iommu_group_devices
    assert [name for name in names if name.count(":") == 2] == [str(member) for member in shown]


def test_a_domain_below_a_device_has_that_device_as_parent(fakehost: Fake) -> None:
    """The functions of a VMD are children of its endpoint, in a domain with five digits."""
    host = Host(fakehost(str(RECORDED.parent / "cases" / "vmd.tree")).root)
    below = [dev for dev in host.scan() if dev.address.domain > 0xFFFF]
    (vmd,) = [dev for dev in host.scan() if dev.read_functions_below()]
    first = described(host, str(below[0].address))
    assert f"pci_{str(vmd.address).replace(':', '_').replace('.', '_')}" == first.parent
    assert f"pci_{str(below[0].address).replace(':', '_').replace('.', '_')}" == first.name
    assert f"<domain>{below[0].address.domain}</domain>" in first.format()


def test_numbers_where_names_are_absent(bcm5719: FakeHost) -> None:
    """A host without a list of names prints the numbers alone."""
    text = described(Host(bcm5719.root), "0001:09:00.0").format()
    assert "    <product id='0x1657'/>\n    <vendor id='0x14e4'/>\n" in text


def test_absent_facts_have_no_element(tmp_path: Path) -> None:
    """A function without any facts is still a device; absent facts are left out."""
    (tmp_path / "sys/bus/pci/devices/0000:00:1f.7").mkdir(parents=True)
    lines = described(Host(tmp_path), "0000:00:1f.7").format().splitlines()
    assert [
        "<device>",
        "  <name>pci_0000_00_1f_7</name>",
        "  <path>/sys/bus/pci/devices/0000:00:1f.7</path>",
        "  <parent>computer</parent>",
        "  <capability type='pci'>",
        "    <domain>0</domain>",
        "    <bus>0</bus>",
        "    <slot>31</slot>",
        "    <function>7</function>",
        "    <product/>",
        "    <vendor/>",
        "  </capability>",
        "</device>",
    ] == lines


def test_unprivileged_readers_see_no_link(lab: Host) -> None:
    """64 bytes of configuration space do not contain the links; unprivileged libvirt prints none either."""
    config = Path(lab.root.pci_device("0000:01:00.0")) / "config"
    config.write_bytes(config.read_bytes()[:64])
    assert "pci-express" not in described(lab, "0000:01:00.0").format()


@pytest.mark.parametrize(("size", "express"), [(64, False), (256, False), (4096, True)])
def test_size_decides_without_a_capability(size: int, express: bool, bcm5719: FakeHost) -> None:
    """For libvirt, a host bridge with 4096 bytes and no capability is PCI Express; with 64 bytes nothing is printed."""
    bridge = "0001:00:00.0"
    path = Path(bcm5719.root.pci_device(bridge), "config")
    path.write_bytes(path.read_bytes()[:6] + bytes(size - 6))
    host = Host(bcm5719.root)
    assert express is ("<pci-express/>" in described(host, bridge).format())
    assert (size != 256) is host.is_pci_express(PCIDeviceAddress.parse(bridge))


def test_mediated_device_types(lab: Host) -> None:
    """The types that a driver offers, with the name where the driver gives one."""
    place = Path(lab.root.pci_device("0000:01:00.0")) / "mdev_supported_types/nvidia-11"
    place.mkdir(parents=True)
    for name, text in {"device_api": "vfio-pci", "available_instances": "16", "name": "GRID <B>"}.items():
        (place / name).write_text(f"{text}\n")
    assert (
        "    <capability type='mdev_types'>\n"
        "      <type id='nvidia-11'>\n"
        "        <name>GRID &lt;B&gt;</name>\n"
        "        <deviceAPI>vfio-pci</deviceAPI>\n"
        "        <availableInstances>16</availableInstances>\n"
        "      </type>\n"
        "    </capability>\n"
    ) in described(lab, "0000:01:00.0").format()


@pytest.mark.parametrize(("vpd", "said"), [(b"\x82\x01\x00x\x78", True), (b"", False)])
def test_malformed_vpd_is_left_out(lab: Host, caplog: pytest.LogCaptureFixture, vpd: bytes, said: bool) -> None:
    """A device with malformed VPD is shown without it, and the log reports that; an empty file means no VPD."""
    (Path(lab.root.pci_device("0000:01:00.0")) / "vpd").write_bytes(vpd)
    assert "vpd" not in described(lab, "0000:01:00.0").format()
    assert said == ("VPD of 0000:01:00.0 is malformed" in caplog.text)


def test_the_verb_prints_it(lab: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """show --xml prints the definition and nothing else; it excludes --json."""
    assert 0 == main.main(["show", "pci_0000_01_00_0", "--xml", "--root", lab.root.path])
    assert described(lab, "0000:01:00.0").format() == capsys.readouterr().out
    with pytest.raises(SystemExit) as usage:
        main.main(["show", "pci_0000_01_00_0", "--xml", "--json"])
    assert 2 == usage.value.code


def test_a_missing_function(lab: Host) -> None:
    """A function that the host does not have is None."""
    assert lab.node_device("0000:77:00.0") is None
