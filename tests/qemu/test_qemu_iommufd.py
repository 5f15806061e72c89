# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host devices by iommufd on the command line: libvirt's words since 12.1 and 12.2."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyhostdev import ConfigUnsupportedError, DomainDef, RefusedError
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_command import build_command_line
from pyhostdev.qemu.qemu_process.iommufd import refuse_missing_descriptors
from pyhostdev.util.pciaddress import PCIDeviceAddress

R9_0, R11_3, R12_8 = RELEASES
UNASSIGNED = "<address type='unassigned'/>"


def hostdev(function: int, driver: str = "", rest: str = "") -> str:
    """Return a host device of the card at 0000:03:00."""
    source = f"<source><address domain='0' bus='3' slot='0' function='{function}'/></source>"
    return f"<hostdev mode='subsystem' type='pci' managed='yes'>{driver}{source}{rest}</hostdev>"


BY_IOMMUFD = hostdev(0, "<driver iommufd='yes'/>")
BY_GROUP = hostdev(0, "<driver iommufd='no'/>")
UNDECIDED = hostdev(0)
INTERFACE = (
    "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:01'/>{}<source>"
    "<address type='pci' domain='0' bus='3' slot='0' function='1'/></source></interface>"
)


def domain(devices: str, head: str = "", arch: str = "x86_64", machine: str = "pc") -> DomainDef:
    return DomainDef.parse(
        f"<domain type='qemu'><name>vm</name><memory>1048576</memory>{head}<os><type arch='{arch}' "
        f"machine='{machine}'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-{arch}</emulator>"
        f"<controller type='usb' model='none'/>{devices}<memballoon model='none'/></devices></domain>"
    )


def printed(dom: DomainDef, **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the objects iommufd and the VFIO devices of a command line, as 12.8 prints it."""
    args = build_command_line(dom, release=more.pop("release", R12_8), **more)
    found = [json.loads(word) for word in args if '"vfio' in word or '"iommufd"' in word]
    return [row for row in found if "qom-type" in row], [row for row in found if "driver" in row]


ALL = "<iommufd enabled='yes'/>"


@pytest.mark.parametrize(
    ("head", "device", "has_object", "is_by_iommufd"),
    [
        ("", BY_IOMMUFD, True, True),
        ("", BY_GROUP, False, False),
        ("", UNDECIDED, False, False),
        (ALL, UNDECIDED, True, True),
        (ALL, BY_GROUP, False, False),
        (ALL, "", False, None),
        ("<iommufd enabled='no'/>", BY_IOMMUFD, True, True),
        ("<iommufd enabled='no'/>", UNDECIDED, False, False),
        ("<iommufd enabled='yes' fdgroup='io'/>", BY_GROUP, True, False),
        ("<iommufd enabled='yes' fdgroup='io'/>", "", True, None),
    ],
)
def test_device_decides_before_the_domain(head: str, device: str, has_object: bool, is_by_iommufd: bool | None) -> None:
    """The object is printed for a device that uses it, or for a passed descriptor."""
    objects, devices = printed(domain(device, head))
    assert has_object == (objects == [{"qom-type": "iommufd", "id": "iommufd0"}])
    assert [is_by_iommufd] * (is_by_iommufd is not None) == ["iommufd" in row for row in devices]
    assert all(("host" in row) != ("iommufd" in row) for row in devices)


def test_functions_share_one_object_and_each_has_a_descriptor() -> None:
    """One iommufd for all functions; fd stands behind iommufd, as a string; a device by its group has neither."""
    dom = domain(BY_IOMMUFD + hostdev(3, "<driver iommufd='yes'/>") + hostdev(1, "<driver iommufd='no'/>"))
    objects, devices = printed(dom, vfio_fd=lambda address: 9 if address is None else 10 + address.function)
    assert [{"qom-type": "iommufd", "id": "iommufd0", "fd": "9"}] == objects
    assert ["driver", "id", "iommufd", "fd", "bus", "addr"] == list(devices[0])
    assert [("iommufd0", "10"), ("iommufd0", "13"), (None, None)] == [
        (row.get("iommufd"), row.get("fd")) for row in devices
    ]
    assert [None, None, "0000:03:00.1"] == [row.get("host") for row in devices]


def test_function_that_the_guest_does_not_get_brings_the_object_and_no_descriptor() -> None:
    """libvirt prints the object for it, but opens no node."""
    asked: list[PCIDeviceAddress | None] = []

    def descriptor(address: PCIDeviceAddress | None) -> int:
        asked.append(address)
        return 9

    objects, devices = printed(domain(hostdev(0, "<driver iommufd='yes'/>", UNASSIGNED)), vfio_fd=descriptor)
    assert (1, [], [None]) == (len(objects), devices, asked)


def test_interface_that_is_a_host_device_has_the_setting_too() -> None:
    """Its <driver> has the attribute; XML and command line follow it."""
    dom = domain(INTERFACE.format("<driver name='vfio' iommufd='yes'/>"))
    assert [True] == ["iommufd" in row for row in printed(dom)[1]]
    assert "<driver name='vfio' iommufd='yes'/>" in dom.format()
    assert [True] == ["iommufd" in row for row in printed(domain(INTERFACE.format(""), ALL))[1]]
    assert [False] == ["iommufd" in row for row in printed(dom, release=R11_3)[1]]


@pytest.mark.parametrize("release", [R9_0, R11_3])
def test_older_releases_drop_the_words(release: Any) -> None:
    """Older releases drop the newer words; the host devices are unchanged."""
    objects, devices = printed(domain(BY_IOMMUFD, ALL), release=release)
    assert ([], ["0000:03:00.0"]) == (objects, [row["host"] for row in devices])


@pytest.mark.parametrize(
    ("arch", "machine", "qemu", "lacks"),
    [("x86_64", "pc", "7.2", "object 'iommufd', which QEMU 7.2"), ("ppc64", "pseries", "11.1", "QEMU 11.1")],
)
def test_emulator_without_it_is_refused(arch: str, machine: str, qemu: str, lacks: str) -> None:
    """The sentence names the QEMU; its version alone does not decide, the binary for ppc64 lacks the object."""
    with pytest.raises(ConfigUnsupportedError, match=lacks):
        printed(domain(BY_IOMMUFD, arch=arch, machine=machine), capabilities=load(arch, qemu))


def test_descriptors_that_a_definition_names_must_be_handed_over() -> None:
    """libvirt's number for it is 8; an empty name is a name."""
    for name in ("io", ""):
        dom = domain(BY_GROUP, f"<iommufd enabled='yes' fdgroup='{name}'/>")
        with pytest.raises(RefusedError, match=f"fdgroup='{name}'") as error:
            refuse_missing_descriptors(dom, {})
        assert (8, "fdgroup-missing") == (error.value.libvirt_code, error.value.reason)
        refuse_missing_descriptors(dom, {name: (7,)})
    refuse_missing_descriptors(domain(BY_IOMMUFD), {})
