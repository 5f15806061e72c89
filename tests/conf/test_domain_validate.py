# SPDX-License-Identifier: LGPL-2.1-or-later
"""Contradictions in a well-formed definition."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.domain_validate import validate_all
from pyhostdev.errors import ConfigError, ConfigUnsupportedError, XMLError
from pyhostdev.qemu.qemu_command import build_command_line

TESTDATA = Path(__file__).parents[2] / "testdata" / "conf"
UUID = "53764d0e-85a0-42b4-af5c-2046b460b1dc"
PCI = "<hostdev type='pci'><source><address bus='{}'/></source>{}</hostdev>\n"
MDEV = f"<hostdev type='mdev' model='vfio-pci' {{}}><source><address uuid='{UUID}'/></source></hostdev>\n"
USER_NET = "<interface type='user'>{}</interface>"
USB = "<hostdev type='usb'><source><address bus='1' device='2'/></source>{}</hostdev>\n"
NET = "<interface type='hostdev'><source><address type='pci' bus='{}'/></source>{}</interface>\n"
DISK = "<disk type='file' {}><source file='/x'/><target {}/>{}</disk>\n"


def domain(devices: str = "", rest: str = "") -> DomainDef:
    return DomainDef.parse(f"<domain type='kvm'><name>d</name>{rest}<devices>\n{devices}</devices></domain>")


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("*.xml")), ids=lambda path: path.stem)
def test_domains_that_libvirt_accepts_are_accepted(path: Path) -> None:
    """No rule is stricter than libvirt."""
    assert [] == validate_all(DomainDef.parse(path.read_bytes()))


@pytest.mark.parametrize(
    ("devices", "code", "line"),
    [
        (PCI.format(1, "") * 2, 27, 3),
        (NET.format(1, "") + PCI.format(1, ""), 27, 3),
        (NET.format(1, "") * 2, 27, 3),
        (MDEV.format("") * 2, 27, 3),
        (USB.format("") * 2, 27, 3),
        (PCI.format(1, "<alias name='ua-x'/>") + PCI.format(2, "<alias name='ua-x'/>"), 67, 3),
        (PCI.format(1, "<alias name='ua-x'/>") + NET.format(2, "<alias name='ua-x'/>"), 67, 2),
        (PCI.format(1, "<teaming type='persistent'/>"), 67, 2),
        (PCI.format(1, "<teaming type='transient'/>"), 67, 2),
        (USB.format("<teaming type='transient' persistent='ua-n'/>"), 67, 2),
        (PCI.format(1, "<address type='drive'/>"), 1, 2),
        (USB.format("<address type='unassigned'/>"), 67, 2),
        (PCI.format(1, "<rom enabled='no' bar='on'/>"), 67, 2),
        (USB.format("<rom bar='on'/><address type='usb' bus='0' port='1'/>"), 67, 2),
        (NET.format(1, "<address type='unassigned'/>"), 67, 2),
        (NET.format(1, "<mtu size='1400'/>"), 67, 2),
        (USER_NET.format("<model type='virtio'/><teaming type='persistent' persistent='ua-n'/>"), 67, 2),
        ("<controller type='pci' index='256' model='pci-bridge'/>", 67, 2),
        ("<controller type='pci' index='0' model='pci-root'><target index='1'/></controller>", 67, 2),
        ("<controller type='pci' index='1' model='pci-root'><target index='31'/></controller>", 67, 2),
        ("<controller type='pci' index='1' model='pci-bridge'><target chassisNr='0'/></controller>", 67, 2),
        ("<controller type='pci' index='1' model='pcie-root-port'><target port='256'/></controller>", 67, 2),
        ("<controller type='pci' index='0' model='pci-root'><target><node>0</node></target></controller>", 67, 2),
        ("<controller type='usb' index='0'><address type='unassigned'/></controller>", 67, 2),
        (DISK.format("", "dev='vda'", "") * 2, 27, 3),
        (DISK.format("", "dev='xyz'", ""), 1, 2),
        (DISK.format("device='floppy'", "dev='fda' bus='ide'", ""), 1, 2),
        (DISK.format("", "dev='sda' bus='scsi'", "<address type='pci'/>"), 67, 2),
        (DISK.format("rawio='yes'", "dev='sda' bus='scsi'", ""), 67, 2),
        ("<disk type='file'><source file='/x'/></disk>", 20, 2),
        ("<disk type='file'><target dev='vda'/></disk>", 19, 2),
        ("<serial type='file'/>", 1, 2),
        ("<serial type='tcp'><source mode='connect' service='1'/></serial>", 1, 2),
        ("<input type='tablet' bus='ps2'/>", 1, 2),
        ("<shmem name='a/b'/>", 67, 2),
        ("<vsock><cid address='2'/></vsock>", 67, 2),
        ("<iommu model='intel'><driver intremap='on'/></iommu>", 67, 2),
        ("<sound model='ich6'><audio id='7'/></sound>", 27, 2),
        ("<controller type='usb' index='0' model='none'/>\n<redirdev bus='usb' type='spicevmc'/>", 67, 3),
    ],
)
def test_what_libvirt_refuses_is_refused_with_its_number(devices: str, code: int, line: int) -> None:
    """One error, with libvirt's number and the line of the device at fault."""
    errors = validate_all(domain(devices))
    assert [(code, line)] == [(error.libvirt_code, error.line) for error in errors]
    with pytest.raises(ConfigError) as error:
        domain(devices).validate()
    assert str(errors[0]) == str(error.value)


