# SPDX-License-Identifier: LGPL-2.1-or-later
"""Defaults: the values that libvirt fills in when a domain is defined, with QEMU's part."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev.conf.bus_address_conf import DriveAddress
from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.errors import ConfigError
from pyhostdev.qemu.qemu_postparse import post_parse

TESTDATA = Path(__file__).parents[2] / "testdata" / "conf"
DEFINED = sorted(TESTDATA.glob("*.out.xml"))
WRITTEN = sorted(set(TESTDATA.glob("*.xml")) - set(DEFINED))
R9_0 = RELEASES[0]  # whose answers lie in testdata


def domain(
    devices: str = "", rest: str = "", *, machine: str = "pc", arch: str = "x86_64", type_: str = "qemu", os: str = ""
) -> DomainDef:
    return DomainDef.parse(
        f"<domain type='{type_}'><name>d</name><memory>1048576</memory>{rest}"
        f"<os><type arch='{arch}' machine='{machine}'>hvm</type>{os}</os><devices>{devices}</devices></domain>"
    )


def defined(*args: str, **options: str) -> DomainDef:
    return post_parse(domain(*args, **options))


def controllers(dom: DomainDef) -> list[tuple[str, int | None, str | None]]:
    return [(c.type, c.index, c.model) for c in dom.controllers]


@pytest.mark.parametrize("path", DEFINED, ids=lambda path: path.stem)
def test_a_domain_that_libvirt_defined_lacks_nothing(path: Path) -> None:
    """Filling in defaults changes nothing but the order of controllers, which libvirt sorts when it parses."""
    dom = DomainDef.parse(path.read_bytes())
    again = post_parse(dom, release=R9_0)
    for each in (dom, again):
        each.controllers.sort(key=lambda controller: controller.format())
    assert dom.format() == again.format()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_defaults_are_those_of_libvirt(path: Path) -> None:
    """All values that libvirt filled in, except guest addresses and controllers that only addresses need."""
    want = DomainDef.parse(path.with_suffix(".out.xml").read_bytes())
    have = post_parse(DomainDef.parse(path.read_bytes()), release=R9_0)
    for each in (want, have):
        each.controllers = [c for c in each.controllers if not c.is_pci]
        for _, info in each.device_infos():
            info.address = None
    assert want.format() == have.format()


@pytest.mark.parametrize("path", DEFINED + WRITTEN, ids=lambda path: path.stem)
def test_filling_in_twice_changes_nothing(path: Path) -> None:
    """Defaults are a fixed point, and the given definition is not changed."""
    dom = DomainDef.parse(path.read_bytes())
    before = dom.format()
    once = post_parse(dom)
    assert (before, once) == (dom.format(), post_parse(once))


@pytest.mark.parametrize(
    ("machine", "arch", "expected"),
    [
        ("pc", "x86_64", [("usb", 0, "piix3-uhci"), ("pci", 0, "pci-root")]),
        ("q35", "x86_64", [("usb", 0, "qemu-xhci"), ("sata", 0, None), ("pci", 0, "pcie-root")]),
        ("pseries", "ppc64", [("usb", 0, "qemu-xhci"), ("pci", 0, "pci-root")]),
        ("virt", "aarch64", [("pci", 0, "pcie-root")]),
        ("isapc", "x86_64", []),
    ],
)
def test_machines_have_the_controllers_they_always_have(
    machine: str, arch: str, expected: list[tuple[str, int | None, str | None]]
) -> None:
    """Implicit controllers follow the machine type."""
    assert expected == controllers(defined(machine=machine, arch=arch))


def test_scalars_have_defaults() -> None:
    """The elements that every domain has, with libvirt's values."""
    dom = defined()
    assert (
        "pc-i440fx-11.1",
        "utc",
        ("destroy", "restart", "destroy"),
        ["hd"],
        "static",
        1048576,
        ("custom", "exact", "none", "qemu64", "forbid"),
        "/usr/bin/qemu-system-x86_64",
        "virtio",
        [("mouse", "ps2"), ("keyboard", "ps2")],
        [(1, "none")],
    ) == (
        dom.os.machine,
        dom.clock.offset,
        (dom.on_poweroff, dom.on_reboot, dom.on_crash),
        dom.os.boot_devs,
        dom.vcpu_placement,
        dom.current_memory_kib,
        (dom.cpu.mode, dom.cpu.match, dom.cpu.check, dom.cpu.model, dom.cpu.fallback),
        dom.emulator,
        dom.memballoon.model,
        [(part.type, part.bus) for part in dom.inputs],
        [(audio.id, audio.type) for audio in dom.audios],
    )


