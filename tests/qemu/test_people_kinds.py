# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kinds of domains that people have: what used to stop them is done, noted, or refused with what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyhostdev import DomainDef, Host
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.errors import ConfigError
from pyhostdev.qemu import build_command_line, qemu_driver
from pyhostdev.qemu.qemu_capabilities.choice import choose
from pyhostdev.qemu.qemu_command.ignored import start_findings
from pyhostdev.qemu.qemu_driver.refusals import root_notes
from pyhostdev.qemu.qemu_process.access import image_obstacles
from pyhostdev.qemu.qemu_process.optional_media import absent_media, without_absent_media

OLDEST, _, NEWEST = RELEASES
DOMAIN = """<domain type='qemu'><name>d</name><memory unit='MiB'>64</memory>{head}
<os{firmware}><type arch='x86_64' machine='{machine}'>hvm</type>{os}</os><features><acpi/></features>
<devices>{devices}</devices></domain>"""


def domain(devices: str = "", *, machine: str = "q35", os: str = "", head: str = "", firmware: str = "") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(devices=devices, machine=machine, os=os, head=head, firmware=firmware))


def refusal(dom: DomainDef, host: Host) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_command_line(dom, host=host, release=NEWEST)
    return [str(error) for error in (caught.value, *caught.value.others)]


@pytest.mark.parametrize(
    ("machine", "release", "said"),
    [
        ("pc-q35-4.2", "11.1", "QEMU 11.1 has no machine type 'pc-q35-4.2'"),
        ("pc-q35-9.2", "7.2", "QEMU 7.2 has no machine type 'pc-q35-9.2'"),
        ("pc-q35-rhel9.4.0", "11.1", "machine type 'pc-q35-rhel9.4.0' counts as 'pc-q35-11.1'"),
        ("pc-i440fx-bionic", "7.2", "machine type 'pc-i440fx-bionic' counts as 'pc-i440fx-7.2'"),
    ],
)
def test_machine_type_that_the_release_does_not_have(machine: str, release: str, said: str) -> None:
    """Without the emulator, other stored capabilities may have it, or its family is known; the answer says so."""
    found = choose(None, "x86_64", stored=release, machine=machine)
    assert found.has_machine(machine)
    assert said in found.why_not_probed
    assert not choose(None, "x86_64", stored=release).has_machine(machine)


@pytest.mark.parametrize("machine", ["pc-q35-99.2", "q35x", "pc-q36-rhel9.4.0"])
def test_unknown_machine_type_stays_unknown(machine: str) -> None:
    """A wrong number or family is not guessed."""
    assert not choose(None, "x86_64", stored="11.1", machine=machine).has_machine(machine)


def test_capabilities_with_another_machine_leave_the_stored_ones(tmp_path: Path) -> None:
    """The stored answers are cached and shared."""
    dom = domain(machine="pc-q35-rhel8.6.0")
    capabilities = qemu_driver.capabilities_of(dom, Host(tmp_path), None, NEWEST)
    argv = build_command_line(dom, capabilities, host=Host(tmp_path), release=NEWEST)
    assert argv[argv.index("-machine") + 1].startswith("pc-q35-rhel8.6.0,")
    assert not qemu_driver.capabilities_of(domain(), Host(tmp_path), None, NEWEST).has_machine("pc-q35-rhel8.6.0")


def test_root_without_firmware_descriptors(tmp_path: Path) -> None:
    """Explicit files are taken as they are; a choice is that of most hosts, and noted."""
    host = Host(tmp_path)
    loader = "<loader readonly='yes' type='pflash'>/usr/share/edk2/x64/OVMF_CODE.fd</loader><nvram>/n.fd</nvram>"
    dom = domain(os=loader, firmware=" firmware='efi'")
    assert "/usr/share/edk2/x64/OVMF_CODE.fd" in " ".join(build_command_line(dom, host=host, release=NEWEST))
    assert [] == list(root_notes(dom, host))
    dom = domain(firmware=" firmware='efi'")
    assert "/usr/share/OVMF/OVMF_CODE_4M.ms.fd" in " ".join(build_command_line(dom, host=host, release=NEWEST))
    assert ["root-lacks"] == [note.reason for note in root_notes(dom, host)]


def test_firmware_that_no_descriptor_names(tmp_path: Path) -> None:
    """libvirt knows some files by their path; of others the refusal names the nearest."""
    directory = tmp_path / "usr/share/qemu/firmware"
    directory.mkdir(parents=True)
    mapping = {
        "device": "flash",
        "executable": {"filename": "/usr/share/OVMF/OVMF_CODE_4M.fd", "format": "raw"},
        "nvram-template": {"filename": "/usr/share/OVMF/OVMF_VARS_4M.fd", "format": "raw"},
    }
    targets = [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]
    words = {"interface-types": ["uefi"], "mapping": mapping, "targets": targets, "features": [], "tags": []}
    (directory / "60.json").write_text(json.dumps(words))
    host = Host(tmp_path)
    loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/{}</loader>"
    dom = domain(os=loader.format("OVMF_CODE.fd"), firmware=" firmware='efi'")
    assert "/usr/share/OVMF/OVMF_CODE.fd" in " ".join(build_command_line(dom, host=host, release=NEWEST))
    (said,) = refusal(domain(os=loader.format("OVMF_CODE_4M.x.fd"), firmware=" firmware='efi'"), host)
    assert "no descriptor names the loader '/usr/share/OVMF/OVMF_CODE_4M.x.fd'; the nearest is" in said
    assert [] == list(root_notes(domain(firmware=" firmware='efi'"), host))
    named = loader.format("OVMF_CODE_4M.x.fd") + "<nvram>/n.fd</nvram>"
    dom = domain(os=named, firmware=" firmware='efi'")
    assert "OVMF_CODE_4M.x.fd" in " ".join(build_command_line(dom, host=host, release=NEWEST))
    assert ["firmware-unknown"] == [note.reason for note in root_notes(dom, host)]