@pytest.mark.parametrize(
    "devices",
    [
        PCI.format(1, "") + PCI.format(2, ""),
        PCI.format(1, "<alias name='ua-x'/>") + PCI.format(2, "<alias name='ua-y'/>"),
        PCI.format(1, "<rom bar='off'/><address type='unassigned'/>"),
        PCI.format(1, "<rom enabled='no'/>"),
        NET.format(1, "<alias name='ua-x'/>"),
        DISK.format("", "dev='vda'", "") + DISK.format("", "dev='vdb'", ""),
        "<channel type='unix'><target type='virtio'/></channel>",
        "<controller type='pci' index='1' model='pci-root'><target index='30'/></controller>",
    ],
)
def test_neighbours_of_what_is_refused_are_accepted(devices: str) -> None:
    """A rule refuses no similar definition."""
    assert [] == validate_all(domain(devices))


def test_all_errors_are_found_and_sorted_by_line() -> None:
    """All errors are returned at once; the raised one is the first in libvirt's order."""
    dom = domain(
        "<controller type='pci' index='300' model='pci-bridge'/>\n" + PCI.format(1, "") * 2,
        "<clock><timer name='rtc' frequency='1'/></clock>",
    )
    errors = validate_all(dom)
    assert [(1, ConfigUnsupportedError), (2, ConfigUnsupportedError), (4, XMLError)] == [
        (error.line, type(error)) for error in errors
    ]


def test_ramfb_is_for_one_device() -> None:
    """Two devices cannot both be the boot display."""
    other = MDEV.replace(UUID, UUID.replace("5", "6"))
    dom = domain(MDEV.format("ramfb='on'") + other.format("ramfb='on'"))
    assert [67] == [error.libvirt_code for error in validate_all(dom)]


def test_topology_and_processors_agree() -> None:
    """Sockets, dies, cores and threads multiply to the number of virtual CPUs."""
    cpu = "<vcpu>{}</vcpu><cpu><topology sockets='2' cores='2' threads='1'/></cpu>"
    assert ([], [67]) == tuple(
        [error.libvirt_code for error in validate_all(domain(rest=cpu.format(number)))] for number in (4, 3)
    )


@pytest.mark.parametrize(("name", "what"), [("a/b", "a slash"), ("../x", "a slash"), ("a&#10;b", "a line break")])
def test_a_name_ends_in_paths_and_lines(name: str, what: str) -> None:
    """A name that no file can have, or that breaks a line of output, is refused by validate and define."""
    dom = DomainDef.parse(
        f"<domain type='qemu'><name>{name}</name><memory>524288</memory><os><type>hvm</type></os></domain>"
    )
    for check in (dom.validate, lambda: build_command_line(dom)):
        with pytest.raises(XMLError, match=what):
            check()


def test_a_zero_that_was_written_is_printed() -> None:
    """The printed form can be parsed again, even with an invalid amount of memory."""
    text = domain().format().replace("</name>", "</name><currentMemory>0</currentMemory>", 1)
    printed = DomainDef.parse(text).format()
    assert "<currentMemory>0</currentMemory>" in printed
    assert printed == DomainDef.parse(printed).format()