def test_a_domain_without_uuid_or_mac_gets_the_same_ones_every_time() -> None:
    """The same file gives the same guest: no value is random."""
    one, other = defined("<interface type='user'/><interface type='user'/>"), defined("<interface type='user'/>")
    assert (one.uuid, one.interfaces[0].mac) == (other.uuid, other.interfaces[0].mac)
    assert one.interfaces[0].mac != one.interfaces[1].mac
    assert one.interfaces[0].mac.startswith("52:54:00:")


def test_controllers_are_sorted_and_numbered_within_their_type() -> None:
    """A lower index goes before a higher one of its type; without index the lowest free one is taken."""
    written = domain(
        "<controller type='scsi' index='3' model='virtio-scsi'/><controller type='usb' index='0'/>"
        "<controller type='scsi' index='1' model='virtio-scsi'/><controller type='scsi' model='virtio-scsi'/>"
    )
    dom = post_parse(written, release=R9_0)
    assert [("scsi", 1), ("scsi", 3), ("scsi", 0), ("usb", 0), ("pci", 0)] == [row[:2] for row in controllers(dom)]


def test_usb_companions_share_an_index_and_get_their_ports() -> None:
    """EHCI and its UHCI companions that follow it are one controller."""
    dom = defined("".join(f"<controller type='usb' model='ich9-{m}'/>" for m in ("ehci1", "uhci1", "uhci2", "uhci3")))
    usb = [(c.index, c.info.master_startport) for c in dom.controllers if c.type == "usb"]
    assert [(0, None), (0, 0), (0, 2), (0, 4)] == usb


@pytest.mark.parametrize(
    ("target", "bus", "place"),
    [
        ("vda", "virtio", None),
        ("hdd", "ide", (0, 1, 1)),
        ("sdi", "scsi", (1, 0, 1)),
        ("sdh", "sata", (1, 0, 1)),
        ("fdb", "fdc", (0, 0, 1)),
    ],
)
def test_disks_take_the_place_their_name_says(target: str, bus: str, place: tuple[int, ...] | None) -> None:
    """Controller, bus and unit follow from the name; the controller is added."""
    kind = "floppy" if bus == "fdc" else "disk"
    said = "" if bus != "sata" else "bus='sata'"
    dom = defined(f"<disk type='file' device='{kind}'><source file='/x'/><target dev='{target}' {said}/></disk>")
    disk = dom.disks[0]
    address = disk.info.address
    found = (address.controller, address.bus, address.unit) if isinstance(address, DriveAddress) else None
    assert (bus, place, "qemu", "raw") == (disk.bus, found, disk.driver_name, disk.driver_type)
    assert place is None or (bus, place[0]) in {(c.type, c.index) for c in dom.controllers}


def test_a_console_and_the_first_serial_port_are_one() -> None:
    """Each of the two implies the other; both are printed alike."""
    for device in ("<console type='pty'/>", "<serial type='pty'/>"):
        dom = defined(device)
        assert ("isa-serial", 0, "serial", 0) == (
            dom.serials[0].target_type,
            dom.serials[0].target_port,
            dom.consoles[0].target_type,
            dom.consoles[0].target_port if dom.format() else None,
        )
    dom = defined("<serial type='file'><source path='/log'/></serial>")
    assert 2 == dom.format().count("<source path='/log'/>")
    assert 1 == sum(device.tag in ("serial", "console") for device, _ in dom.device_infos())


@pytest.mark.parametrize(
    ("graphics", "expected"),
    [
        ("type='vnc'", {"port": -1, "autoport": True, "listen": None}),
        ("type='vnc' port='5901' listen='127.0.0.1'", {"port": 5901, "autoport": False, "listen": "127.0.0.1"}),
        ("type='vnc' port='-1'", {"port": -1, "autoport": True}),
        ("type='spice' autoport='yes' port='5900'", {"port": None, "autoport": True}),
        ("type='spice' port='5900'", {"port": 5900, "autoport": False}),
        ("type='spice'", {"port": None, "autoport": None, "listen": None}),
    ],
)
def test_ports_of_graphics_are_settled(graphics: str, expected: dict[str, object]) -> None:
    """Ports that are chosen when the guest starts are not kept."""
    screen = defined(f"<graphics {graphics}/>").graphics[0]
    assert expected == {name: getattr(screen, name) for name in expected}


