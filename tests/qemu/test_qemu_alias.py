# SPDX-License-Identifier: LGPL-2.1-or-later
"""Aliases of devices: their numbers, the user's own, and devices without one."""

from __future__ import annotations

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_alias import assign_aliases, disk_index
from pyhostdev.qemu.qemu_capabilities import load

HOSTDEV = """<hostdev mode='subsystem' type='pci' managed='yes'{attribute}>
  <source><address domain='0x0001' bus='0x09' slot='0x00' function='{function}'/></source>{more}</hostdev>"""


def hostdev(function: int, attribute: str = "", more: str = "") -> str:
    return HOSTDEV.format(function=function, attribute=attribute, more=more)


def interface(function: int) -> str:
    source = f"<address type='pci' domain='0x0001' bus='0x09' slot='0x00' function='{function}'/>"
    return f"<interface type='hostdev' managed='yes'><source>{source}</source></interface>"


def named(*devices: str, machine: str = "pc") -> DomainDef:
    dom = DomainDef.parse(
        "<domain type='qemu'><name>vm</name><memory>131072</memory>"
        f"<os><type arch='x86_64' machine='{machine}'>hvm</type></os>"
        f"<devices>{''.join(devices)}</devices></domain>"
    )
    dom = define(dom, load("x86_64"))
    assign_aliases(dom)
    return dom


def aliases(dom: DomainDef) -> list[str | None]:
    return [hostdev.info.alias for hostdev in dom.pci_hostdevs()]


def test_s3_assigned_no_takes_no_alias_and_no_number() -> None:
    """S3: of functions 0 to 3 with 1 and 2 not assigned, the guest has hostdev0 and hostdev1."""
    no = " assigned='no'"
    dom = named(hostdev(0), hostdev(1, no), hostdev(2, no), hostdev(3))
    assert ["hostdev0", None, None, "hostdev1"] == aliases(dom)


def test_s3_unassigned_takes_an_alias_and_a_number() -> None:
    """S3: libvirt's own spelling uses a number, so the guest's numbers have a gap."""
    unassigned = "<address type='unassigned'/>"
    dom = named(hostdev(0), hostdev(1, more=unassigned), hostdev(2, more=unassigned), hostdev(3))
    assert ["hostdev0", "hostdev1", "hostdev2", "hostdev3"] == aliases(dom)


def test_user_alias_is_kept_and_not_counted() -> None:
    """A user's alias does not change the numbers of the others, even if it looks like a generated one."""
    dom = named(hostdev(0, more="<alias name='ua-hostdev7'/>"), hostdev(1))
    assert ["ua-hostdev7", "hostdev0"] == aliases(dom)


def test_interfaces_that_are_host_devices_count_first() -> None:
    """Both share one count; interfaces are named before host devices, in any order of the XML."""
    dom = named(hostdev(0), interface(1), "<interface type='user'/>")
    assert ["hostdev0", "hostdev1"] == aliases(dom)
    assert ["hostdev0", "net0"] == [net.info.alias for net in dom.interfaces]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("pc", {"usb": "usb", "ide": "ide", "pci": "pci.0", "scsi": "scsi0"}),
        ("q35", {"usb": "usb", "sata": "ide", "pci": "pcie.0", "scsi": "scsi0"}),
    ],
)
def test_chipset_controllers_have_qemus_names(machine: str, expected: dict[str, str]) -> None:
    """The chipset's controllers have QEMU's own names."""
    disk = "<disk type='file'><source file='/a'/><target dev='{}' bus='{}'/></disk>"
    other = disk.format("hda", "ide") if machine == "pc" else disk.format("sdb", "sata")
    dom = named(disk.format("sda", "scsi"), other, machine=machine)
    found = {c.type: c.info.alias for c in dom.controllers if c.index == 0}
    assert expected == found


@pytest.mark.parametrize(
    ("target", "number"), [("vda", 0), ("sdb", 1), ("hdz", 25), ("vdaa", 26), ("vdba", 52), ("xvdc", 2), ("vda1", 0)]
)
def test_disk_target_has_a_number(target: str, number: int) -> None:
    """Letters count in base 26 without a zero; a partition's number is not looked at."""
    assert number == disk_index(target)


@pytest.mark.parametrize("target", ["", "vd", "disk0", "vd1", "vdA"])
def test_disk_target_without_a_number_is_refused(target: str) -> None:
    """A target that names no disk has no alias."""
    with pytest.raises(ConfigError):
        disk_index(target)
