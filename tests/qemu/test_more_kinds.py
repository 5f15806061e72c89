# SPDX-License-Identifier: LGPL-2.1-or-later
"""File systems by mtp, controllers of SCSI host devices, the guest's UUID, and words that QEMU guests do not need."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.conf.bus_address_conf import USBAddress
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_command.ignored import start_findings

OLDEST, MIDDLE, NEWEST = RELEASES
UUID = "11111111-2222-3333-4444-555555555555"
HWUUID = "12345678-2222-3333-4444-555555555555"
SCSI = """<hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='iqn.x:y/1'><host name='h' port='3260'/>
</source>{}</hostdev>"""
MTP = """<filesystem type='mount'{}><driver type='mtp'/><source dir='/export'/><target dir='share'/>{}</filesystem>"""

DISK_OF_A_GUEST = "<disk><source file='/a'/><backenddomain name='x'/><target dev='vda'/></disk>"
FORMAT = "<filesystem><driver type='path' format='raw'/><source dir='/e'/><target dir='s'/></filesystem>"
DELAY = """<serial type='unix'><source mode='connect' path='/s'><reconnect enabled='yes' timeout='7' delay='5'/>
</source></serial>"""


def domain(devices: str = "", head: str = "", os: str = "") -> DomainDef:
    return DomainDef.parse(
        f"<domain type='qemu'><name>d</name><uuid>{UUID}</uuid>{head}<memory unit='MiB'>64</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{os}</os><devices>{devices}</devices></domain>"
    )


def defined(dom: DomainDef, release: LibvirtRelease = NEWEST) -> DomainDef:
    return define(dom, stored_capabilities(dom, release), release=release)


def device(argv: list[str], driver: str) -> dict[str, Any]:
    found = [json.loads(value) for option, value in pairwise(argv) if option == "-device"]
    return next(properties for properties in found if properties["driver"] == driver)


def refusal(dom: DomainDef, release: LibvirtRelease = NEWEST) -> int:
    with pytest.raises(ConfigError) as caught:
        defined(dom, release)
    return caught.value.code_in(release)


@pytest.mark.parametrize(("inside", "readonly"), [("", False), ("<readonly/>", True)])
@pytest.mark.parametrize("release", [MIDDLE, NEWEST], ids=str)
def test_mtp(release: LibvirtRelease, inside: str, *, readonly: bool) -> None:
    """The directory is a USB device with a port; libvirt 11.3 and 12.8 print it so."""
    place = {"bus": "usb.0", "port": "1"}
    expected = {"driver": "usb-mtp", "id": "fs0", "rootdir": "/export", "desc": "share", "readonly": readonly, **place}
    assert expected == device(build_command_line(domain(MTP.format("", inside)), release=release), "usb-mtp")


def test_mtp_that_libvirt_refuses() -> None:
    """libvirt 9.0 does not know it, and the newer ones refuse another access mode, and a guest without USB."""
    with pytest.raises(ConfigError) as caught:
        build_command_line(domain(MTP.format("", "")), release=OLDEST)
    assert 27 == caught.value.code_in(OLDEST)
    assert 67 == refusal(domain(MTP.format(" accessmode='mapped'", "")))
    assert 67 == refusal(domain("<controller type='usb' model='none'/>" + MTP.format("", "")))


@pytest.mark.parametrize(
    ("release", "controllers", "unit", "expected"),
    [
        (OLDEST, "", 0, ["lsilogic"]),
        (NEWEST, "", 2, ["lsilogic"] * 3),
        (OLDEST, "<controller type='scsi' index='0' model='virtio-scsi'/>", 2, ["virtio-scsi", "lsilogic", "lsilogic"]),
        (NEWEST, "<controller type='scsi' index='0' model='virtio-scsi'/>", 2, ["virtio-scsi"] * 3),
    ],
)
def test_controllers_that_scsi_host_devices_add(
    release: LibvirtRelease, controllers: str, unit: int, expected: list[str]
) -> None:
    """They are added before the default controllers, so that they get their PCI slots first; the model is libvirt's."""
    place = f"<address type='drive' controller='{unit}' bus='0' target='0' unit='0'/>" if unit else ""
    dom = defined(domain(controllers + SCSI.format(place)), release)
    assert expected == [c.model for c in dom.controllers if c.type == "scsi"]
    assert ["scsi", "usb"] == list(dict.fromkeys(c.type for c in dom.controllers if c.type in ("scsi", "usb")))