def test_disk_that_a_guest_may_lack(tmp_path: Path) -> None:
    """Of an absent optional file, the drive is empty, or the disk is left out; other files are missing."""
    disk = "<disk type='file' device='{}'><source file='{}' startupPolicy='{}'/><target dev='{}' bus='sata'/></disk>"
    there = tmp_path / "there"
    there.touch()
    devices = (
        disk.format("cdrom", "/nowhere/a", "optional", "sda"),
        disk.format("disk", "/nowhere/b", "optional", "sdb"),
        disk.format("cdrom", there, "optional", "sdc"),
        disk.format("cdrom", "/nowhere/d", "requisite", "sdd"),
    )
    host, dom = Host("/", state_dir=str(tmp_path / "state")), domain("".join(devices))
    assert [True, True] == ["starts without it" in note.message for note in absent_media(dom, host)]
    missing = [finding.message for finding in image_obstacles(dom, host, None) if "/nowhere" in finding.message]
    assert ["'/nowhere/d' of disk 'sdd' does not exist"] == missing
    left = without_absent_media(dom.copy(), host)
    assert [("sda", False), ("sdc", True), ("sdd", True)] == [(d.target, d.source is not None) for d in left.disks]
    assert "/nowhere/b" in " ".join(build_command_line(dom, release=NEWEST))


def test_server_that_listens_in_a_network(tmp_path: Path) -> None:
    """Its address is the network's; without one the refusal says what to write."""
    host = Host(tmp_path)
    dom = domain("<graphics type='vnc' port='5900'><listen type='network' network='lan'/></graphics>")
    assert ["use <listen type='address'>" in said for said in refusal(dom, host)] == [True]
    status = Path(host.root.libvirt_network_status("lan"))
    status.parent.mkdir(parents=True)
    network = (
        "<network><name>lan</name><bridge name='virbr7'/><ip address='10.7.0.1' netmask='255.255.255.0'/></network>"
    )
    status.write_text(f"<networkstatus>{network}</networkstatus>")
    argv = build_command_line(dom, host=host, release=NEWEST)
    assert argv[argv.index("-vnc") + 1].startswith("10.7.0.1:0")


@pytest.mark.parametrize(
    ("label", "severities"),
    [
        ("<seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-1</label></seclabel>", ["note"]),
        ("<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>", ["note"]),
        ("<seclabel type='static' model='selinux'><label>a:b:c:d</label></seclabel>", ["error"]),
        ("<seclabel type='none' model='selinux'/>", []),
    ],
)
def test_label_of_a_security_module(label: str, severities: list[str]) -> None:
    """libvirt generates a label for every guest, so one in the dump of a running guest asks for nothing."""
    found = start_findings(domain(head=label))
    assert severities == [finding.severity for finding in found if "seclabel" in finding.message]


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (
            "<video><model type='virtoi'/></video>",
            "expected a known word, of which virtio, vbox, cirrus are the nearest",
        ),
        ("<sound model='ich'/>", "expected one of sb16"),
    ],
)
def test_wrong_word_of_an_enumeration(devices: str, said: str) -> None:
    """All words if they are few, else the nearest three."""
    with pytest.raises(ConfigError, match=said):
        domain(devices)


def test_word_of_a_newer_release(tmp_path: Path) -> None:
    """The refusal names the release that does not know it, and the first that does, with the line of the word."""
    with pytest.raises(ConfigError, match="libvirt 9.0 does not know it, libvirt 11.3 and later do") as caught:
        build_command_line(domain("<watchdog model='itco'/>"), host=Host(tmp_path), release=OLDEST)
    assert 3 == caught.value.line


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (
            "<disk type='file'><driver name='qemu' cach='none'/><target dev='vda'/></disk>",
            "Unknown attribute 'cach' of <domain/devices/disk/driver>; did you mean 'cache'?",
        ),
        ("<nvram><address type='spapr-vio'/></nvram>", "The machine 'pc-q35-11.1' does not support <nvram>"),
        (
            "<disk type='file'><driver name='phy'/><target dev='vda'/></disk>",
            "'driver name' of <disk> is not supported: only 'qemu' is",
        ),
        (
            "<disk type='volume'><source pool='a' volume='b'/><target dev='vda'/></disk>",
            "'volume' of <source> is not supported: "
            "name the file or device of the volume in a <disk> of type file or block",
        ),
        (
            "<disk type='file'><source file='/a'><zzz/></source><target dev='vda'/></disk>",
            "Element <zzz> in <domain/devices/disk/source> is not supported",
        ),
    ],
)
def test_refusal_says_what_is_supported(devices: str, said: str, tmp_path: Path) -> None:
    """The nearest known name, the only value, or another way to write it."""
    assert said in refusal(domain(devices), Host(tmp_path))
