# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that a whole command line shows best: the block nodes and devices that libvirt prints for each release."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_command.ignored import start_findings
from pyhostdev.qemu.qemu_process.disk_files import READ, WRITE, disk_files

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
DOMAINS = [*sorted(TESTDATA.glob("disks/*.xml")), TESTDATA / "later/disks.xml"]
NEWEST = RELEASES[-1]
OF_DISKS = ('"drive":', '"chardev":"chr-vu', "secret", "tls-creds", "throttle-group", "vhost-vdpa", "chr-vu")
PLACE = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
NVME = "type='pci' managed='yes' namespace='1'"


def domain(devices: str, head: str = "") -> DomainDef:
    return DomainDef.parse(
        f"<domain type='qemu'><name>d</name><memory unit='MiB'>64</memory>{head}"
        f"<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"
    )


def capabilities(dom: DomainDef, release: LibvirtRelease) -> QEMUCapabilities:
    return stored_capabilities(dom, release)


def defined(dom: DomainDef, release: LibvirtRelease = NEWEST) -> DomainDef:
    return define(dom, capabilities(dom, release), release=release)


def disk_words(dom: DomainDef, release: LibvirtRelease) -> list[str]:
    """Return the options about disks, as the golden files have them."""
    argv = build_command_line(dom, release=release)
    found = [
        (option, value)
        for option, value in pairwise(argv)
        if option == "-blockdev"
        or (option in ("-object", "-device", "-chardev") and any(word in value for word in OF_DISKS))
    ]
    return [word for pair in found if "masterKey" not in pair[1] and "monitor-qmp" not in pair[1] for word in pair]


def refusal(devices: str, release: LibvirtRelease = NEWEST, head: str = "") -> int:
    """Return libvirt's number of the error that refuses a definition."""
    with pytest.raises(ConfigError) as caught:
        defined(domain(devices, head), release)
    return caught.value.code_in(release)


def nvme_disk(source: str = NVME, inside: str = PLACE, attributes: str = "", more: str = "") -> str:
    return (
        f"<disk type='nvme' {attributes}><source {source}>{inside}</source>"
        f"<target dev='vda' bus='virtio'/>{more}</disk>"
    )


@pytest.mark.parametrize("release", RELEASES, ids=str)
@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.stem)
def test_disks_are_built_as_libvirt_builds_them(path: Path, release: LibvirtRelease) -> None:
    """The golden files are the answers of libvirt itself."""
    golden = TESTDATA / f"disks/{path.stem}-{release}.args"
    if not golden.exists():
        assert not release.has("disk-words")  # the domain has words that 9.0 does not know
        return
    assert golden.read_text().splitlines() == disk_words(DomainDef.parse(path.read_bytes()), release)


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        pytest.param(nvme_disk("managed='yes' namespace='1'"), 27, id="no type"),
        pytest.param(nvme_disk("type='usb' namespace='1'"), 27, id="another type"),
        pytest.param(nvme_disk("type='pci'"), 27, id="no namespace"),
        pytest.param(nvme_disk("type='pci' namespace='0'"), 67, id="namespace 0"),
        pytest.param(nvme_disk("type='pci' namespace='x'"), 27, id="namespace x"),
        pytest.param(nvme_disk(inside=""), 27, id="no address"),
        pytest.param(nvme_disk(inside=PLACE.replace("slot='0x00'", "slot='0x20'")), 27, id="slot 32"),
        pytest.param(nvme_disk(NVME + " startupPolicy='optional'"), 27, id="startup policy"),
        pytest.param(nvme_disk(more="<transient/>"), 67, id="transient"),
    ],
)
def test_nvme_disk_that_libvirt_refuses(disk: str, expected: int) -> None:
    """The numbers are libvirt's."""
    assert expected == refusal(disk)


def test_nvme_source_has_only_its_own_words() -> None:
    """An NVMe controller is managed unless the definition says no; words of other sources are dropped."""
    foreign = PLACE.replace("/>", " type='pci' multifunction='on'/>")
    printed = defined(domain(nvme_disk("type='pci' namespace='1' file='/a'", foreign))).format()
    assert "<source type='pci' managed='yes' namespace='1'>" in printed
    assert PLACE in printed
    foreign = f"<source file='/a' type='pci' managed='no' namespace='1'>{PLACE}</source>"
    dom = domain(f"<disk>{foreign}<target dev='vda'/></disk>")
    assert "<source file='/a'/>" in defined(dom).format()
    assert [] == dom.host_functions()


def test_nvme_disk_needs_no_note() -> None:
    """Nothing of such a disk is ignored by start."""
    assert [] == start_findings(domain(nvme_disk()))


def disk(
    inside: str = "<source file='/a'/>", *, kind: str = "qcow2", attributes: str = "type='file'", bus: str = "virtio"
) -> str:
    target = "vda" if bus == "virtio" else "sda"
    return f"<disk {attributes}><driver type='{kind}'/>{inside}<target dev='{target}' bus='{bus}'/></disk>"


def groups(*names: str) -> str:
    rows = (
        f"<throttlegroup><total_iops_sec>9</total_iops_sec><group_name>{name}</group_name></throttlegroup>"
        for name in names
    )
    return f"<throttlegroups>{''.join(rows)}</throttlegroups>"


def filters(*names: str) -> str:
    rows = (f"<throttlefilter group='{name}'/>" for name in names)
    return f"<source file='/a'/><throttlefilters>{''.join(rows)}</throttlefilters>"