def test_graphics_bring_a_video_device() -> None:
    """The first video device is the primary one."""
    dom = defined("<graphics type='vnc'/>")
    assert [("cirrus", 16384, 1, True)] == [(v.model_type, v.vram, v.heads, v.primary) for v in dom.videos]
    dom = defined("<video><model type='qxl'/></video><video><model type='virtio' primary='yes'/></video>")
    assert [("virtio", True), ("qxl", None)] == [(v.model_type, v.primary) for v in dom.videos]


def test_libvirt_does_not_look_at_what_a_kind_does_not_have() -> None:
    """ROM and boot order of a controller, multiqueue of a device that is not virtio, filters without tap."""
    dom = defined(
        "<controller type='usb' index='0' ports='4' vectors='2'><rom bar='on'/><boot order='1'/></controller>"
        "<interface type='user'><model type='e1000'/><driver queues='4'/><filterref filter='f'/></interface>"
        "<hostdev type='pci'><source><address bus='1'/></source><readonly/></hostdev>"
    )
    text = dom.format()
    assert [] == [word for word in ("rom", "order", "queues", "filterref", "readonly", "vectors") if word in text]


@pytest.mark.parametrize(
    ("devices", "rest", "code"),
    [
        ("<controller type='pci' index='1' model='pci-bridge'/>" * 2, "", 27),
        ("<controller type='pci' index='0' model='pcie-root'/>", "", 27),
        ("<controller type='pci' index='1' model='pcie-expander-bus'/>", "", 67),
        ("<controller type='usb' model='qemu-xhci' ports='16'/>", "", 67),
        ("<disk type='file'><source file='/x'/><target dev='xyz'/></disk>", "", 27),
        ("<serial type='pty'><target type='isa-serial' port='1'/></serial>" * 2, "", 1),
        ("<serial type='pty'><target type='isa-serial'/></serial>" * 5, "", 1),
        ("<console type='pty'/>" * 2, "", 67),
        ("<console type='pty'><target type='virtio'/><address type='virtio-serial' controller='7'/></console>", "", 0),
        ("<channel type='unix'><target type='virtio'/><address type='virtio-serial' controller='1'/></channel>", "", 0),
        ("", "<vcpu current='3'>2</vcpu>", 67),
        ("", "<maxMemory slots='1'>1</maxMemory>", 27),
        ("", "<cpu><numa><cell id='3' memory='1048576'/></numa></cpu>", 27),
        (
            "<hostdev type='pci'><source><address bus='1'/></source><boot order='1'/></hostdev>"
            "<hostdev type='pci'><source><address bus='2'/></source><boot order='1'/></hostdev>",
            "",
            67,
        ),
    ],
)
def test_contradictions_have_libvirts_numbers(devices: str, rest: str, code: int) -> None:
    """An impossible default is an error with libvirt's number; 0 means none."""
    if not code:
        assert "virtio-serial" in defined(devices, rest).format()
        return
    with pytest.raises(ConfigError) as error:
        defined(devices, rest)
    assert code == error.value.libvirt_code


def test_boot_order_of_devices_excludes_that_of_the_domain() -> None:
    """Devices or <os> define the boot order; the default only applies without both."""
    device = "<hostdev type='pci'><source><address bus='1'/></source><boot order='1'/></hostdev>"
    assert [] == defined(device).os.boot_devs
    with pytest.raises(ConfigError) as error:
        defined(device, os="<boot dev='hd'/>")
    assert 67 == error.value.libvirt_code


def test_memory_that_can_be_plugged_in_needs_a_numa_cell() -> None:
    """A domain without cells gets one with all processors."""
    dom = defined(rest="<maxMemory slots='2' unit='GiB'>4</maxMemory><vcpu>4</vcpu>")
    assert [(0, "0-3", 1048576, "KiB")] == [(c.id, c.cpus, c.memory, c.unit) for c in dom.cpu.cells]


def test_enlightenments_are_chosen_one_by_one() -> None:
    """Without a mode, <hyperv> has only the named features."""
    head = "<name>d</name><memory>9</memory><os><type>hvm</type></os>"
    dom = DomainDef.parse(f"<domain type='kvm'>{head}<features><hyperv/></features></domain>")
    assert "<hyperv mode='custom'/>" in post_parse(dom).format()


def test_serial_ports_of_no_written_type() -> None:
    """libvirt only counts ports of type isa-serial, so it accepts other ports with the same number."""
    for devices in ("<serial type='pty'><target port='1'/></serial>" * 2, "<serial type='pty'/>" * 5):
        assert defined(devices).serials
