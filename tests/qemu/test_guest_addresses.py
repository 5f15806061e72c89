# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest address of each device and its reason, the moved devices, and pinned definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from pyhostdev import AddressChange, ConfigError, DomainDef, compare_addresses
from pyhostdev.conf.guest_addresses import has_moved
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE, RELEASES, LibvirtRelease
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_command import stored_capabilities

ORACLE = Path(__file__).parents[2] / "testdata" / "oracle"
CASES = sorted(path.name.removesuffix(".out.xml") for path in ORACLE.glob("*.out.xml"))
R9_0, R12_8 = RELEASES[0], RELEASES[-1]
NET = "<interface type='user'><mac address='52:54:00:00:00:{}'/><model type='{}'/></interface>"
DISK = "<disk type='file' device='disk'><source file='/{0}'/><target dev='{0}' bus='virtio'/></disk>"


def domain(*devices: str, machine: str = "q35", arch: str = "x86_64") -> DomainDef:
    """Return a definition like a user's."""
    return DomainDef.parse(
        f"<domain type='qemu'><name>d</name><memory>1048576</memory><os><type arch='{arch}' machine='{machine}'>hvm"
        f"</type></os><devices>{''.join(devices)}</devices></domain>"
    )


def defined(dom: DomainDef, release: LibvirtRelease = DEFAULT_RELEASE, *, keep_together: bool = False) -> DomainDef:
    """Return the definition with its addresses."""
    return define(dom, stored_capabilities(dom, release), release=release, keep_together=keep_together)


def why(dom: DomainDef) -> dict[str, tuple[str, str, bool]]:
    """Return address, reason and whether it is declared, by device."""
    return {found.device: (found.address, found.why, found.declared) for found in dom.addresses()}


def hostdev(function: int, address: str = "") -> str:
    """Return a host device."""
    return (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
        f"<address domain='0' bus='3' slot='0' function='{function}'/></source>{address}</hostdev>"
    )


def moved(changes: list[AddressChange]) -> list[tuple[str, str, str]]:
    """Return the devices that move, with their addresses."""
    return [(c.device, c.old.address, c.new.address) for c in changes if c.old is not None and c.new is not None]