def store(inside: str = "<format type='raw'/><source file='/d'/>", attributes: str = " type='file'") -> str:
    return f"<source file='/a'><dataStore{attributes}>{inside}</dataStore></source>"


def reservations(attributes: str, inside: str = "") -> str:
    source = f"<source dev='/dev/sdx'><reservations {attributes}>{inside}</reservations></source>"
    return disk(source, kind="raw", attributes="type='block' device='lun'", bus="scsi")


SLICE = "<source file='/a'><slices><slice {}/></slices></source>"
VDPA = "<source dev='/dev/vhost-vdpa-0'/>"
LIMIT = "<iotune><total_bytes_sec>1000</total_bytes_sec></iotune>"
COOKIE = "<source protocol='https' name='x'><host name='h'/><cookies><cookie name='a b'>c</cookie></cookies></source>"


@pytest.mark.parametrize(
    ("head", "devices", "expected"),
    [
        pytest.param("", disk(SLICE.format("type='storage' offset='1'")), 27, id="slice without size"),
        pytest.param("", disk(SLICE.format("type='storage' offset='x' size='1'")), 27, id="slice at x"),
        pytest.param("", disk(filters("a")), 27, id="filter without group"),
        pytest.param(groups("a"), disk(filters("a", "a")), 27, id="filter twice"),
        pytest.param(groups("a", "a"), disk(), 27, id="group twice"),
        pytest.param("<throttlegroups><throttlegroup/></throttlegroups>", disk(), 27, id="group without name"),
        pytest.param(groups("a"), disk(filters("a") + LIMIT), 84, id="filter and iotune"),
        pytest.param(
            groups("a"), disk(filters("a"), attributes="device='cdrom'", bus="sata"), 84, id="cdrom with filter"
        ),
        pytest.param("", disk(store(), kind="raw"), 67, id="content of a raw image"),
        pytest.param("", disk(store("<format type='qcow2'/><source file='/d'/>")), 67, id="content with a format"),
        pytest.param("", disk(store("<source file='/d'/>")), 27, id="content without format"),
        pytest.param("", disk(store("<format type='raw'/>")), 27, id="content without source"),
        pytest.param("", disk(store(attributes="")), 27, id="content without type"),
        pytest.param("", disk("<transient shareBacking='maybe'/><source file='/a'/>"), 27, id="share maybe"),
        pytest.param(
            "", disk("<transient shareBacking='yes'/><source file='/a'/>", bus="sata"), 67, id="share on sata"
        ),
        pytest.param("", reservations(""), 27, id="reservations without managed"),
        pytest.param("", reservations("managed='no'"), 27, id="reservations without socket"),
        pytest.param("", disk(COOKIE, kind="raw", attributes="type='network'"), 27, id="cookie with a blank"),
        pytest.param("", disk("<source file='/a'/><target dev='vda' dpofua='on'/>"), 67, id="dpofua of virtio"),
        pytest.param("", disk(VDPA, kind="raw", attributes="type='vhostvdpa'"), 67, id="vdpa without shared memory"),
    ],
)
def test_disk_that_libvirt_refuses(head: str, devices: str, expected: int) -> None:
    """The numbers are those of libvirt 12.8."""
    assert expected == refusal(devices, head=head)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        pytest.param(disk("<source file='/a'/><transient/>"), ["unsupported"], id="transient"),
        pytest.param(reservations("managed='yes'"), ["unsupported"], id="managed reservations"),
        pytest.param(
            reservations("managed='no'", "<source type='unix' path='/s' mode='client'/>"), [], id="own socket"
        ),
        pytest.param(disk(store()), [], id="content"),
    ],
)
def test_what_start_does_not_do_for_a_disk(devices: str, expected: list[str]) -> None:
    """It makes no overlay and runs no program for reservations; it refuses such a disk before the first write."""
    assert expected == [finding.reason for finding in start_findings(domain(devices))]


def test_disk_on_vdpa() -> None:
    """QEMU inherits the node, as libvirt's start has it; its domxml-to-native cannot print such a disk."""
    shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    source = f"<disk type='vhostvdpa'><driver type='raw' cache='none'/>{VDPA}<target dev='vda' bus='virtio'/></disk>"
    argv = build_command_line(domain(source, shared))
    assert "set=0,fd=3,opaque=libvirt-1-storage-vdpa" == argv[argv.index("-add-fd") + 1]
    assert (
        '{"driver":"virtio-blk-vhost-vdpa","path":"/dev/fdset/0","node-name":"libvirt-1-storage","read-only":false,'
        '"cache":{"direct":true,"no-flush":false}}'
    ) == argv[argv.index("-blockdev") + 1]


def test_files_of_a_disk() -> None:
    """The content elsewhere, the certificate and the socket for reservations are looked for before the start."""
    nbd = "<source protocol='nbd' name='x' tls='yes'><host name='h'/></source>"
    own = reservations("managed='no'", "<source type='unix' path='/s' mode='client'/>")
    found = [
        (file.path, file.mode)
        for text in (disk(store()), disk(nbd, kind="raw", attributes="type='network'"), own)
        for row in domain(text).disks
        for file in disk_files(row)
    ]
    assert [
        ("/a", WRITE),
        ("/d", WRITE),
        ("/etc/pki/qemu/ca-cert.pem", READ),
        ("/dev/sdx", WRITE),
        ("/s", os.W_OK),
    ] == found
