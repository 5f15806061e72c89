# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that a whole command line shows best: the block nodes and devices that libvirt prints for each release."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_command.ignored import start_findings

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
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
@pytest.mark.parametrize("path", sorted(TESTDATA.glob("disks/*.xml")), ids=lambda path: path.stem)
def test_disks_are_built_as_libvirt_builds_them(path: Path, release: LibvirtRelease) -> None:
    """The golden files are the answers of libvirt itself."""
    golden = path.with_name(f"{path.stem}-{release}.args")
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
    assert "<source file='/a' type='pci' managed='yes' namespace='1'>" in printed
    assert PLACE in printed
    foreign = f"<source file='/a' type='pci' managed='no' namespace='1'>{PLACE}</source>"
    dom = domain(f"<disk>{foreign}<target dev='vda'/></disk>")
    assert "<source file='/a'/>" in defined(dom).format()
    assert [] == dom.host_functions()


def test_nvme_disk_needs_no_note() -> None:
    """Nothing of such a disk is ignored by start."""
    assert [] == start_findings(domain(nvme_disk()))