def recorded(name: str) -> list[tuple[str, str]]:
    """Return tag and PCI address of each device as libvirt printed them."""
    found = []
    for device in etree.parse(ORACLE / f"{name}.out.xml").getroot().find("devices"):
        for part in device.findall("address[@type='pci']"):
            numbers = [int(str(part.get(key)), 16) for key in ("domain", "bus", "slot", "function")]
            found.append((device.tag, "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)))
    return sorted(found)


@pytest.mark.parametrize("name", CASES)
def test_addresses_are_libvirts_and_a_pin_keeps_them(name: str) -> None:
    """The list has every recorded PCI address; the pinned definition contains all of them, and no device moves."""
    dom = DomainDef.parse((ORACLE / f"{name}.xml").read_bytes())
    before = defined(DomainDef.parse((ORACLE / f"{name}.out.xml").read_bytes()))
    assert recorded(name) == sorted((found.kind, found.address) for found in before.addresses() if found.type == "pci")
    once = defined(dom)
    pinned = DomainDef.parse(dom.with_addresses_of(once).format())
    again = defined(pinned)
    assert [] == compare_addresses(once, again)
    assert {"written"} >= {found.why for found in again.addresses()}


def test_why_a_device_is_where_it_is() -> None:
    """Written in the definition, chosen, the chipset's usual place, or added with the domain's defaults."""
    written = "<address type='pci' domain='0' bus='0' slot='5' function='0'/></interface>"
    found = why(defined(domain(NET.format("01", "e1000").replace("</interface>", written), DISK.format("vda"))))
    assert ("0000:00:05.0", "written", True) == found["interface 52:54:00:00:00:01"]
    assert ("0000:01:00.0", "chosen", False) == found["controller usb 0 (qemu-xhci)"]
    assert ("0000:00:1f.2", "chipset", False) == found["controller sata 0"]
    assert ("0000:02:00.0", "chosen", True) == found["disk vda"]
    assert ("chosen", False) == found["memballoon"][1:]


def test_companions_of_a_device() -> None:
    """USB companions share the slot of their controller; functions of a card share one slot on request."""
    usb = [f"<controller type='usb' index='0' model='ich9-{model}'/>" for model in ("ehci1", "uhci1", "uhci2", "uhci3")]
    found = why(defined(domain(*usb, hostdev(0), hostdev(3), machine="pc"), keep_together=True))
    assert ["companion"] * 3 == [found[f"controller usb 0 (ich9-uhci{number})"][1] for number in (1, 2, 3)]
    first, second = found["hostdev 0000:03:00.0"], found["hostdev 0000:03:00.3"]
    assert ("chosen", "companion") == (first[1], second[1])
    assert first[0][:-1] == second[0][:-1]


def test_a_definition_that_was_not_defined_shows_what_is_written() -> None:
    """Parsing chooses nothing."""
    dom = domain(hostdev(0, "<address type='pci' slot='7'/>"), hostdev(1), hostdev(2, "<address type='unassigned'/>"))
    assert {"hostdev 0000:03:00.0": ("0000:00:07.0", "written", True)} == why(dom)


def test_one_more_interface_moves_the_devices_after_it() -> None:
    """A new device moves the disks after it; in the pinned definition, no device moves."""
    one, two = NET.format("01", "virtio"), NET.format("02", "virtio")
    dom = domain(one, DISK.format("vda"))
    old = defined(dom)
    changes = compare_addresses(old, defined(domain(one, two, DISK.format("vda"))))
    assert ("disk vda", "0000:03:00.0", "0000:04:00.0") in moved(changes)
    assert ["interface 52:54:00:00:00:02"] == [
        c.device for c in changes if c.change == "added" and "con" not in c.device
    ]
    pinned = dom.with_addresses_of(old)
    pinned.interfaces.append(domain(two).interfaces[0])
    assert [] == moved(compare_addresses(old, defined(DomainDef.parse(pinned.format()))))


def test_a_pin_leaves_all_else_as_written() -> None:
    """The machine remains an alias, models remain unset, and devices without a guest address are not added."""
    text = domain("<interface type='user'/>").with_addresses_of(defined(domain("<interface type='user'/>"))).format()
    assert "machine='q35'" in text
    assert "<model type=" not in text
    assert "<emulator>" not in text and "<audio" not in text
    assert "<memballoon" in text and "<controller type='sata'" in text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<alias name='ua-a'/>", "<alias name='ua-a'/>"),
        ("<serial>A</serial><target dev='vda' bus='virtio'/>", "<serial>A</serial><target dev='vdb' bus='virtio'/>"),
        ("<target dev='vda' bus='virtio'/><source file='/a'/>", "<target dev='vdb' bus='virtio'/><source file='/a'/>"),
        ("<target dev='vdb' bus='virtio'/><source file='/a'/>", "<target dev='vdb' bus='virtio'/><source file='/b'/>"),
    ],
    ids=["alias", "serial", "source", "target"],
)
def test_devices_are_matched_by_what_they_are(before: str, after: str) -> None:
    """The same device is found under another address by its alias, source, target or serial number."""

    def disks(text: str, slot: int) -> DomainDef:
        target = "" if "target" in text else f"<target dev='vd{'ab'[slot % 2]}' bus='virtio'/>"
        disk = f"<disk type='file' device='disk'>{text}{target}<address type='pci' slot='{slot}'/></disk>"
        return domain(disk, "<disk type='file' device='disk'><target dev='sdz' bus='sata'/></disk>")

    changes = compare_addresses(disks(before, 6), disks(after, 7))
    assert [("0000:00:06.0", "0000:00:07.0")] == [change[1:] for change in moved(changes)]


def test_a_device_that_comes_or_goes_does_not_move() -> None:
    """Only the same device in another place counts as moved."""
    old, new = defined(domain(DISK.format("vda"))), defined(domain(DISK.format("vda"), "<vsock model='virtio'/>"))
    changes = compare_addresses(old, new)
    assert "vsock" in [change.device for change in changes]
    assert {"added"} == {change.change for change in changes if change.device == "vsock"}
    assert not has_moved(compare_addresses(old, old))


@pytest.mark.parametrize(
    ("controllers", "expected"),
    [
        ("<controller type='pci' index='8' model='pci-bridge'/>", True),
        ("<controller type='pci' index='1' model='pci-bridge'/>", False),
    ],
)
def test_a_later_libvirt_moves_devices_behind_index_gaps(controllers: str, expected: bool) -> None:
    """libvirt sorts added controllers by index since 11.3; before, they were last."""
    bus = "<address type='pci' bus='8' slot='1'/></interface>" if expected else "</interface>"
    dom = domain(controllers, NET.format("01", "e1000").replace("</interface>", bus), machine="pc")
    assert expected == has_moved(compare_addresses(defined(dom, R9_0), defined(dom, R12_8)))


def test_host_bridges_of_pseries_are_identified_by_index() -> None:
    """The index identifies a host bridge in the guest; a written index is not chosen."""
    bridge = "<controller type='pci' index='1' model='pci-root'><target index='3'/></controller>"
    found = defined(domain(bridge, arch="ppc64", machine="pseries")).addresses()
    phbs = {f.name: (f.address, f.why) for f in found if f.type == "phb"}
    assert {"pci 0 (pci-root)": ("0", "chosen"), "pci 1 (pci-root)": ("3", "written")} == phbs


def test_a_pin_of_a_wrong_definition_is_refused() -> None:
    """A definition that is refused has no addresses."""
    with pytest.raises(ConfigError):
        defined(domain(hostdev(0, "<address type='pci' bus='0x20' slot='40'/>")))
