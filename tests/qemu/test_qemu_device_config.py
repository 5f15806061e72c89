# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changing the devices of a definition; a refused change has no effect."""

from __future__ import annotations

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.qemu import attach_device, define, detach_device, update_device
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_hotplug.livestate import parse_hostdevs

CAPABILITIES = load("x86_64")
DISK = "<disk type='file' device='disk'><source file='{}'/><target dev='{}' bus='virtio'/></disk>"
NET = "<interface type='{}'><mac address='52:54:00:00:00:01'/>{}</interface>"


def hostdev(function: int, more: str = "") -> str:
    return (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0001' bus='0x09' slot='0x00' "
        f"function='{function}'/></source>{more}</hostdev>"
    )


@pytest.fixture
def dom() -> DomainDef:
    """A q35 guest with one host device, one disk and one interface."""
    xml = (
        "<domain type='qemu'><name>vm</name><uuid>7d4cf5a0-31b0-4c8e-9d5d-3f7d0d5c1e01</uuid><memory>131072</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
        f"{hostdev(0)}{DISK.format('/a', 'vda')}{NET.format('user', '')}</devices></domain>"
    )
    return define(DomainDef.parse(xml), CAPABILITIES)


def functions(dom: DomainDef) -> list[tuple[int, bool]]:
    return [(h.pci_address.function, h.info.pci is not None) for h in dom.hostdevs]


def test_attached_function_gets_an_address(dom: DomainDef) -> None:
    """An attached device gets an address, and a port for it."""
    changed = attach_device(dom, hostdev(1), CAPABILITIES)
    assert [(0, True), (1, True)] == functions(changed)
    assert [(0, True)] == functions(dom)


def test_attached_unassigned_function_gets_none(dom: DomainDef) -> None:
    """A function that is not assigned is attached, too."""
    changed = attach_device(dom, hostdev(1, "<address type='unassigned'/>"), CAPABILITIES)
    assert [(0, True), (1, False)] == functions(changed)


def test_detached_function_can_be_attached_again(dom: DomainDef) -> None:
    """Detaching finds the device by the host's address; other values in the XML are ignored."""
    without = detach_device(dom, hostdev(0, "<boot order='9'/>"), CAPABILITIES)
    assert [] == functions(without)
    assert [(0, True)] == functions(attach_device(without, hostdev(0), CAPABILITIES))


def test_disk_is_updated_in_its_place(dom: DomainDef) -> None:
    """A disk is found by its target and keeps its address."""
    changed = update_device(dom, DISK.format("/b", "vda"), CAPABILITIES)
    assert ["/b"] == [disk.source.file for disk in changed.disks if disk.source is not None]
    assert [disk.info.address for disk in dom.disks] == [disk.info.address for disk in changed.disks]


@pytest.mark.parametrize(
    ("verb", "xml", "code"),
    [
        ("attach", hostdev(0), 55),
        ("attach", DISK.format("/b", "vda"), 55),
        ("attach", NET.format("user", ""), 55),
        ("attach", hostdev(1, "<address type='pci' bus='1' slot='1'/>"), 27),
        ("attach", hostdev(1, "<address type='usb' bus='0' port='1'/>"), 1),
        ("attach", "<controller type='pci' index='9' model='pcie-root-port'/>", 1),
        ("attach", "<hostdev", 35),
        ("attach", "<watchdog model='i6300esb'/>", 84),
        ("detach", hostdev(1), 99),
        ("detach", DISK.format("/a", "vdb"), 99),
        ("update", hostdev(0, "<boot order='1'/>"), 84),
        ("update", DISK.format("/a", "vdb"), 99),
    ],
)
def test_refused_change_has_libvirts_number_and_changes_nothing(dom: DomainDef, verb: str, xml: str, code: int) -> None:
    """Present, absent, invalid or unchangeable: each refusal has libvirt's number."""
    before = dom.format()
    verbs = {"attach": attach_device, "detach": detach_device, "update": update_device}
    with pytest.raises(ConfigError) as refusal:
        verbs[verb](dom, xml, CAPABILITIES)
    assert (code, before) == (refusal.value.libvirt_code, dom.format())


@pytest.mark.parametrize(
    "xml",
    [
        "<interface type='hostdev' assigned='no'><source><address type='pci' bus='9' slot='0'/></source></interface>",
        "<hostdev type='pci'><source assigned='no'><address bus='9' slot='0' function='1'/></source></hostdev>",
        DISK.format("/b", "vdb").replace("<disk", "<disk assigned='no'"),
    ],
    ids=["interface", "source", "disk"],
)
def test_a_misplaced_assigned_is_refused(dom: DomainDef, xml: str) -> None:
    """In the XML of one device and of a card, as in a domain: ignored, it would give the device to the guest."""
    with pytest.raises(ConfigError, match="cannot have 'assigned'"):
        attach_device(dom, xml, CAPABILITIES)
    if xml.startswith("<hostdev"):
        for text in (xml, f"<devices>{xml}</devices>"):
            with pytest.raises(ConfigError, match="cannot have 'assigned'"):
                parse_hostdevs(text)