def test_hwuuid() -> None:
    """The guest sees this UUID; <sysinfo> must have the same; libvirt before 12.8 drops it."""
    head = f"<hwuuid>{HWUUID}</hwuuid>"
    for release, expected in ((NEWEST, HWUUID), (MIDDLE, UUID)):
        argv = build_command_line(domain(head=head), release=release)
        assert expected == argv[argv.index("-uuid") + 1]
    entry = "<sysinfo type='smbios'><system><entry name='uuid'>{}</entry></system></sysinfo>"
    assert 35 == refusal(domain(head=head + entry.format(UUID), os="<smbios mode='sysinfo'/>"))
    defined(domain(head=head + entry.format(HWUUID), os="<smbios mode='sysinfo'/>"))
    assert 35 == refusal(domain(head=head + entry.format(HWUUID)), MIDDLE)


def test_weight_of_a_polling_thread() -> None:
    """libvirt 12.8 passes it on; older ones drop it."""
    head = "<iothreads>1</iothreads><iothreadids><iothread id='1'><poll max='1' weight='4'/></iothread></iothreadids>"
    expected = '{"qom-type":"iothread","id":"iothread1","poll-max-ns":1,"poll-weight":4}'
    assert expected in build_command_line(domain(head=head), release=NEWEST)
    assert expected.replace(',"poll-weight":4', "") in build_command_line(domain(head=head), release=MIDDLE)


@pytest.mark.parametrize(
    ("dom", "notes"),
    [
        pytest.param(domain(os="<root>/dev/sda</root>"), ["ignored"], id="root"),
        pytest.param(domain(head="<cpu mode='maximum' deprecated_features='off'/>"), ["ignored"], id="features"),
        pytest.param(domain(DISK_OF_A_GUEST), ["ignored"], id="disk"),
        pytest.param(domain(FORMAT), ["ignored"], id="format"),
        pytest.param(domain("<serial type='pty' tty='/dev/pts/3'/>"), [], id="tty"),
        pytest.param(domain(DELAY), [], id="delay"),
    ],
)
def test_words_that_change_nothing(dom: DomainDef, notes: list[str]) -> None:
    """libvirt prints the same command line with and without them, and so do we; some get a note."""
    assert build_command_line(dom)
    assert notes == [finding.reason for finding in start_findings(dom)]


def test_limits_of_a_file_system() -> None:
    """Newer releases of libvirt refuse them."""
    limits = "<space_hard_limit unit='KiB'>10</space_hard_limit>"
    assert 67 == refusal(domain(f"<filesystem><source dir='/e'/><target dir='s'/>{limits}</filesystem>"))


USB_DEVICES = """<controller type='usb' model='qemu-xhci' ports='15'/>
<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='4000'/></redirdev><sound model='usb'/>
<smartcard mode='host'/><input type='tablet' bus='usb'/><serial type='null'><target type='usb-serial'/></serial>
<hostdev mode='subsystem' type='usb'><source><address bus='1' device='4'/></source></hostdev>
<disk type='file'><source file='/a'/><target dev='sda' bus='usb'/></disk>"""
OLD_ORDER = ["hostdev", "disk", "controller", "input", "serial", "sound", "redirdev"]
NEW_ORDER = ["disk", "sound", "hostdev", "controller", "serial", "input", "redirdev"]


@pytest.mark.parametrize(("release", "expected"), [(OLDEST, OLD_ORDER), (MIDDLE, NEW_ORDER), (NEWEST, NEW_ORDER)])
def test_order_of_usb_ports(release: LibvirtRelease, expected: list[str]) -> None:
    """Newer releases use the order of all devices, libvirt 9.0 another one."""
    infos = [(part.tag, info) for part, info in defined(domain(USB_DEVICES), release).device_infos()]
    ports = {int(str(info.address.port)): tag for tag, info in infos if isinstance(info.address, USBAddress)}
    assert expected == [ports[number] for number in sorted(ports)]


def test_card_reader_behind_a_hub() -> None:
    """The hub is there before the card reader, which can be plugged into it."""
    devices = "<controller type='usb' model='qemu-xhci'/><hub type='usb'/><smartcard mode='host'/>"
    for release in RELEASES:
        argv = build_command_line(domain(devices), release=release)
        drivers = [json.loads(value)["driver"] for option, value in pairwise(argv) if option == "-device"]
        assert ["usb-hub", "usb-ccid"] == [name for name in drivers if name in ("usb-hub", "usb-ccid")]


@pytest.mark.parametrize(
    ("release", "serial", "expected"),
    [(OLDEST, "", [0, 1]), (NEWEST, "", [0, 1]), (OLDEST, "<serial/>", [0, 0, 1]), (NEWEST, "<serial/>", [0, 1, 2])],
)
def test_ports_of_consoles(release: LibvirtRelease, serial: str, expected: list[int]) -> None:
    """A console's port is its place; 9.0 does not count the console of the first serial port."""
    consoles = "".join(f"<console type='pty'><target type='virtio' port='{port}'/></console>" for port in (5, 3))
    serial = serial.replace("/>", " type='pty'/>")
    dom = DomainDef.parse(defined(domain(serial + consoles), release).format())
    assert expected == [console.target_port for console in dom.consoles]


@pytest.mark.parametrize(
    ("release", "os", "expected"),
    [
        (OLDEST, "<loader>/b.bin</loader>", "<loader type='rom'>/b.bin</loader>"),
        (MIDDLE, "<loader>/b.bin</loader>", "<loader type='rom' format='raw'>/b.bin</loader>"),
        (MIDDLE, "<loader type='rom'>/b.bin</loader>", "<loader type='rom'>/b.bin</loader>"),
        (NEWEST, "<loader type='rom'>/b.bin</loader>", "<loader type='rom' format='raw'>/b.bin</loader>"),
    ],
)
def test_format_of_a_rom(release: LibvirtRelease, os: str, expected: str) -> None:
    """Each release prints it in other cases."""
    assert expected in defined(domain(os=os), release).format()


@pytest.mark.parametrize(
    ("release", "devices", "expected"),
    [
        (MIDDLE, "<disk type='file' device='cdrom'><target dev='sda' bus='usb'/></disk>", 67),
        (NEWEST, "<disk type='file' device='cdrom' model='usb-storage'><target dev='sda' bus='usb'/></disk>", 67),
        (NEWEST, "<interface type='ethernet'><coalesce><rx><frames max='7'/></rx></coalesce></interface>", 67),
    ],
)
def test_device_that_libvirt_refuses(release: LibvirtRelease, devices: str, expected: int) -> None:
    """An empty disk on USB, which only 12.8 makes of another model, and frames that no tap collects."""
    assert expected == refusal(domain(devices), release)


def test_serial_output_of_the_firmware_needs_a_port() -> None:
    """It is the first error, whatever else is wrong."""
    head = "<features><hyperv><stimer state='on'/></hyperv></features>"
    assert 27 == refusal(domain(head=head, os="<bios useserial='yes'/>"))


def test_smm_of_a_pc() -> None:
    """libvirt accepts it, but no TSEG of a chosen size."""
    for state, expected in (("<smm state='on'/>", 0), ("<smm><tseg unit='MiB'>16</tseg></smm>", 67)):
        dom = domain(head=f"<features>{state}</features>")
        dom.os.machine = "pc"
        assert expected == (refusal(dom) if expected else 0)
        if not expected:
            assert defined(dom)


LATE_DEVICES = """<panic model='pvpanic'/><vsock model='virtio'><cid auto='no' address='5'/></vsock>
<pstore backend='acpi-erst'><path>/p</path><size unit='KiB'>8</size></pstore>
<crypto model='virtio' type='qemu'><backend model='builtin'/></crypto>"""


@pytest.mark.parametrize("release", [MIDDLE, NEWEST], ids=str)
def test_order_of_the_last_devices(release: LibvirtRelease) -> None:
    """XML, PCI slots and command line each have an order of their own, as in libvirt."""
    written = domain(LATE_DEVICES + "<memballoon model='none'/>")
    written.os.machine = "pc"
    dom = defined(written, release)
    names = ("panic", "vsock", "pstore", "crypto")
    assert ["panic", "crypto", "vsock", "pstore"] == [part.tag for part in dom.devices() if part.tag in names]
    argv = build_command_line(dom, release=release)
    drivers = [json.loads(value)["driver"] for option, value in pairwise(argv) if option == "-device"]
    late = ["pvpanic-pci", "vhost-vsock-pci", "virtio-crypto-pci", "acpi-erst"]
    assert late == [name for name in drivers if name in late]
    slots = {part.tag: info.pci.pci for part, info in dom.device_infos() if part.tag in names and info.pci is not None}
    assert slots["crypto"] < slots["panic"] < slots["pstore"]


@pytest.mark.parametrize(("release", "expected"), [(OLDEST, [None, "on"]), (MIDDLE, ["on", "on"])])
def test_zeroes_in_a_backing_image(release: LibvirtRelease, expected: list[str | None]) -> None:
    """libvirt 9.0 looks for zeroes in the disk's own image only."""
    backing = "<backingStore type='file'><format type='qcow2'/><source file='/b'/><backingStore/></backingStore>"
    driver = "<driver type='qcow2' detect_zeroes='on'/>"
    dom = domain(f"<disk type='file'>{driver}<source file='/a'/>{backing}<target dev='vda'/></disk>")
    argv = build_command_line(dom, release=release)
    nodes = [json.loads(value) for option, value in pairwise(argv) if option == "-blockdev"]
    assert expected == [node.get("detect-zeroes") for node in nodes if node["driver"] == "qcow2"]
